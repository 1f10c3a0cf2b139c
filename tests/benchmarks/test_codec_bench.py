"""The codec benchmark's own parts: recordings repeat, curves are read right, each side codes what it was given."""

from __future__ import annotations

import importlib
import json
import math
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edge_runtime as er
from edge_runtime.train.config import UplinkConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a file of benchmarks/ as its neighbours do."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def same(a: Any, b: Any) -> bool:
    return list(a) == list(b) and all(np.array_equal(a[name], b[name]) for name in a)


def test_a_second_recording_has_the_same_bits(load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recordings = load("recordings")
    monkeypatch.setattr(recordings, "IMAGES", 300)
    tiny = [recordings.Federation("cnn", "images", (1, 2))]
    first = recordings.recordings("tuning", tmp_path / "a", tiny)
    again = recordings.recordings("tuning", tmp_path / "b", tiny)
    assert [one.name for one in first] == tiny[0].names()
    assert all(
        same(one.update, other.update) and same(one.weights, other.weights)
        for one, other in zip(first, again, strict=True)
    )
    assert first[0].parameters == 52_138
    module = recordings.make_module("cnn")
    assert {name: one.shape for name, one in first[0].update.items()} == {
        name: tuple(one.shape) for name, one in module.state_dict().items()
    }
    assert list(first[0].update) == list(module.state_dict())
    # Three clients from one model, then from another: nothing is recorded twice.
    assert same(first[0].weights, first[2].weights)
    assert not same(first[0].weights, first[3].weights)
    assert len({one.update["0.weight"].tobytes() for one in first}) == len(first)


def test_recordings_are_read_where_they_are_and_made_anew_where_the_settings_differ(
    load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recordings = load("recordings")
    monkeypatch.setattr(recordings, "IMAGES", 300)
    kept = recordings.recordings("tuning", tmp_path, [recordings.Federation("mlp", "images", (1,))])
    monkeypatch.setattr(recordings, "record", lambda *_: pytest.fail("recorded again"))
    read = recordings.recordings("tuning", tmp_path, [recordings.Federation("mlp", "images", (1,))])
    assert all(same(one.update, other.update) for one, other in zip(kept, read, strict=True))
    with pytest.raises(pytest.fail.Exception, match="recorded again"):
        recordings.recordings("tuning", tmp_path, [recordings.Federation("mlp", "images", (1,), epochs=2)])


def test_what_is_tuned_on_and_what_is_reported_share_no_example(load: Any) -> None:
    recordings = load("recordings")
    texts = [np.concatenate([one.x for one in recordings.text_clients(split, 3)]) for split in ("tuning", "reporting")]
    assert not {row.tobytes() for row in texts[0]} & {row.tobytes() for row in texts[1]}


# NMSE = c b^-p is a straight line in logarithms.
@given(
    st.floats(0.01, 10), st.floats(0.1, 4), st.lists(st.floats(0.01, 8), min_size=2, max_size=9, unique=True), st.data()
)
def test_interpolation_is_exact_on_a_power_law(c: float, p: float, rates: list[float], data: Any) -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        interpolate = importlib.import_module("nncodec_sweep").interpolate
    finally:
        sys.path.pop(0)
    curve = [(rate, c * rate**-p) for rate in rates]
    inside = data.draw(st.floats(min(rates), max(rates)))
    assert interpolate(curve, inside) == pytest.approx(c * inside**-p, rel=1e-6)
    assert interpolate(curve, 0.99 * min(rates)) == pytest.approx(c * min(rates) ** -p, rel=1e-6)
    assert interpolate(curve, 1.01 * max(rates)) == math.inf


def test_the_lower_envelope_takes_the_best_setting_at_each_rate(load: Any) -> None:
    sweep = load("nncodec_sweep")
    plain, dependent = sweep.Setting(False, 0.0), sweep.Setting(True, 1.0)
    curves = [
        sweep.Curve(plain, (sweep.Point(-10, 0.1, 0.4), sweep.Point(-20, 1.0, 0.2))),
        sweep.Curve(dependent, (sweep.Point(-30, 0.1, 0.8), sweep.Point(-40, 1.0, 0.1))),
    ]
    low, high = (sweep.lower_envelope(curves, bits) for bits in (0.12, 0.9))
    assert (low.setting, low.qp) == (plain, -10)
    assert (high.setting, high.qp) == (dependent, -40)
    assert low.nmse < 0.4
    assert high.nmse < 0.2
    assert sweep.lower_envelope(curves, 2.0).nmse == math.inf
    stored = json.loads(json.dumps([curve.as_json() for curve in curves]))
    assert [sweep.Curve.from_json(curve) for curve in stored] == curves


def test_a_walk_covers_the_rates_and_narrows_wide_gaps(load: Any, tmp_path: Path) -> None:
    sweep, jobs = load("nncodec_sweep"), load("codec_jobs")

    class Smooth:
        def run(self, update: Path, qp: int, **_: Any) -> Any:
            bits = 2.0 ** (-qp / sweep.OCTAVE - 8)
            return jobs.Coded(bits, 1 / (1 + bits), 1.0, 1.0)

    np.savez(tmp_path / "x.npz", a=np.full(100, 0.01, np.float32))
    (curve,) = sweep.curves(Smooth(), tmp_path / "x.npz", [sweep.Setting(True, 1.0)])
    rates = [point.bits for point in curve.points]
    assert rates[0] < sweep.FEWEST
    assert rates[-1] >= sweep.MOST
    assert all(there <= sweep.WIDEST * here for here, there in pairwise(rates))


def test_nncodec_that_is_not_built_is_skipped_with_the_remedy(
    load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HEDGEROW_NNCODEC", str(tmp_path))
    assert load("nncodec_sweep").why_missing() == "skipped: nncodec (make rivals-nncodec builds it)"


def test_nncodecs_curves_are_read_where_they_are_kept(load: Any, tmp_path: Path) -> None:
    bench, sweep = load("bench_codecs"), load("nncodec_sweep")
    curve = sweep.Curve(sweep.Setting(True, 1.0), (sweep.Point(-10, 0.1, 0.5), sweep.Point(-20, 1.0, 0.05)))
    kept = tmp_path / "curves.json"
    kept.write_text(json.dumps({"mlp-r01-c0": [curve.as_json()], "mlp-r01-c1": []}))
    assert bench.sweep([Path("mlp-r01-c0.npz")], kept) == {"mlp-r01-c0": [curve]}


def test_a_row_says_how_far_from_nncodec_and_is_silent_outside_its_curves(load: Any) -> None:
    bench, sweep, jobs = load("bench_codecs"), load("nncodec_sweep"), load("codec_jobs")
    ours, setting = jobs.Coded(0.25, 0.3, 100.0, 200.0), sweep.Setting(True, 2.0)
    row = bench.Row("big-cnn-r03-c0", "context 0.25", ours, sweep.Best(0.25, 0.4, setting, -100))
    assert row.family == "big-cnn"
    assert row.over_rival == pytest.approx(0.75)
    assert row.as_json()["nncodec_setting"] == "DQ lambda 2"
    ideal = bench.Row("cnn-r01-c0", "ideal", jobs.Coded(0.25, 0.3, math.nan, math.nan))
    assert ideal.as_json() == {"recording": "cnn-r01-c0", "codec": "ideal", "bits": 0.25, "nmse": 0.3}
    for rival in (None, sweep.Best(0.25, math.inf, setting, -100)):
        assert math.isnan(bench.Row("cnn-r01-c0", "context 0.25", ours, rival).over_rival)
    assert bench.at_most("x", math.nan, 1.0).endswith("MISSED")


def test_a_child_codes_with_our_codecs_and_counts_the_whole_payload(load: Any, tmp_path: Path) -> None:
    jobs = load("codec_jobs")
    update = {"w": np.random.default_rng(0).normal(size=(50, 20)).astype(np.float32), "b": np.zeros(3, np.float32)}
    np.savez(tmp_path / "x.npz", **update)
    with jobs.Coder(sys.executable, "codec_child.py") as coder:
        exact = coder.run(tmp_path / "x.npz", codec="float32", options={})
        half = coder.run(tmp_path / "x.npz", repeats=2, codec="float16", options={})
        with pytest.raises(RuntimeError, match=r"x\.npz.*nonsense"):
            coder.run(tmp_path / "x.npz", codec="nonsense", options={})
    assert exact.bits == 8 * len(er.updates.make_codec("float32").encode(update)) / 1003
    assert exact.nmse == 0
    assert 0 < half.nmse < 2**-20
    assert min(exact.encode_mb_s, exact.decode_mb_s) > 0


def test_the_plain_quantizer_meets_its_rate_and_known_errors(load: Any) -> None:
    # Entropy-coded scalar quantisation of a Gaussian comes within 1.53 dB of the bound 2^(-2b), and never below it.
    values = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    for target in (0.1, 0.25, 0.5, 1.0):
        bits, nmse = load("plain_quantizer").plain_quantizer(values, target)
        assert bits == pytest.approx(target, rel=2e-3)
        assert bits <= target
        assert 1.0 < nmse / 4**-bits < math.pi * math.e / 6


def test_the_adaptive_code_length_is_that_of_coding_one_symbol_after_another(load: Any) -> None:
    symbols = np.random.default_rng(1).integers(0, 4, 300) ** 2 // 3
    kinds = np.unique(symbols)
    bits, seen = 0.0, dict.fromkeys(kinds.tolist(), 0)
    for at, symbol in enumerate(symbols.tolist()):
        bits -= math.log2((seen[symbol] + 0.5) / (at + len(kinds) / 2))
        seen[symbol] += 1
    counts = np.array(list(seen.values()))
    assert load("plain_quantizer").adaptive_code_length(counts) == pytest.approx(bits)


def test_a_federation_with_exact_payloads_feeds_nothing_back_and_counts_its_bytes(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracy, recordings = load("codec_accuracy"), load("recordings")
    monkeypatch.setattr(recordings, "IMAGES", 1200)
    monkeypatch.setattr(accuracy, "AT", {1: 1, 2: 1})
    monkeypatch.setattr(accuracy, "ROUNDS", 2)
    monkeypatch.setattr(accuracy, "MEASURED", frozenset({1, 2}))
    task = accuracy.Task(1)
    every = {"codec": ("topk",), "fraction": 1.0}  # exact, and not among the unbiased codecs that have no feedback
    raw, exact, fed_back, half = (
        accuracy.federate(task, accuracy.Sender("x", UplinkConfig(**options)))
        for options in ({}, every, every | {"error_feedback": True}, {"codec": ("float16",), "error_feedback": True})
    )
    assert exact == fed_back
    assert exact.accuracy == raw.accuracy
    assert raw.bits == pytest.approx(32, abs=0.01)
    assert half.bits == pytest.approx(16, abs=0.01)
    assert raw.at(2) > 0.3
    runs = {"float32": [raw], "worse": [accuracy.Run(1, 1, {1: 0.1, 2: raw.at(2) - 0.02})]}
    assert accuracy.lost(runs, "worse") == pytest.approx(2.0)


def test_pictures_are_drawn(load: Any, tmp_path: Path) -> None:
    pictures = load("codec_pictures")
    line = pictures.Line("ours", [(0.1, 0.5), (1.0, 0.05)])
    pictures.draw_nmse({"a": [line], "b": [line, pictures.Line("none", [])], "c": [line]}, tmp_path / "a.png")
    pictures.draw_accuracy([pictures.Dot("ours", 0.2, 0.77, 0.76, 0.78)], 25, tmp_path / "b.png")
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("a.png", "b.png"))


def test_the_claims_on_accuracy_are_judged_against_float32_of_the_same_seed(load: Any) -> None:
    accuracy = load("codec_accuracy")

    def run(at_end: float) -> Any:
        return accuracy.Run(1, 1, dict.fromkeys(range(1, accuracy.ROUNDS + 1), at_end))

    ends = {"float32": (0.80, 0.70), "context 0.1": (0.79, 0.68), "context 0.1, feedback": (0.78, 0.68)}
    ends |= {"top 1 %, fp16": (0.70, 0.60), "STC 1 %": (0.80, 0.70), "STC 1 %, feedback": (0.785, 0.68)}
    lines = accuracy.verdicts({label: [run(end) for end in own] for label, own in ends.items()})
    assert [line.rsplit(" ", 2)[1:] for line in lines[:4]] == [
        ["1.50,", "holds"], ["8.50,", "holds"], ["-1.50,", "MISSED"], ["0.25,", "holds"],
    ]  # fmt: skip
    assert [line.endswith("MISSED") for line in lines[4:]] == [True, False, True, True]
