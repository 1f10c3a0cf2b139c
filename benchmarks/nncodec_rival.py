"""Runs nncodec, reference implementation of ISO/IEC 15938-17 (NNC), one job a line; see `codec_jobs.py`.

    stdin   {"update": FILE.npz, "qp": -120, "use_dq": true, "lambda_scale": 1.0, "repeats": 1}
    stdout  {"parameters": ..., "bytes": ..., "nmse": ..., "encode_s": ..., "decode_s": ...}

`bytes` is the whole bitstream. Only `bench_codecs.py` starts this, with the Python that `make rivals-nncodec` sets up.
Its defaults would cost it a quarter to a half of what it can do at these rates: here one step serves all tensors
(`nonweight_qp = qp`) and zero rows are skipped; quantiser and `lambda_scale` are the job's.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import os
import statistics
import sys
import time
from functools import lru_cache
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch

QP_DENSITY = 4  # 16 values of qp double the step
# nncodec imports these for training and evaluating models, which is not done here.
UNUSED = {
    "cv2", "flwr", "h5py", "pandas", "ptflops", "sklearn", "tensorflow", "torchmetrics", "torchvision", "tqdm", "wandb",
}  # fmt: skip


class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds every module of UNUSED, so that importing nncodec does not fail where they are not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] in UNUSED else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return MagicMock(__path__=[])

    def exec_module(self, module: ModuleType) -> None:
        pass


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nncodec prints
    torch.set_num_threads(1)
    sys.meta_path.append(Absent())
    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), file=answers, flush=True)


@lru_cache(maxsize=1)
def load(path: str) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def run(update: str, qp: int, use_dq: bool, lambda_scale: float, repeats: int) -> dict[str, float]:
    from nncodec import nnc

    tensors = load(update)
    encode_s, decode_s = [], []
    for _ in range(repeats):
        given = {name: tensor.copy() for name, tensor in tensors.items()}  # it works in place
        began = time.process_time()
        stream = nnc.compress(
            given, qp=qp, nonweight_qp=qp, qp_density=QP_DENSITY, row_skipping=True, use_dq=use_dq,
            lambda_scale=lambda_scale, return_bitstream=True, bitstream_path=os.devnull, verbose=False,
        )  # fmt: skip
        encoded = time.process_time()
        decoded = nnc.decompress(stream, verbose=False)
        decode_s.append(time.process_time() - encoded)
        encode_s.append(encoded - began)
    decoded = decoded[0] if isinstance(decoded, tuple) else decoded
    error = sum(float(np.sum((decoded[name] - tensors[name]).astype(np.float64) ** 2)) for name in tensors)
    energy = sum(float(np.sum(tensor.astype(np.float64) ** 2)) for tensor in tensors.values())
    return {
        "parameters": sum(tensor.size for tensor in tensors.values()),
        "bytes": len(stream),
        "nmse": error / energy,
        "encode_s": statistics.median(encode_s),
        "decode_s": statistics.median(decode_s),
    }


if __name__ == "__main__":
    main()
