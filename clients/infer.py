"""`hedgerow infer`: runs a model file over local data, or over lines as they come in on standard input.

Device code: NumPy and the format's own runtime, no PyTorch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from numpy.typing import NDArray

from edge_runtime.config import parse_bytes
from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    from edge_runtime.deploy.runner import Runner

MAX_LINE = 1 << 24  # characters of one row on standard input


def infer_command(parser: argparse.ArgumentParser) -> None:
    """Run a model file over data: verified first, then one line of JSON for each row."""
    parser.add_argument("model", help="a .onnx, .tflite or .hedgerow file with its manifest.json beside it")
    parser.add_argument(
        "data",
        help=".npy (inputs), .npz (x, and y if there is one), .csv (class in the last column) or a folder of images; "
        "- reads one row of numbers a line from standard input and answers at once",
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of the runtime (default: 1)")
    parser.add_argument(
        "--max-memory", metavar="BYTES", help='such as "8 MiB", for a .hedgerow file; it is refused if it needs more'
    )
    parser.add_argument(
        "--root", metavar="KEY", help="the publisher's root key (.pub): the file must be signed under it"
    )
    parser.add_argument("--scores", action="store_true", help="all outputs of a row, not the class of the highest")
    parser.add_argument("--out", metavar="FILE.npy", help="write all outputs to a file instead of lines")
    parser.set_defaults(run=_infer)


def _infer(options: argparse.Namespace) -> int:
    from edge_runtime.deploy.runner import Runner

    if options.threads < 1:
        raise ConfigError(f"--threads {options.threads}: must be at least 1")
    bound = parse_bytes(options.max_memory, "--max-memory") or None
    runner = Runner.open(options.model, threads=options.threads, max_memory=bound, root_key=options.root)
    if options.data == "-":
        if options.out:
            raise ConfigError("--out needs data that ends; standard input is answered line by line")
        for answer in runner.stream(_lines(sys.stdin, runner)):
            _print(answer, options.scores)
        return 0
    x, y = _read(Path(options.data))
    outputs = runner.predict_all(_shaped(x, runner, options.data))
    if options.out:
        with Path(options.out).open("wb") as file:
            np.save(file, outputs)
    else:
        for answer in outputs:
            _print(answer, options.scores)
    if y is not None and y.shape == outputs.shape[:-1] and np.issubdtype(y.dtype, np.integer):
        share = float((outputs.argmax(-1) == y).mean())
        sys.stderr.write(f"{len(y)} rows, accuracy {100 * share:.1f} %\n")
    return 0


def _read(path: Path) -> tuple[NDArray[np.generic], NDArray[np.generic] | None]:
    if path.suffix == ".npy":
        try:
            x = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ConfigError(f"{path}: cannot be read as a plain array ({error})") from error
        if x.ndim == 0 or not len(x) or x.dtype.kind not in "fiu":
            raise ConfigError(f"{path}: must hold rows of numbers, found {x.dtype} of shape {x.shape}")
        return x, None
    from clients.datasets import read_examples

    examples = read_examples(path)
    return examples.x, examples.y


def _shaped(x: NDArray[np.generic], runner: Runner, where: str) -> NDArray[np.generic]:
    """Rows in the model's own shape: a CSV's are flat."""
    row = runner.input.shape[1:]
    if x.shape[1:] != row and int(np.prod(x.shape[1:])) == int(np.prod(row)):
        return x.reshape(len(x), *row)
    if x.shape[1:] != row:
        raise ConfigError(f"{where}: rows have shape {x.shape[1:]}, the model takes {row}")
    return x


def _lines(source: TextIO, runner: Runner) -> Iterator[NDArray[np.generic]]:
    row = runner.input.shape[1:]
    size = int(np.prod(row))
    for number, line in enumerate(_bounded(source), 1):
        if not line.strip():
            continue
        fields = line.replace(",", " ").split()
        try:
            values = np.array(fields, np.float64)
        except ValueError as error:
            raise ConfigError(f"standard input, line {number}: not a row of numbers") from error
        if len(values) != size or not np.isfinite(values).all():
            raise ConfigError(
                f"standard input, line {number}: the model takes {size} finite numbers, got {len(values)}"
            )
        yield values.reshape(row)


def _bounded(source: TextIO) -> Iterable[str]:
    number = 0
    while line := source.readline(MAX_LINE):
        number += 1
        if len(line) == MAX_LINE and not line.endswith("\n"):
            raise ConfigError(f"standard input, line {number}: longer than {MAX_LINE} characters")
        yield line


def _print(answer: NDArray[np.float32], scores: bool) -> None:
    """`{"class": 3, "score": 0.98}`, or all outputs; a sequence has a class for each of its places."""
    line: dict[str, Any]
    if scores or answer.ndim == 0:
        line = {"output": answer.tolist()}
    else:
        best = answer.argmax(-1)
        line = {"class": best.tolist(), "score": np.round(answer.max(-1).astype(float), 4).tolist()}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
