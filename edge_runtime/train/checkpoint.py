"""Training checkpoints: where a training stands, and the one file that keeps it across a restart.

The file is MAGIC, the length and CRC-32 of a JSON header, the header, and the arrays it lists, each at a multiple of 64
bytes. Nothing in it is code, and nothing is believed before it is checked against the file's own length.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from edge_runtime.errors import ConfigError, ProgramError
from edge_runtime.files import write_atomically
from edge_runtime.train.batches import Array
from edge_runtime.train.history import Epoch, History

if TYPE_CHECKING:
    from edge_runtime.train.loop import Loop

MAGIC = b"HEDGEROW CKPT 1\n"
_SIZES = struct.Struct("<QI")
_ALIGNMENT = 64
# Some 80,000 epochs; JSON takes up to 25 times its length when it is read.
MAX_HEADER_BYTES = 8 << 20
MAX_DIMENSIONS = 32
DTYPES = {"|b1", "|i1", "|u1", *(f"<{kind}{width}" for kind in "iuf" for width in (2, 4, 8))}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All that a training needs to go on exactly: the trainer's and callbacks' arrays, and the rest in plain JSON."""

    arrays: Mapping[str, Array]
    progress: Mapping[str, Any]


def capture(loop: Loop) -> Checkpoint:
    """Where training stands now; to be called inside a callback's hook."""
    arrays = {f"trainer/{name}": array for name, array in loop.trainer.snapshot().items()}
    arrays["losses"] = np.array(loop.history.losses, np.float64)
    states: list[tuple[str, dict[str, Any]]] = []
    for callback in loop.callbacks:
        if (state := callback.state()) is not None:
            prefix = f"callback{len(states)}/"
            arrays |= {prefix + key: value for key, value in state.items() if isinstance(value, np.ndarray)}
            plain = {key: value for key, value in state.items() if not isinstance(value, np.ndarray)}
            states.append((type(callback).__name__, plain))
    progress = {
        "epoch": loop.epoch,
        "batch": loop.batch,
        "examples": loop.history.examples,
        "epochs": [[epoch.train_loss, epoch.lr_scale, dict(epoch.validation)] for epoch in loop.history.epochs],
        "base_scale": loop.base_scale,
        "lr_scale": loop.trainer.lr_scale,
        "order": loop.order(),
        "plateau": None if loop.plateau is None else loop.plateau.as_dict(),
        "callbacks": states,
    }
    return Checkpoint(arrays, progress)


def restore(loop: Loop, checkpoint: Checkpoint) -> None:
    """Make `loop` stand where the checkpoint was taken.

    Raises:
        ConfigError: it was made with another model, batches, callbacks or kind of schedule.

    """
    try:
        _restore(loop, checkpoint.arrays, checkpoint.progress)
    except ConfigError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"the checkpoint is malformed: {type(error).__name__} {error}") from None


def _restore(loop: Loop, arrays: Mapping[str, Array], progress: Mapping[str, Any]) -> None:
    stateful = [callback for callback in loop.callbacks if callback.state() is not None]
    names, own = [name for name, _ in progress["callbacks"]], [type(callback).__name__ for callback in stateful]
    if names != own:
        raise ConfigError(f"the checkpoint was made with the callbacks {names}, this training has {own}")
    if (progress["plateau"] is None) != (loop.plateau is None):
        raise ConfigError("of the checkpoint's schedule and this training's, only one is reduce_on_plateau")
    epoch, batch, examples = progress["epoch"], progress["batch"], progress["examples"]
    losses = np.asarray(arrays["losses"], np.float64).reshape(-1)
    if not all(type(count) is int and count >= 0 for count in (epoch, batch, examples)) or batch > len(losses):
        raise ConfigError(f"the checkpoint is malformed: epoch {epoch}, batch {batch} after {len(losses)} steps")
    epochs = [Epoch(float(loss), float(scale), dict(figures)) for loss, scale, figures in progress["epochs"]]
    loop.base_scale, loop.trainer.lr_scale = float(progress["base_scale"]), float(progress["lr_scale"])
    loop.reorder(progress["order"])
    loop.trainer.restore(_under("trainer/", arrays))
    for number, (callback, (_, plain)) in enumerate(zip(stateful, progress["callbacks"], strict=True)):
        callback.restore({**plain, **_under(f"callback{number}/", arrays)})
    if loop.plateau is not None:
        loop.plateau.load(progress["plateau"])
    loop.history = History(losses.tolist(), examples, epochs)
    loop.epoch, loop.batch = epoch, batch


