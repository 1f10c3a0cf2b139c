"""Named arrays in a safetensors file: a length, a JSON header, raw numbers. Nothing in it can run.

https://github.com/huggingface/safetensors#format: u64 header size (little-endian), the header
{"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, "__metadata__": {...}}, then the data.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import ArtefactError

Array = NDArray[np.generic]
MAX_HEADER_BYTES = 1 << 20
MAX_DIMS = 8
_LENGTH = struct.Struct("<Q")
_DTYPES = {"F32": "<f4", "F64": "<f8", "I8": "|i1", "U8": "|u1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


def read_tensors(content: bytes, what: str) -> dict[str, Array]:
    """The arrays, as views of `content`.

    Raises:
        ArtefactError: the header is malformed, or promises what is not there: gaps, overlaps, data past the end.

    """
    try:
        return _read(content)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, struct.error) as error:
        raise ArtefactError(f"{what}: is no safetensors file: {str(error)[:200] or 'nested too deep'}") from error


def _read(content: bytes) -> dict[str, Array]:
    (length,) = _LENGTH.unpack_from(content)
    if length > min(MAX_HEADER_BYTES, len(content) - _LENGTH.size):
        raise ValueError(f"its header of {length} bytes is longer than the file or {MAX_HEADER_BYTES}")
    start = _LENGTH.size + length
    header: dict[str, Any] = json.loads(content[_LENGTH.size : start].decode())
    header.pop("__metadata__", None)
    arrays, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape, (begin, stop) = np.dtype(_DTYPES[entry["dtype"]]), entry["shape"], entry["data_offsets"]
        numbers = [*shape, begin, stop]
        if len(shape) > MAX_DIMS or any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError(f"{name!r} has a shape or offsets that no array has")
        count = math.prod(shape)
        if begin != end or stop - begin != count * dtype.itemsize or start + stop > len(content):
            raise ValueError(f"{name!r} is not where its header says")
        arrays[name] = np.frombuffer(content, dtype, count, start + begin).reshape(shape)
        end = stop
    if start + end != len(content):
        raise ValueError("there are bytes that belong to no array")
    return arrays


def write_tensors(arrays: Mapping[str, Array]) -> bytes:
    """The file of these arrays, names sorted, so that equal arrays are equal bytes."""
    header, parts, end = {}, [], 0
    for name, array in sorted(arrays.items()):
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        begin, end = end, end + little.nbytes
        header[name] = {"dtype": _NAMES[little.dtype], "shape": list(little.shape), "data_offsets": [begin, end]}
        parts.append(little.tobytes())
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([_LENGTH.pack(len(text)), text, *parts])
