"""Standardising, augmentation, and data that never fits in memory: same seeds, same batches, from any batch on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

from edge_runtime.errors import ConfigError
from edge_runtime.train.batches import Batches, Examples, MultiExamples, Rows, Subset
from edge_runtime.train.mapped import MappedExamples
from edge_runtime.train.transforms import Crop, Flip, Noise, Standardize, fit_standardize


def images(count: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 2, 5, 4)).astype(np.float32)


# Standardising.


@given(
    cuts=st.lists(st.integers(0, 40), max_size=4),
    seed=st.integers(0, 99),
    offset=st.sampled_from([0.0, 1e6]),
    dtype=st.sampled_from([np.float64, np.float32]),
)
@settings(deadline=None)
def test_features_are_standardised_as_scikit_learn_does(cuts: list[int], seed: int, offset: float, dtype: type) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(40, 3)) * [1, 5, 0] + [0, 2, 7] + offset).astype(dtype)
    ours = fit_standardize(np.split(x, sorted(cuts)))
    theirs = StandardScaler().fit(x.astype(np.float64))
    np.testing.assert_allclose(ours.mean, theirs.mean_, rtol=1e-12)
    np.testing.assert_allclose(ours.std[:2], np.sqrt(theirs.var_[:2]), rtol=1e-7)
    assert ours.std[2] == 0
    assert ours(x).dtype == np.float32
    if not offset:
        np.testing.assert_allclose(ours(x), theirs.transform(x.astype(np.float64)), atol=1e-5)


@pytest.mark.parametrize(("shape", "axis"), [((9, 3, 4, 5), 1), ((9, 4, 3), -1), ((9, 3), 1)])
def test_every_channel_comes_out_with_mean_0_and_deviation_1(shape: tuple[int, ...], axis: int) -> None:
    x = np.random.default_rng(0).gamma(2.0, 30.0, shape).astype(np.float32)
    z = np.moveaxis(fit_standardize([x[:4], x[4:]], axis)(x), axis, 0).reshape(3, -1)
    np.testing.assert_allclose(z.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(z.std(1), 1, atol=1e-5)


def test_bytes_of_images_are_standardised_in_float() -> None:
    x = np.random.default_rng(0).integers(0, 256, (7, 1, 3, 3), dtype=np.uint8)
    z = fit_standardize([x])(x)
    np.testing.assert_allclose([z.mean(), z.std()], [0, 1], atol=1e-6)


def test_a_standardisation_comes_back_from_its_file(tmp_path: Path) -> None:
    standard = fit_standardize([images()])
    standard.save(tmp_path / "s.json")
    assert Standardize.load(tmp_path / "s.json") == standard
    assert json.loads((tmp_path / "s.json").read_text()).keys() == {"mean", "std", "axis"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 10**5,
        '{"mean": [1], "std": [1, 2], "axis": 1}',
        '{"mean": [NaN], "std": [1], "axis": 1}',
        '{"mean": [], "std": [], "axis": 1}',
        '{"mean": ["x"], "std": [1], "axis": 1}',
        '{"mean": [1], "std": [-1], "axis": 1}',
    ],
    ids=range(9),
)
def test_a_file_that_holds_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(ConfigError, match=r"s\.json: ") as caught:
        Standardize.load(tmp_path / "s.json")
    assert "\n" not in str(caught.value)


def test_wrong_channels_and_no_values_are_refused() -> None:
    with pytest.raises(ValueError, match="2 channels on axis 1, the batch is"):
        fit_standardize([images()])(np.zeros((2, 3, 5, 4), np.float32))
    with pytest.raises(ValueError, match="nothing to take means of"):
        fit_standardize([np.zeros((0, 3))])
    with pytest.raises(ValueError, match="4 channels after parts with 3"):
        fit_standardize([np.zeros((1, 3)), np.zeros((1, 4))])


# Augmentation.


def test_a_flip_gives_each_image_or_its_mirror_image_in_the_asked_share() -> None:
    x = images(400)
    flipped = Flip(0.25)(x, np.random.default_rng(0))
    mirrored = np.array([(a == b[..., ::-1]).all() for a, b in zip(flipped, x, strict=True)])
    same = np.array([(a == b).all() for a, b in zip(flipped, x, strict=True)])
    assert (mirrored ^ same).all()
    assert 0.15 < mirrored.mean() < 0.35
    np.testing.assert_array_equal(Flip(0, 1)(x, np.random.default_rng(0)), x[:, :, ::-1])
    np.testing.assert_array_equal(Flip(0, 0)(x, np.random.default_rng(0)), x)


def test_a_crop_is_a_window_of_the_padded_image_and_every_shift_occurs() -> None:
    x = images(300)
    cropped = Crop(1)(x, np.random.default_rng(0))
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = [padded[:, :, top : top + 5, left : left + 4] for top in range(3) for left in range(3)]
    shifts = [[n for n, w in enumerate(windows) if (w[row] == cropped[row]).all()] for row in range(len(x))]
    assert all(len(found) == 1 for found in shifts)
    assert {found[0] for found in shifts} == set(range(9))
    np.testing.assert_array_equal(Crop(0)(x, np.random.default_rng(0)), x)


def test_noise_has_the_asked_deviation() -> None:
    x = images(500)
    noise = Noise(0.3)(x, np.random.default_rng(0)) - x
    np.testing.assert_allclose([noise.mean(), noise.std()], [0, 0.3], atol=0.01)


@pytest.mark.parametrize("transform", [Flip(), Crop(2), Noise()], ids=str)
def test_augmentation_leaves_its_input_alone_and_repeats_with_its_generator(transform: Any) -> None:
    x = images()
    x.setflags(write=False)
    one, two, other = (transform(x, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one.dtype == x.dtype
    assert one.flags.c_contiguous
    assert one.tobytes() == two.tobytes() != other.tobytes()
    np.testing.assert_array_equal(x, images())


def test_augmentation_without_a_generator_or_of_what_is_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Flip is random and needs Batches\(rng=...\)"):
        list(Batches(Examples(images(), np.zeros(6)), 2, transforms=(Flip(),)))
    for transform in (Flip(), Crop()):
        with pytest.raises(ValueError, match=r"images are \(B, C, H, W\)"):
            transform(np.zeros((3, 4), np.float32), np.random.default_rng(0))


@pytest.mark.parametrize("make", [lambda: Flip(1.5), lambda: Flip(0, -1), lambda: Crop(-1), lambda: Noise(-0.1)])
def test_bad_arguments_are_refused(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()


# Batches with all of it.


def numbered(count: int) -> Examples:
    """Images of which each is told by its first pixel."""
    x = images(count)
    x[:, 0, 0, 0] = np.arange(count)
    return Examples(x, np.arange(count))


def taken(batches: Batches, first: int = 0) -> list[bytes]:
    return [x.tobytes() + np.asarray(y).tobytes() for x, y in batches.starting_at(first)]


@given(
    count=st.integers(1, 30),
    size=st.integers(1, 8),
    passes=st.integers(0, 3),
    first=st.integers(0, 30),
    shuffles=st.booleans(),
    augments=st.booleans(),
)
@settings(deadline=None)
def test_a_pass_taken_up_in_the_middle_gives_the_same_batches(
    count: int, size: int, passes: int, first: int, shuffles: bool, augments: bool
) -> None:
    def batches(seed: int) -> Batches:
        rng = np.random.default_rng(seed) if shuffles else None
        return Batches(numbered(count), size, rng, (Flip(), Crop(1), Noise()) if augments and shuffles else ())

    whole, other = batches(3), batches(4)
    for _ in range(passes):
        list(whole)
    other.restore(json.loads(json.dumps(whole.state())))
    assert taken(other, first) == taken(whole)[first:]
    assert taken(other) == taken(whole)


def test_every_batch_and_every_pass_is_augmented_anew() -> None:
    x = np.zeros((8, 1, 2, 2), np.float32)
    seen = [
        x.tobytes()
        for batches in [Batches(Examples(x, x), 2, np.random.default_rng(0), (Noise(),))] * 2
        for x, _ in batches
    ]
    assert len(set(seen)) == 8


def test_batches_without_transforms_follow_the_permutations_alone() -> None:
    batches, rng = Batches(numbered(9), 4, np.random.default_rng(5)), np.random.default_rng(5)
    for _ in range(3):
        assert np.concatenate([y for _, y in batches]).tolist() == rng.permutation(9).tolist()


def test_the_data_is_never_held_twice() -> None:
    import tracemalloc

    rows = Examples(np.zeros((4000, 1, 16, 16), np.float32), np.zeros(4000, np.int64))  # 4 MiB
    batches = Batches(rows, 32, np.random.default_rng(0), (Standardize((0.0,), (1.0,)), Flip(), Crop(2), Noise()))
    tracemalloc.start()
    try:
        for _ in batches:
            pass
        assert tracemalloc.get_traced_memory()[1] < 600_000
    finally:
        tracemalloc.stop()


def test_a_subset_names_rows_and_copies_none() -> None:
    rows = numbered(6)
    subset = Subset(Subset(rows, np.array([5, 3, 3, 0])), np.array([3, 1]))
    x, y = subset.take(slice(0, 2))
    assert y.tolist() == x[:, 0, 0, 0].tolist() == [0, 3]
    assert len(subset) == 2


def test_several_targets_travel_as_a_tuple() -> None:
    rows = MultiExamples(np.arange(5), (np.arange(5) * 2, np.arange(5) * 3))
    for x, y in Batches(rows, 2, np.random.default_rng(0)):
        assert isinstance(y, tuple)
        assert (y[0] == 2 * x).all()
        assert (y[1] == 3 * x).all()
    with pytest.raises(ValueError, match="5 inputs but 4 targets"):
        MultiExamples(np.arange(5), (np.arange(5), np.arange(4)))


def test_a_batch_size_below_1_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size = 0"):
        Batches(numbered(3), 0)


# Files.


def saved(folder: Path, rows: Examples) -> MappedExamples:
    np.save(folder / "x.npy", rows.x)
    np.save(folder / "y.npy", rows.y)
    return MappedExamples(folder / "x.npy", folder / "y.npy")


@given(count=st.integers(0, 20), size=st.integers(1, 6), seed=st.none() | st.integers(0, 9))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mapped_rows_are_the_rows_themselves(tmp_path: Path, count: int, size: int, seed: int | None) -> None:
    rows = numbered(count)
    mapped: Rows = saved(tmp_path, rows)
    one, two = (
        list(Batches(source, size, None if seed is None else np.random.default_rng(seed))) for source in (rows, mapped)
    )
    assert len(mapped) == count
    for (x, y), (mapped_x, mapped_y) in zip(one, two, strict=True):
        assert (x.dtype, x.tobytes(), np.asarray(y).tobytes()) == (
            mapped_x.dtype,
            mapped_x.tobytes(),
            np.asarray(mapped_y).tobytes(),
        )
        assert mapped_x.flags.writeable


def test_what_is_taken_is_the_callers_own(tmp_path: Path) -> None:
    mapped = saved(tmp_path, numbered(4))
    for index in (slice(0, 2), np.array([0, 1])):
        x, _ = mapped.take(index)
        x[...] = 9
        assert mapped.take(index)[0][1, 0, 0, 0] == 1


def test_foreign_byte_order_and_several_target_files_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(6, dtype=">f4").reshape(3, 2))
    np.save(tmp_path / "a.npy", np.arange(3))
    x, y = MappedExamples(tmp_path / "x.npy", tmp_path / "a.npy", tmp_path / "a.npy").take(np.array([2]))
    assert x.dtype == np.dtype("<f4")
    assert x.tolist() == [[4, 5]]
    assert [part.tolist() for part in y] == [[2], [2]]


def test_files_that_cannot_be_mapped_are_refused_with_what_would_help(tmp_path: Path) -> None:
    good = tmp_path / "good.npy"
    np.save(good, np.zeros((3, 2), np.float32))
    files: dict[str, bytes | np.ndarray] = {
        "fortran.npy": np.asfortranarray(np.zeros((3, 2))),
        "scalar.npy": np.array(1.0),
        "rows.npy": np.zeros(4),
        "cut.npy": good.read_bytes()[:-1],
        "header.npy": good.read_bytes()[:40],
        "empty.npy": b"",
        "text.npy": b"1,2,3\n4,5,6\n",
        "huge.npy": good.read_bytes().replace(b"(3, 2)", b"(3, 2" + b"0" * 15 + b")"),
        "negative.npy": good.read_bytes().replace(b"(3, 2)", b"(3,-2)"),
        "code.npy": good.read_bytes().replace(b"'<f4'", b"'|O4'"),
    }
    texts = {"fortran": "C order", "scalar": "with rows", "rows": "4 rows, the inputs have 3", "cut": "cut short"}
    for name, content in files.items():
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            np.save(path, content)
        with pytest.raises(ConfigError, match=texts.get(path.stem, path.name)) as caught:
            MappedExamples(good, path)
        assert "\n" not in str(caught.value)
    np.savez(tmp_path / "both.npz", x=np.zeros(3))
    with pytest.raises(
        ConfigError, match=r"an \.npz archive cannot be mapped; save each of its arrays as a \.npy file"
    ):
        MappedExamples(tmp_path / "both.npz", good)
    with pytest.raises(ConfigError, match="a file of targets is needed"):
        MappedExamples(good)


MEASURE = """
import sys
import numpy as np
from edge_runtime.train.batches import Batches
from edge_runtime.train.mapped import MappedExamples
def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
batches = Batches(MappedExamples(sys.argv[1], sys.argv[2]), 32, np.random.default_rng(0))
for x, y in batches.starting_at(len(batches.examples) // 32 - 2):
    pass
before, most, seen = resident(), 0, 0
for x, y in batches:
    most = max(most, resident())
    assert (x[:, 0] == y).all()
    seen += int(y.sum())
print(most - before, seen)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_shuffled_pass_over_a_large_file_stays_within_a_few_mebibytes(tmp_path: Path) -> None:
    count, width = 8192, 2048  # 64 MiB
    rows = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (count, width))
    rows[:, 0] = np.arange(count)
    rows[:, -1] = 1
    rows.flush()
    np.save(tmp_path / "y.npy", np.arange(count))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "x.npy"), str(tmp_path / "y.npy")],
        capture_output=True,
        text=True,
        check=True,
    )
    grown_kib, seen = map(int, done.stdout.split())
    assert seen == count * (count - 1) // 2
    assert grown_kib < 8 * 1024
