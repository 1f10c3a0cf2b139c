"""Whole numbers that add up: decoding is right to rounding, unbiased, and no vector passes its bounds."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edge_runtime as er
from edge_runtime.errors import ConfigError, NumericsError, PeerError
from edge_runtime.privacy import AdaptiveClip, clip_by_norm
from edge_runtime.privacy.noise import table
from edge_runtime.secagg.plan import padded_size
from edge_runtime.sums import NoiseShare, SumEncoder

sizes = st.integers(1, 3000)
seeds = st.integers(0, 2**64 - 1)
shares = st.sampled_from(
    [NoiseShare("discrete_gaussian", "7.5"), NoiseShare("skellam", "40"), NoiseShare("skellam", "1e3")]
)


@st.composite
def encoders(draw: st.DrawFn, noise: bool | None = None) -> SumEncoder:
    share = draw(shares) if noise or (noise is None and draw(st.booleans())) else None
    return SumEncoder(
        size=draw(sizes),
        clip=draw(st.floats(1e-3, 100)),
        scale=draw(st.floats(1e-2, 1e4)),
        seed=draw(seeds),
        value_max=0 if share else draw(st.sampled_from([0, 1, 7, 1000])),
        fraction=draw(st.one_of(st.just(1.0), st.floats(1e-4, 1))),
        vote=draw(st.sampled_from([0, 1, 50, 10**6])),
        noise=share,
    )


def update(size: int, seed: int, length: float) -> np.ndarray:
    """Uneven: a few values hold most of the length."""
    x = np.random.default_rng(seed).standard_t(2, size)
    return x * (length / np.linalg.norm(x))


@settings(deadline=None)
@given(sizes, seeds, st.floats(0.1, 3), st.floats(10, 1e6))
def test_decoding_is_right_to_rounding(size: int, seed: int, length: float, scale: float) -> None:
    x = update(size, seed % 2**32, length)
    encoder = SumEncoder(size, clip=1.0, scale=scale, seed=seed)
    mean, votes = encoder.decode(encoder.encode(x, np.random.default_rng(0)), clients=1)
    assert votes is None
    assert mean.shape == (size,)
    assert np.linalg.norm(mean - clip_by_norm(x, 1.0)) <= math.sqrt(encoder.padded) / scale


@settings(deadline=None)
@given(encoders(noise=False), st.integers(1, 8))
def test_shapes_and_types(encoder: SumEncoder, clients: int) -> None:
    rng = np.random.default_rng(1)
    encoded = [encoder.encode(update(encoder.size, i, 2.0).astype(np.float32), rng) for i in range(clients)]
    assert {(vector.shape, vector.dtype) for vector in encoded} == {((encoder.count,), np.dtype(np.int64))}
    mean, votes = encoder.decode(np.sum(encoded, axis=0), clients)
    assert mean.shape == (encoder.size,)
    assert (votes is None) == (encoder.vote == 0)


def test_the_mean_of_many_clients_is_the_mean_of_their_clipped_updates() -> None:
    size, clients, scale = 2500, 60, 200.0
    encoder = SumEncoder(size, clip=1.0, scale=scale, seed=5, vote=9)
    rng = np.random.default_rng(2)
    lengths = rng.uniform(0.2, 2.0, clients)
    updates = [update(size, i, length) for i, length in enumerate(lengths)]
    mean, votes = encoder.decode(sum(encoder.encode(x, rng) for x in updates), clients)  # type: ignore[arg-type]
    error = mean - np.mean([clip_by_norm(x, 1.0) for x in updates], axis=0)
    rounding = math.sqrt(encoder.padded / 4 / clients) / scale  # of variance 1/4 at most in each coordinate
    assert 0.3 * rounding < np.linalg.norm(error) < 1.1 * rounding
    assert votes == np.sum(np.where(lengths <= 1.0, 1, -1))


def test_weights_make_a_weighted_mean() -> None:
    encoder = SumEncoder(700, clip=1.0, scale=1e5, seed=5, value_max=10**6)
    rng, weights = np.random.default_rng(3), [1, 5, 20]
    updates = [update(700, i, 0.9) for i in range(3)]
    total = np.sum([w * encoder.encode(x, rng) for w, x in zip(weights, updates, strict=True)], axis=0)
    mean, _ = encoder.decode(total, sum(weights))
    np.testing.assert_allclose(mean, np.average(updates, axis=0, weights=weights), atol=1e-4)


def standard_errors(draws: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return (draws.mean(axis=0) - expected) / (draws.std(axis=0, ddof=1) / math.sqrt(len(draws)))


@pytest.mark.parametrize("options", [{"value_max": 40}, {}, {"vote": 3}], ids=str)
def test_rounding_is_unbiased(options: dict[str, int]) -> None:
    """1,500 draws, coarse rounding, a clip that nothing comes near: each mean within five standard errors."""
    x = update(600, 0, 1.0)
    encoder = SumEncoder(600, clip=50.0, scale=12.0, seed=8, **options)
    rng = np.random.default_rng(4)
    draws = np.stack([encoder.decode(encoder.encode(x, rng), 1)[0] for _ in range(1500)])
    assert np.abs(standard_errors(draws, x)).max() < 5


@pytest.mark.parametrize("options", [{"value_max": 10**6}, {}], ids=str)
def test_what_travels_of_a_share_is_unbiased_over_seeds(options: dict[str, int]) -> None:
    """1,500 seeds, a quarter of the coordinates travels."""
    x = update(600, 1, 1.0)
    rng = np.random.default_rng(5)
    draws = []
    for seed in range(1500):
        encoder = SumEncoder(600, clip=50.0, scale=1e3, seed=seed, fraction=0.25, **options)
        draws.append(encoder.decode(encoder.encode(x, rng), 1)[0])
    assert np.abs(standard_errors(np.stack(draws), x)).max() < 5


def test_at_the_clip_a_share_loses_next_to_nothing_of_its_length() -> None:
    """`kept_clip` shortens few vectors, and those a little: along x, 99.8 % stays on average."""
    size = 4000
    x = update(size, 2, 1.0)
    rng = np.random.default_rng(6)
    along = []
    for seed in range(300):
        encoder = SumEncoder(size, clip=1.0, scale=1e4, seed=seed, fraction=0.25)
        assert encoder.kept_clip < 0.52
        along.append(encoder.decode(encoder.encode(x, rng), 1)[0] @ x)
    assert np.mean(along) == pytest.approx(1.0, abs=5 * np.std(along) / math.sqrt(len(along)) + 0.002)
    assert np.mean(along) > 0.99


class Contrary:
    """A generator whose draws are as low as can be: every value with a fraction is rounded up."""

    def random(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.zeros(shape)


def assert_within_bounds(encoder: SumEncoder, x: np.ndarray) -> int:
    """In whole numbers, for two ways of rounding. Gives the longer one's square."""
    squares = []
    for rng in (Contrary(), np.random.default_rng(7)):
        values = [int(v) for v in encoder.encode(x, rng)]  # type: ignore[arg-type]
        squares.append(sum(v * v for v in values))
        assert squares[-1] <= encoder.l2**2
        assert sum(map(abs, values)) <= encoder.l1
    return max(squares)


