"""Codes recorded updates with the product's own codecs, one job a line; see `codec_jobs.py`.

    stdin   {"update": FILE.npz, "codec": "context", "options": {"bits": 0.25}, "repeats": 5}
    stdout  {"parameters": ..., "bytes": ..., "nmse": ..., "encode_s": ..., "decode_s": ...}

`bytes` is the length of the payload, its header included. The time to encode includes the search for the step size.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from functools import lru_cache
from typing import Any

import numpy as np

import edge_runtime as er


@lru_cache(maxsize=1)
def load(path: str) -> tuple[er.updates.TensorLayout, np.ndarray[Any, np.dtype[np.float32]]]:
    with np.load(path) as arrays:
        tensors = {name: arrays[name] for name in arrays.files}
    layout = er.updates.TensorLayout.of(tensors)
    return layout, layout.flatten(tensors)


def run(update: str, codec: str, options: dict[str, Any], repeats: int) -> dict[str, float]:
    layout, values = load(update)
    out = np.empty_like(values)
    encode_s, decode_s = [], []
    for repeat in range(repeats):
        made = er.updates.make_codec(codec, **options)
        began = time.process_time()
        payload = made.encode_vector(values, layout, seed=repeat)
        encoded = time.process_time()
        out = made.decode_vector(payload, layout, out=out)
        decode_s.append(time.process_time() - encoded)
        encode_s.append(encoded - began)
    error = np.sum(np.square(values.astype(np.float64) - out))
    return {
        "parameters": values.size,
        "bytes": len(payload),
        "nmse": float(error / np.sum(np.square(values, dtype=np.float64))),
        "encode_s": statistics.median(encode_s),
        "decode_s": statistics.median(decode_s),
    }


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), flush=True)
