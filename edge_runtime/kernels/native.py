"""Opens the native core with ctypes and gives its kernels NumPy signatures; every array is checked before the call."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import edge_runtime.kernels
from edge_runtime.errors import EdgeRuntimeError, MissingPackageError

LIBRARY = "libhedgerow_core.so"
ABI_VERSION = 1


@cache
def _core() -> ctypes.CDLL:
    # An editable install keeps the sources and the built library in two folders of one package path.
    found = [path for folder in edge_runtime.kernels.__path__ if (path := Path(folder) / LIBRARY).is_file()]
    if not found:
        raise MissingPackageError(f"the native core {LIBRARY} is not built; `pip install .` in the checkout builds it")
    core = ctypes.CDLL(str(found[0]))
    if (version := core.hr_abi_version()) != ABI_VERSION:
        raise EdgeRuntimeError(f"{found[0]} has ABI {version}, this package needs {ABI_VERSION}; reinstall hedgerow")
    size, pointer, text = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_char_p
    for name, arguments, result in (
        ("hr_isa_name", [ctypes.c_int32], text),
        ("hr_select_isa", [text], ctypes.c_int32),
        ("hr_selected_isa", [], text),
        ("hr_all_finite_f32", [size, pointer], ctypes.c_int32),
        ("hr_accumulate_f32_f64", [size, pointer, ctypes.c_double, pointer], None),
    ):
        function = getattr(core, name)
        function.argtypes, function.restype = arguments, result
    return core


def isas() -> list[str]:
    """Instruction sets that this build holds and this CPU runs, best first; "scalar" is always the last."""
    found: list[str] = []
    while name := _core().hr_isa_name(len(found)):
        found.append(name.decode())
    return found


def selected_isa() -> str:
    return str(_core().hr_selected_isa().decode())


def select_isa(name: str) -> None:
    """Use the kernels of one ISA in this whole process (for tests and benchmarks; the best is chosen at load)."""
    if _core().hr_select_isa(name.encode()) != 0:
        raise ValueError(f"no ISA {name!r} here; there are {', '.join(isas())}")


def all_finite(x: NDArray[np.float32]) -> bool:
    """Whether no element of the contiguous float32 array `x` is NaN or infinite."""
    _check(x, np.float32)
    return bool(_core().hr_all_finite_f32(x.size, x.ctypes.data))


def accumulate(acc: NDArray[np.float64], x: NDArray[np.float32], weight: float) -> None:
    """`acc += weight * x` in place; contiguous float64 and float32 arrays of one size, bit-identical on every ISA."""
    _check(acc, np.float64)
    _check(x, np.float32)
    if acc.size != x.size or not acc.flags.writeable or np.may_share_memory(acc, x):
        raise ValueError(f"acc ({acc.size} elements) must be writable, apart from x, and as long as x ({x.size})")
    _core().hr_accumulate_f32_f64(x.size, x.ctypes.data, weight, acc.ctypes.data)


def _check(array: NDArray[np.generic], dtype: type[np.generic]) -> None:
    if array.dtype != dtype or not array.flags.c_contiguous or not array.flags.aligned:
        raise ValueError(f"expected a contiguous, aligned {np.dtype(dtype)} array, got {array.dtype}")
