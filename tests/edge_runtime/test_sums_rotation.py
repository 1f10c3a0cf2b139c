"""The shared rotation keeps lengths, undoes itself, and spreads an update's energy over all coordinates."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.secagg.plan import BLOCK, padded_size
from edge_runtime.sums import Rotation

sizes = st.integers(1, 5000)
seeds = st.integers(0, 2**64 - 1)


def whole(seed: int, size: int) -> Rotation:
    return Rotation(seed, size, padded_size(size))


@settings(deadline=None)
@given(sizes, seeds)
def test_undoing_gives_the_vector_back_and_lengths_stay(size: int, seed: int) -> None:
    x = np.random.default_rng(size).normal(size=size)
    rotation = whole(seed, size)
    rotated = rotation.apply(x)
    assert rotated.shape == (padded_size(size),)
    assert np.linalg.norm(rotated) == pytest.approx(np.linalg.norm(x), rel=1e-13)
    np.testing.assert_allclose(rotation.undo(rotated), x, atol=1e-13)


def test_the_matrix_is_orthonormal_with_one_block_for_each_value() -> None:
    """Column by column: 512 entries of +-1 / sqrt(512), and every block takes in 512 values."""
    size = 4 * BLOCK
    rotation = whole(3, size)
    matrix = np.stack([rotation.apply(one) for one in np.eye(size)], axis=1)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-12)
    entries = np.abs(matrix[matrix != 0])
    np.testing.assert_allclose(entries, BLOCK**-0.5)
    assert np.array_equal(np.count_nonzero(matrix, axis=0), np.full(size, BLOCK))
    assert np.array_equal(np.count_nonzero(matrix, axis=1), np.full(size, BLOCK))


@settings(deadline=None)
@given(st.integers(2000, 5000), seeds, st.floats(0.001, 1))  # values enough that no two coordinates are equal
def test_a_share_of_the_coordinates_is_those_of_the_whole(size: int, seed: int, fraction: float) -> None:
    """What travels is a part of all coordinates in their order, and undoing it is the transpose of taking it."""
    kept = max(1, round(fraction * padded_size(size)))
    x = np.random.default_rng(size).normal(size=size)
    part = Rotation(seed, size, kept)
    everything, some = whole(seed, size).apply(x), part.apply(x)
    assert some.shape == (kept,)
    places = np.flatnonzero(np.isin(everything, some))
    assert places.size == kept
    assert np.array_equal(everything[places], some)
    other = np.random.default_rng(kept).normal(size=kept)
    assert part.undo(other) @ x == pytest.approx(other @ some, rel=1e-9, abs=1e-9)


def test_all_clients_draw_the_same_on_every_machine_and_in_every_version() -> None:
    """Seeds travel between versions: the bits may not change."""
    made = Rotation(2**64 - 1, 3000, 700).apply(np.arange(3000.0))
    assert hashlib.sha256(made.astype("<f8").tobytes()).hexdigest() == (
        "ddd62e539cad4aedd448cf43eb66a6e89e5dd9b72a8ca0e80ef871901f12d958"
    )


def test_seeds_differ() -> None:
    x = np.random.default_rng(0).normal(size=2000)
    rotated = [whole(seed, 2000).apply(x) for seed in (0, 1, 2**32, 2**63)]
    for i, one in enumerate(rotated):
        for other in rotated[:i]:
            assert abs(one @ other) < 0.2 * (x @ x)


def one_tensor(x: np.ndarray) -> None:
    x[20_000:] = 0


def one_row_in_64(x: np.ndarray) -> None:
    x.reshape(512, 512)[1:, :] *= np.arange(1, 512)[:, None] % 64 == 0


def eight_columns(x: np.ndarray) -> None:
    x.reshape(512, 512)[:, 8:] = 0


def columns_at_a_distance(x: np.ndarray) -> None:
    x.reshape(512, 512)[:, np.arange(512) % 64 != 0] = 0


@pytest.mark.parametrize("shape", [one_tensor, one_row_in_64, eight_columns, columns_at_a_distance])
def test_energy_in_a_few_rows_columns_or_tensors_is_spread_over_all_coordinates(shape: object) -> None:
    """512 blocks, 4,096 values or more: no coordinate passes 9 standard deviations. In blocks as they stand: 30."""
    x = np.random.default_rng(4).normal(size=512 * 512)
    shape(x)  # type: ignore[operator]
    for seed in range(3):
        rotated = whole(seed, x.size).apply(x)
        assert np.abs(rotated).max() < 9 * np.linalg.norm(x) / np.sqrt(x.size)
