"""`hedgerow export`: a finished run or a model by name becomes files that a device runs, made small enough if asked."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_runtime import plugins
from edge_runtime.cli import main
from edge_runtime.deploy.compress.distil import student
from edge_runtime.deploy.compress.finetune import Tuning, finetune
from edge_runtime.deploy.runner import Runner
from edge_runtime.train.config import DATASETS, DataConfig, ModelConfig
from edge_runtime.train.factory import make_module
from simulations.runner import simulate
from simulations.scenario import load_scenario

RUN = """data.clients=4 data.partition=iid data.holdout=0.25 seed=5 server.rounds=4 server.cohort=4 server.min_updates=2
server.workers=1 train.epochs=5 deploy.formats="""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "made"
    simulate(load_scenario("digits", [*RUN.split(), f"run.out={out}"]))
    return out


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A digits model trained on what seed 1 leaves to train on."""
    source = plugins.load(DATASETS, "digits")
    train = source.client_split(DataConfig(name="digits", clients=1, partition="iid"), 1, 0)
    model = student(make_module(ModelConfig(name="digits_cnn"), 0), train.x[:1])
    trained = finetune(model, train, Tuning(epochs=10, lr=3e-3), threads=1)
    path = tmp_path_factory.mktemp("weights") / "model.npz"
    np.savez(path, **trained.weights)
    return path


def test_a_run_is_exported_and_judged_on_its_own_held_out_data(run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["export", str(run), "--formats", "onnx,engine", "--max-drop", "2"]) == 0
    said = capsys.readouterr().out
    rows = {line.split()[0]: line for line in said.splitlines() if line.startswith("model_")}
    assert set(rows) == {f"model_{p}{s}" for p in ("fp32", "int8") for s in (".onnx", ".hedgerow")}
    config = load_scenario("digits", RUN.split())
    test = plugins.load(DATASETS, "digits").test_split(config.data, config.seed)
    assert f"{len(test):,} held-out examples" in said
    right = (Runner.open(run / "exported" / "model_int8.onnx").predict(test.x).argmax(1) == test.y).mean()
    assert f"{100 * right:.1f} %" in rows["model_int8.onnx"]


def test_a_target_size_is_kept_by_every_format(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    line = f"--weights {weights} --data digits --formats onnx,engine --target-size 5KB --max-drop 3 --out {tmp_path}"
    assert main(["export", "digits_cnn", *line.split()]) == 0
    said = capsys.readouterr().out
    assert re.search(r"chosen: \d-bit weights", said)
    for name in ("model_int8.onnx", "model_int8.hedgerow"):
        assert 0 < (tmp_path / name).stat().st_size <= 5000
    assert not list(tmp_path.glob("model_fp32*"))


def test_what_lost_too_much_is_an_error(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    line = f"--weights {weights} --data digits --formats engine --weight-bits 2 --max-drop 0 --out {tmp_path}"
    assert main(["export", "digits_cnn", *line.split()]) == 3
    said = capsys.readouterr().out
    assert re.search(r"model_int8\.hedgerow .* not released: it loses [\d.]+ points", said)
    assert [path.name for path in tmp_path.glob("model*")] == ["model_fp32.hedgerow"]


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("digits_cnn", 2, "--weights and --data are needed"),
        ("digits_cnn --weights WEIGHTS --data digitz", 2, "digitz"),
        ("digits_cnn --weights /nowhere.npz --data digits", 2, "no such file"),
        ("lenet --weights WEIGHTS --data mnist", 2, "state_dict has no"),
        ("digits_cnn --weights WEIGHTS --data digits --formats coreml", 2, "must be some of onnx, tflite, engine"),
        (
            "digits_cnn --weights WEIGHTS --data digits --formats engine --target-size 100",
            3,
            "no model fits in 100 bytes",
        ),
    ],
)
def test_errors_are_one_line(line: str, code: int, said: str, weights: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["export", *line.replace("WEIGHTS", str(weights)).split()]) == code
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_naming_the_command_loads_no_torch():
    program = """
import sys
from edge_runtime.cli import main
try:
    main(["export", "--help"])
except SystemExit:
    pass
assert "torch" not in sys.modules and "onnx" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_mixed_widths_are_measured_layer_by_layer(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"--weights {weights} --data digits --weight-bits {{}} --max-drop 3 --out {tmp_path}"
    sizes = {}
    for bits in ("8", "mixed"):
        assert main(["export", "digits_cnn", *line.format(bits).split()]) == 0
        sizes[bits] = (tmp_path / "model_int8.onnx").stat().st_size
    said = capsys.readouterr().out
    assert re.search(r"hidden\.weight +5376 .*\*", said), "the largest layer is narrowed"
    assert sizes["mixed"] < 0.8 * sizes["8"]
    assert main(["export", "digits_cnn", *line.format("some").split()]) == 2
    assert "must be 2 to 8, or mixed" in capsys.readouterr().err