def _under(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def save(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write the file whole or not at all: a crash at any moment leaves the old file or the new one.

    Raises:
        ConfigError: an array of no plain dtype, or more progress than `load` would read.

    """
    listing: list[dict[str, Any]] = []
    end = 0
    for name, array in checkpoint.arrays.items():
        start = end + -end % _ALIGNMENT
        crc = zlib.crc32(_bytes_of(array))
        listing.append(
            {"name": name, "dtype": array.dtype.str, "shape": list(array.shape), "offset": start, "crc32": crc}
        )
        end = start + array.nbytes
    header = json.dumps({"arrays": listing, "progress": checkpoint.progress}).encode()
    if len(header) > MAX_HEADER_BYTES - _ALIGNMENT:
        raise ConfigError(
            f"a checkpoint's progress is limited to {MAX_HEADER_BYTES} bytes of JSON, this is {len(header)}"
        )
    header += b" " * (-(len(MAGIC) + _SIZES.size + len(header)) % _ALIGNMENT)
    write_atomically(path, _chunks(header, checkpoint.arrays.values()))


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Read what `save` wrote.

    Raises:
        OSError: the file cannot be read.
        ProgramError: it is no checkpoint of this version, is cut short, or has been changed.

    """
    with Path(path).open("rb") as file:
        try:
            return _read(file, os.fstat(file.fileno()).st_size)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            text = str(error) if type(error) is ValueError else f"its header is malformed ({type(error).__name__})"
            raise ProgramError(f"{os.fspath(path)} is no readable checkpoint: {text}") from None


def _chunks(header: bytes, arrays: Iterable[Array]) -> Iterable[bytes | memoryview]:
    yield MAGIC
    yield _SIZES.pack(len(header), zlib.crc32(header))
    yield header
    end = 0
    for array in arrays:
        yield bytes(-end % _ALIGNMENT)
        end += -end % _ALIGNMENT + array.nbytes
        yield _bytes_of(array)


def _bytes_of(array: Array) -> memoryview:
    if array.dtype.str not in DTYPES:
        raise ConfigError(f"a checkpoint cannot keep an array of {array.dtype}")
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _read(file: BinaryIO, size: int) -> Checkpoint:
    if file.read(len(MAGIC)) != MAGIC:
        raise ValueError("it does not begin as one of this version does")
    sizes = file.read(_SIZES.size)
    if len(sizes) < _SIZES.size:
        raise ValueError("it ends within its first line")
    length, crc = _SIZES.unpack(sizes)
    start = len(MAGIC) + _SIZES.size + length
    if length > MAX_HEADER_BYTES or start > size:
        raise ValueError(f"its header of {length} bytes does not fit a file of {size}")
    raw = file.read(length)
    if zlib.crc32(raw) != crc:
        raise ValueError("its header's checksum does not match")
    header = json.loads(raw)
    arrays = {entry["name"]: _read_array(file, entry, start, size) for entry in header["arrays"]}
    if not isinstance(header["progress"], dict) or len(arrays) != len(header["arrays"]):
        raise TypeError
    return Checkpoint(arrays, header["progress"])


def _read_array(file: BinaryIO, entry: Mapping[str, Any], start: int, size: int) -> Array:
    name, dtype, shape, offset = entry["name"], entry["dtype"], entry["shape"], entry["offset"]
    if type(name) is not str or dtype not in DTYPES or not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise TypeError
    if not all(type(n) is int and 0 <= n <= size for n in (offset, *(n for n in shape if n))):
        raise ValueError(f"array {name[:80]!r} reaches outside the file")
    count = 1
    for n in shape:
        count *= n
    if start + offset + count * np.dtype(dtype).itemsize > size:
        raise ValueError(f"array {name[:80]!r} reaches outside the file")
    array = np.empty(shape, dtype)
    file.seek(start + offset)
    view = _bytes_of(array)
    if file.readinto(view) != len(view) or zlib.crc32(view) != entry["crc32"]:  # type: ignore[attr-defined]  # of files
        raise ValueError(f"the checksum of array {name[:80]!r} does not match")
    return array