@settings(deadline=None, max_examples=150)
@given(encoders(noise=False), st.sampled_from([0.0, 1.0, 1e-9, 1.0000001, 1e30, 1e300]), seeds)
def test_case_40_no_encoded_vector_passes_its_bounds(encoder: SumEncoder, length: float, seed: int) -> None:
    assert_within_bounds(encoder, update(encoder.size, seed % 2**32, 1.0) * encoder.clip * length)


@pytest.mark.parametrize("fraction", [1.0, 0.25, 0.01])
@pytest.mark.parametrize("value_max", [0, 3])
@pytest.mark.parametrize("vote", [0, 40])
@pytest.mark.parametrize("above", [1e-9, 0.5])
def test_case_40_inputs_made_against_the_rotation(fraction: float, value_max: int, vote: int, above: float) -> None:
    """Knowing the seed: all the length in what travels, every coordinate just above a whole number."""
    encoder = SumEncoder(4096, 1.0, 1.0, seed=11, value_max=value_max, fraction=fraction, vote=vote)
    y = np.full(encoder.kept, 2 + above)
    worst = encoder._rotation.undo(y)
    sharp = replace(encoder, clip=float(np.linalg.norm(y)) * (1 + 1e-9))
    longest = assert_within_bounds(sharp, worst)
    if fraction == 1:
        assert longest - vote**2 >= encoder.kept * 4  # it did arrive there
    for factor in (0.5, 2.0, 1e6):
        assert_within_bounds(sharp, worst * factor)


@settings(deadline=None)
@given(encoders(noise=True), seeds)
def test_noise_is_the_tables_own_added_to_what_is_sent_without(encoder: SumEncoder, seed: int) -> None:
    x, key = update(encoder.size, 0, 1.0), seed.to_bytes(32, "little")
    plain = replace(encoder, noise=None).encode(x, np.random.default_rng(seed))
    noisy = encoder.encode(x, np.random.default_rng(seed), key)
    share = encoder.noise
    assert share is not None
    assert np.array_equal(noisy - plain, table(share.kind, share.parameter).sample(encoder.count, key))
    assert (encoder.l2, encoder.l1) == (replace(encoder, noise=None).l2, replace(encoder, noise=None).l1)


def test_noise_needs_its_key() -> None:
    encoder = SumEncoder(10, 1.0, 10.0, 0, noise=NoiseShare("skellam", "4"))
    with pytest.raises(ConfigError, match=r"noise_key is missing.*os\.urandom"):
        encoder.encode(np.ones(10), np.random.default_rng(0))
    with pytest.raises(ConfigError, match="32 bytes"):
        encoder.encode(np.ones(10), np.random.default_rng(0), b"short")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("options", [{}, {"value_max": 5, "vote": 3}])
