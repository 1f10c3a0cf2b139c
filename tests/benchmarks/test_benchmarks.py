"""What holds of the benchmarks without measuring: names, arguments, skips, verdicts; and both sides do the same."""

from __future__ import annotations

import importlib
import json
import math
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem.removeprefix("bench_").replace("_", "-") for path in ROOT.glob("benchmarks/bench_*.py"))


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a file of benchmarks/ as its neighbours do."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


@pytest.mark.parametrize("text", ["README.md", "CONTRIBUTING.md", *sorted(map(str, ROOT.glob("docs/**/*.md")))])
def test_every_benchmark_that_the_texts_name_is_there(text: str) -> None:
    named = set(re.findall(r"hedgerow bench ([a-z-]+)", (ROOT / text).read_text()))
    assert named <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_explains_its_options(name: str) -> None:
    command = "import sys; from edge_runtime.cli import main; sys.exit(main())"
    line = [sys.executable, "-c", command, "bench", name, "--help"]
    shown = subprocess.run(line, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert shown.startswith("usage:")


def test_what_rivals_need_is_pinned() -> None:
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["bench"]
    assert len(pins) > 2
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)


def test_a_rival_that_is_not_installed_is_skipped_with_the_remedy(
    load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    processes = load("processes")
    monkeypatch.setenv("HEDGEROW_RIVALS", str(tmp_path))
    processes.why_missing.cache_clear()
    assert processes.why_missing("ort") == "skipped: onnxruntime-training (make rivals installs it)"
    assert processes.why_missing("executorch") == "skipped: executorch (make rivals installs it)"
    assert processes.why_missing("torch") == processes.why_missing("ours") == ""
    processes.why_missing.cache_clear()


def test_figures_are_kept_with_the_machine_in_general_terms(load: Any, tmp_path: Path) -> None:
    rows = [{"label": "a", "ratio": 1.5}, {"label": "b", "ratio": 2.0}]
    load("processes").save(tmp_path / "results" / "x.json", {"command": "hedgerow bench x"}, rows, ["holds"])
    kept = json.loads((tmp_path / "results" / "x.json").read_text())
    assert (kept["command"], kept["rows"], kept["bars"]) == ("hedgerow bench x", rows, ["holds"])
    assert re.fullmatch(r"\w+, \d+ cores, [\w, ]+", kept["machine"])


def test_a_failed_process_is_told_by_its_last_words(load: Any, tmp_path: Path) -> None:
    processes = load("processes")
    with pytest.raises(processes.StepError, match="cell"):
        processes.run_steps("time", "torch", tmp_path)


def test_our_step_and_pytorchs_start_from_the_same_loss(load: Any, tmp_path: Path) -> None:
    run_steps = load("processes").run_steps
    speed = load("bench_engine_speed")
    jobs = []
    for framework in ("ours", "torch"):
        job = speed.Job(framework, "lenet", 1)
        run_steps("prepare", framework, job.folder(tmp_path), job.model, job.batch)
        job.steps.append(run_steps("time", framework, job.folder(tmp_path)))
        jobs.append(job)
    assert list(speed.disagreeing(jobs)) == []
    assert jobs[0].loss == pytest.approx(2.275, abs=5e-4)


def job(speed: ModuleType, framework: str, loss: float, milliseconds: float = 1.0) -> Any:
    return speed.Job(framework, "lenet", 8, steps=[{"loss": loss, "cpu_s": milliseconds / 1e3}])


@pytest.mark.parametrize(("loss", "lines"), [(2.3472, 0), (2.3480, 1), (math.nan, 1)])
def test_first_losses_must_agree_to_three_decimals(load: Any, loss: float, lines: int) -> None:
    speed = load("bench_engine_speed")
    found = list(speed.disagreeing([job(speed, "ours", 2.3471), job(speed, "torch", 2.3471), job(speed, "ort", loss)]))
    assert len(found) == lines
    assert all("onnxruntime-training" in line for line in found)


def test_a_round_has_the_frameworks_of_a_cell_side_by_side(load: Any) -> None:
    speed = load("bench_engine_speed")
    options = speed.parse(["--models", "lenet", "mbv2", "--batches", "8", "32"])
    found = [(one.framework, one.model, one.batch, one.budget) for one in speed.planned(options, list(options.rivals))]
    assert found[:4] == [(name, "lenet", 8, "") for name in ("ours", "torch", "ort", "executorch")]
    assert found[-2:] == [("ours", "mbv2", 32, "40 MB"), ("ours", "mbv2", 32, "24 MB")]
    options = speed.parse(["--only", "executorch"])
    assert [one.framework for one in speed.planned(options, ["executorch"])] == ["ours", "executorch"] * 3
    assert speed.planned(options, []) == []


def test_a_part_can_run_without_a_rival(load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    speed = load("bench_engine_speed")
    options = speed.parse(["--models", "lenet", "--batches", "8"])
    bars = speed.print_steps([job(speed, "ours", 2.3, 0.5), job(speed, "torch", 2.3, 2.0)], options, ["torch"])
    assert [str(bar) for bar in bars] == [
        "times faster than torch, geomean of 1 cells >= 2: 4.00, holds",
        "times faster than torch, slowest of 1 cells (lenet, batch 8) >= 1: 4.00, holds",
    ]
    assert "nan" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("figure", "at_most", "verdict"),
    [(1.4, False, "MISSED"), (1.5, False, "holds"), (1.6, True, "MISSED"), (math.nan, False, "not measured")],
)
def test_a_bar_says_whether_it_holds(load: Any, figure: float, at_most: bool, verdict: str) -> None:
    bar = load("bars").Bar("times faster", figure, 1.5, at_most)
    assert str(bar).endswith(verdict)


def test_every_native_op_of_the_kernel_benchmark_does_what_pytorch_does(load: Any) -> None:
    kernels, cases = load("bench_kernels"), load("kernel_cases")
    different = [case.label for case in cases.all_cases(2) if not kernels.same(case)]
    assert different == []


def test_every_product_of_the_kernel_benchmark_is_numpys(load: Any) -> None:
    kernels = load("bench_kernels")
    for form in ("NN", "NT", "TN"):
        kernels.product(form, 7, 10, 13)  # raises ValueError where it is not


@pytest.mark.parametrize(("dtype", "zero_point"), [(np.int8, 0), (np.uint8, 128)])
def test_onnx_runtimes_integer_product_is_the_one_compared_with(load: Any, dtype: Any, zero_point: int) -> None:
    numbers = np.random.default_rng(0)
    a, b = (numbers.integers(-60, 60, size).astype(np.int8) for size in ((5, 17), (3, 17)))
    run, found = load("bench_kernels").matmul_integer((a.astype(np.int16) + zero_point).astype(dtype), b)
    run()
    np.testing.assert_array_equal(found(), a.astype(np.int32) @ b.T.astype(np.int32))


def test_rows_are_chosen_by_a_part_of_their_label(load: Any) -> None:
    wanted = load("bench_kernels").wanted
    assert wanted("conv2d depthwise 3x3 s1 (8,96,16,16)->96 dx", ["depthwise"])
    assert not wanted("gelu (512) forward", ["depthwise", "sgd"])
    assert wanted("gelu (512) forward", [])


def test_both_sides_of_the_secure_aggregation_benchmark_sum_exactly(load: Any) -> None:
    rounds = load("secagg_rounds")
    asked = rounds.Round(clients=8, values=500, neighbours=6, threshold=4, drops=2, floats=True)
    # A child whose sum is not the exact one ends with an error.
    ours, theirs = (rounds.play(side, asked) for side in ("ours", "flower"))
    assert all(one.client_s > 0 and one.server_s > 0 for one in (ours, theirs))
    assert ours.client_signatures_s > 0
    assert theirs.client_signatures_s == 0
    # 500 values at 8 bytes, and at two a word
    assert ours.upload_bytes > 2000
    assert theirs.upload_bytes > 4000
    with pytest.raises(load("processes").StepError, match="round failed"):
        rounds.play("ours", rounds.Round(clients=8, values=5, neighbours=0, threshold=7, drops=3))


def test_the_secure_aggregation_benchmark_tells_ratios_with_and_without_signatures(load: Any) -> None:
    rounds, secagg = load("secagg_rounds"), load("bench_secagg")
    ours = rounds.Figures(0.02, 0.04, 0.01, 0.02, upload_bytes=10, download_bytes=5)
    theirs = rounds.Figures(0.3, 4.0, 0.0, 0.0, upload_bytes=40, download_bytes=5)
    assert secagg.times_less(theirs, ours) == pytest.approx((15, 30, 100, 200, 4))
    rows = [secagg.Row("ours", asked, ours) for asked in secagg.BESIDE_FLOWER]
    bars = secagg.beside_flower_bars(secagg.Row("flower", secagg.BESIDE_FLOWER[0], theirs), rows)
    assert len(bars) == 9
    assert all(bar.holds for bar in bars)
    assert json.loads(json.dumps(rows[0].as_json()))["upload_bytes"] == 10


def test_clients_that_drop_are_spread_over_the_cohort(load: Any) -> None:
    dropped = load("secagg_rounds").Round(clients=100, values=1, neighbours=0, threshold=51, drops=10).dropped
    assert sorted(dropped) == list(range(0, 100, 10))
