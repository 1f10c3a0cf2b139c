"""A training step asks for no memory: not a byte, in any thread, while the native core runs.

A child without PyTorch trains saved Programs with malloc and its kin counted (count_allocations.c, preloaded). Counted
is what happens inside the native call; Python's own small objects are made outside it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import edge_runtime as er

MODELS = ("lenet", "char_gru", "char_transformer", "mobilenet_v2_small")
BATCH, STEPS = 4, 2
COMPILER = shutil.which(os.environ.get("CC", "cc"))

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C compiler"),
    pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the hook is made for glibc"),
]


@pytest.fixture(scope="module")
def hook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("hook") / "libcount.so"
    source = Path(__file__).with_name("count_allocations.c")
    command = [str(COMPILER), "-O1", "-Wall", "-shared", "-fPIC", str(source), "-o", str(library), "-ldl"]
    subprocess.run(command, check=True)
    return library


@pytest.mark.parametrize(
    ("model", "threads", "qat_bits"),
    [*((model, 1, 0) for model in MODELS), ("lenet", 2, 0), ("char_gru", 2, 0), ("lenet", 2, 4)],
)
def test_a_training_step_allocates_nothing(model: str, threads: int, qat_bits: int, hook: Path, tmp_path: Path) -> None:
    import torch

    from simulations import models

    x, _ = batch(model)
    program = er.build(
        getattr(models, model)(),
        torch.tensor(x[:1]),
        optimizer=er.SGD(lr=0.01, momentum=0.9),
        batch_size=BATCH,
        qat_bits=qat_bits,
    )
    program.save(tmp_path / "program")
    command = [sys.executable, "-P", __file__, model, str(threads), str(tmp_path / "program"), str(hook)]
    environment = {**os.environ, "LD_PRELOAD": str(hook), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    creating, *running = map(int, child.stdout.split())
    assert creating > 0, "the hook sees nothing"
    assert running == [0] * STEPS


def batch(model: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    if model.startswith("char"):
        return rng.integers(0, 80, (BATCH, 64)), rng.integers(0, 80, (BATCH, 64))
    shape = (1, 28, 28) if model == "lenet" else (3, 32, 32)
    return rng.standard_normal((BATCH, *shape)).astype(np.float32), rng.integers(0, 10, BATCH)


# The child


def train(model: str, threads: str, path: str, hook: str) -> None:
    """Print the counted allocations of making the first session, then of each step's native call."""
    from edge_runtime.kernels import native

    counts: list[int] = []
    call = ctypes.CDLL(hook).call_counted
    call.restype = ctypes.c_ssize_t
    call.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_int64), *[ctypes.c_void_p] * 6]

    def counted(function: ctypes._NamedFuncPointer) -> object:  # type: ignore[name-defined]
        address = ctypes.cast(function, ctypes.c_void_p)

        def run(*arguments: object) -> int:
            count = ctypes.c_int64()
            result = call(address, ctypes.byref(count), *arguments, *[None] * (6 - len(arguments)))
            counts.append(count.value)
            return int(result)

        return run

    core = native._core()
    core.hr_session_create = counted(core.hr_session_create)
    program = er.Program.load(Path(path))
    trainer = er.Trainer(program, threads=int(threads))
    del counts[1:]
    for phase in trainer._session._native.values():
        phase._run = counted(phase._run)
    x, y = batch(model)
    for _ in range(STEPS):
        trainer.step(x, y)
    print(*counts)


if __name__ == "__main__":
    train(*sys.argv[1:])