def test_cases_24_and_25_an_update_that_is_not_finite_leaves_the_client_out(
    bad: float, options: dict[str, int]
) -> None:
    x = np.ones(100, np.float32)
    x[17] = bad
    with pytest.raises(NumericsError, match="leave this client out"):
        SumEncoder(100, 1.0, 10.0, 0, **options).encode(x, np.random.default_rng(0))


def test_an_update_of_the_largest_floats_is_clipped_and_votes_that_it_is_too_long() -> None:
    encoder = SumEncoder(100, 1.0, 1e4, 0, vote=2)
    mean, votes = encoder.decode(encoder.encode(np.full(100, 1e308), np.random.default_rng(0)), 1)
    assert np.linalg.norm(mean) == pytest.approx(1.0, abs=1e-3)
    assert votes == -1


def test_votes_steer_the_adaptive_clip() -> None:
    """Votes through noise and sum: the clip finds the median of the norms."""
    rng, clients = np.random.default_rng(8), 40
    norms = rng.lognormal(0.0, 0.5, clients)
    clip = AdaptiveClip(clip=8.0, rate=0.5)
    for round_number in range(30):
        encoder = SumEncoder(20, clip.clip, 10.0, round_number, vote=12, noise=NoiseShare("discrete_gaussian", "6"))
        total = np.sum([encoder.encode(update(20, i, norms[i]), rng, rng.bytes(32)) for i in range(clients)], axis=0)
        _, votes = encoder.decode(total, clients)
        assert votes is not None
        clip = clip.updated(votes, clients)
    assert 0.35 < np.mean(norms <= clip.clip) < 0.65


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"size": 0}, "size = 0"),
        ({"size": 2**31}, "size = 2147483648"),
        ({"size": 3.0}, r"size = 3\.0"),
        ({"seed": 2**64}, "seed"),
        ({"seed": -1}, "seed"),
        ({"clip": 0.0}, "clip"),
        ({"clip": math.nan}, "clip = nan"),
        ({"scale": math.inf}, "scale = inf"),
        ({"scale": 2.0**31}, "lower the scale"),
        ({"clip": 1e-300, "scale": 1e-300}, r"scale \* clip"),
        ({"fraction": 1.1}, "fraction"),
        ({"fraction": 0.0}, "fraction"),
        ({"value_max": -1}, "value_max"),
        ({"vote": True}, "vote = True"),
        ({"value_max": 7, "noise": NoiseShare("skellam", "3")}, "take value_max = 0"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        replace(SumEncoder(10, 1.0, 1.0, 0), **changes)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "parameter"),
    [
        ("rounded_gaussian", "3"),
        ("laplace", "3"),
        ("skellam", "x"),
        ("skellam", "-1"),
        ("skellam", "\N{FULLWIDTH DIGIT FOUR}"),
        ("skellam", ""),
    ],
)
def test_noise_shares_that_no_accountant_knows_are_refused(kind: str, parameter: str) -> None:
    with pytest.raises(ConfigError):
        NoiseShare(kind, parameter)


def test_other_shapes_are_refused() -> None:
    encoder = SumEncoder(10, 1.0, 1.0, 0)
    with pytest.raises(ConfigError, match=r"takes \(10,\)"):
        encoder.encode(np.ones((10, 1)), np.random.default_rng(0))
    with pytest.raises(ConfigError, match=r"makes \(512,\)"):
        encoder.decode(np.ones(10, np.int64), 1)
    for clients in (0, -1, math.nan, math.inf):
        with pytest.raises(ConfigError, match="clients"):
            encoder.decode(np.ones(512, np.int64), clients)


@settings(deadline=None)
@given(encoders())
def test_packed_bytes_say_the_encoder(encoder: SumEncoder) -> None:
    data = encoder.pack()
    assert len(data) <= 256
    assert SumEncoder.parse(data) == encoder
    assert er.secagg.Config(encoding=data).encoding == data
    for cut in range(len(data)):
        with pytest.raises(PeerError):
            SumEncoder.parse(data[:cut])
    with pytest.raises(PeerError):
        SumEncoder.parse(data + b"\0")


@settings(deadline=None, max_examples=300)
@given(encoders(), st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), min_size=1, max_size=8))
def test_altered_bytes_say_another_encoder_or_are_refused(encoder: SumEncoder, changes: list[tuple[int, int]]) -> None:
    """Only ever PeerError; and whatever is accepted is the one way to write it."""
    data = bytearray(encoder.pack())
    for place, byte in changes:
        data[place % len(data)] = byte
    try:
        parsed = SumEncoder.parse(bytes(data))
    except PeerError:
        pass
    else:
        assert parsed.pack() == bytes(data)
        assert (parsed == encoder) == (bytes(data) == encoder.pack())


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(PeerError):
        SumEncoder.parse(data)


@settings(deadline=None)
@given(encoders())
def test_counts(encoder: SumEncoder) -> None:
    assert encoder.padded == padded_size(encoder.size)
    assert 1 <= encoder.kept <= encoder.padded
    assert abs(encoder.kept - encoder.fraction * encoder.padded) <= 0.5 or encoder.kept == 1
    assert encoder.count == encoder.kept + (encoder.vote > 0)
