"""The inference benchmark's own machinery: children answer alike, wrong answers and missing rivals are told."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("bench_inference")


def test_the_engine_and_litert_answer_alike_and_are_timed(bench: ModuleType, tmp_path: Path) -> None:
    options = bench.parse(["--runtimes", "engine", "litert", "--rounds", "1", "--seconds", "0.001"])
    jobs = bench.measure("mlp", options, tmp_path)
    assert [(job.runtime, job.precision) for job in jobs] == [
        ("engine", "int8"), ("engine", "fp32"), ("litert", "int8"), ("litert", "fp32"),
    ]  # fmt: skip
    assert not any(job.failure for job in jobs)
    assert bench.disagreeing(jobs) == []
    assert all(job.microseconds > 0 and job.about["rss_mb"] > 10 for job in jobs)
    assert bench.ratio(jobs) > 0
    assert len(bench.bars_of("mlp", jobs)) == 1

    jobs[0].about["output"] = jobs[0].about["output"][::-1]
    assert len(bench.disagreeing(jobs)) == 1


def test_a_rival_that_is_not_there_is_skipped(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEDGEROW_RIVALS_TFLITE", str(tmp_path / "none"))
    job = bench.Job("tflite", "int8", "mlp", tmp_path / "int8.tflite")
    assert bench.started(job, tmp_path / "x.npy") is None
    bench.print_table("mlp", [job])
    assert "skipped: not installed (make rivals-tflite)" in capsys.readouterr().out
    assert math.isnan(bench.ratio([job]))
