"""`hedgerow infer`: files and lines in, one answer a row, and one-line errors."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edge_runtime import deploy
from edge_runtime.cli import main

X = np.random.default_rng(0).standard_normal((5, 1, 2, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("model")
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 4))
    deploy.export(module, None, formats=("onnx", "tflite", "engine"), calibration=[X], out=out)
    np.save(out / "x.npy", X)
    np.savez(out / "xy.npz", x=X, y=np.zeros(5, np.int64))
    rows = np.concatenate([X.reshape(5, 6), np.zeros((5, 1))], 1)
    np.savetxt(out / "rows.csv", rows, delimiter=",")
    return out


@pytest.mark.parametrize("file", ["model_int8.onnx", "model_int8.tflite", "model_int8.hedgerow", "model_fp32.hedgerow"])
@pytest.mark.parametrize("data", ["x.npy", "xy.npz", "rows.csv"])
def test_every_format_answers_every_kind_of_data(
    folder: Path, file: str, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["infer", str(folder / file), str(folder / data)]) == 0
    said = capsys.readouterr()
    expected = deploy.Runner.open(folder / file).predict(X)
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert [line["class"] for line in lines] == expected.argmax(-1).tolist()
    assert ("accuracy" in said.err) == (data != "x.npy")


def test_lines_are_answered_as_they_come(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "\n".join(",".join(map(str, row)) for row in X.reshape(5, 6)) + "\n\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert main(["infer", str(folder / "model_int8.hedgerow"), "-", "--scores"]) == 0
    answers = [json.loads(line)["output"] for line in capsys.readouterr().out.splitlines()]
    np.testing.assert_allclose(answers, deploy.Runner.open(folder / "model_int8.hedgerow").predict(X), atol=1e-6)


def test_outputs_can_go_to_a_file(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "y.npy"
    assert main(["infer", str(folder / "model_fp32.onnx"), str(folder / "x.npy"), "--out", str(out)]) == 0
    assert np.load(out, allow_pickle=False).shape == (5, 4)


@pytest.mark.parametrize(
    ("line", "said"),
    [("1 2 3", "takes 6 finite numbers, got 3"), ("a b c d e f", "not a row of numbers"), ("nan " * 6, "finite")],
)
def test_bad_lines_are_named(
    folder: Path, line: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{line}\n"))
    assert main(["infer", str(folder / "model_int8.hedgerow"), "-"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_bad_data_and_changed_files_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 7), np.float32))
    assert main(["infer", str(folder / "model_int8.onnx"), str(tmp_path / "x.npy")]) == 2
    assert "rows have shape (7,), the model takes (1, 2, 3)" in capsys.readouterr().err
    (tmp_path / "bad.npy").write_bytes(b"no array")
    assert main(["infer", str(folder / "model_int8.onnx"), str(tmp_path / "bad.npy")]) == 2
    (tmp_path / "model.onnx").write_bytes(b"x")
    assert main(["infer", str(tmp_path / "model.onnx"), str(folder / "x.npy")]) == 3
    assert main(["infer", str(folder / "model_int8.onnx"), str(folder / "x.npy"), "--threads", "0"]) == 2


def test_bounds_and_signatures_are_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["infer", str(folder / "model_int8.hedgerow"), str(folder / "x.npy")]
    assert main([*line, "--max-memory", "8 MiB"]) == 0
    assert main([*line, "--max-memory", "64"]) == 3
    assert "64" in capsys.readouterr().err
    assert main([*line, "--root", "ab" * 32]) == 3
    assert "release-key.json" in capsys.readouterr().err
