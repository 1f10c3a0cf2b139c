"""The gate: what is faithful and accurate passes with figures; all else is refused, and says why."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from edge_runtime.deploy import parity
from edge_runtime.deploy.exporter import Prepared, prepare
from edge_runtime.deploy.graph.evaluate import predict
from edge_runtime.deploy.graph.rounding import predict_rounded


@pytest.fixture(scope="module")
def x() -> NDArray[np.float32]:
    return np.random.default_rng(3).standard_normal((200, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def prepared(x: NDArray[np.float32]) -> Prepared:
    torch.manual_seed(3)
    return prepare(nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 4)), None, [x])


@pytest.fixture
def expected(prepared: Prepared, x: NDArray[np.float32]) -> parity.Expected:
    assert prepared.quantised is not None
    defined = {"fp32": predict(prepared.float_model, x), "int8": predict_rounded(prepared.quantised, x)}
    return parity.Expected(x, defined["fp32"].argmax(-1), defined["fp32"], defined, 5.0)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(("name", "file"), [("onnx", "m.onnx"), ("tflite", "m.tflite"), ("engine", "m.hedgerow")])
def test_good_files_pass_with_all_figures(
    prepared: Prepared, expected: parity.Expected, name: str, file: str, precision: str
) -> None:
    content = prepared.contents(name)[precision]
    row = parity.measured(file, name, precision, content, expected)
    assert row.refused is None
    assert row.nbytes == len(content)
    assert all(getattr(row, field.name) is not None for field in dataclasses.fields(row) if field.name != "refused")
    assert row.accuracy is not None
    assert row.accuracy >= (1.0 if precision == "fp32" else 0.9)
    assert row.peak_rss_bytes is not None
    assert 10e6 < row.peak_rss_bytes < 200e6


def test_another_models_file_is_refused(prepared: Prepared, expected: parity.Expected, x: NDArray[np.float32]) -> None:
    torch.manual_seed(4)
    other = prepare(nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 4)), None, [x])
    row = parity.measured("m.hedgerow", "engine", "int8", other.contents("engine")["int8"], expected)
    assert row.refused is not None
    assert "differ from what its graph defines" in row.refused


def test_a_file_that_loses_too_much_is_refused(prepared: Prepared, expected: parity.Expected) -> None:
    """Two bits a weight: the file is faithful to its graph, and the graph is bad."""
    assert prepared.quantised is not None
    coarse = prepare(prepared.float_model, None, [expected.x], weight_bits=2)
    assert coarse.quantised is not None
    defined = {**expected.defined, "int8": predict_rounded(coarse.quantised, expected.x)}
    judged = dataclasses.replace(expected, defined=defined, max_drop=1.0)
    row = parity.measured("m.onnx", "onnx", "int8", coarse.contents("onnx")["int8"], judged)
    assert row.refused is not None
    assert "points of accuracy, 1 are allowed" in row.refused
    assert row.latency_us, "its figures are told all the same"


def test_a_damaged_file_is_refused_with_its_error(prepared: Prepared, expected: parity.Expected) -> None:
    content = prepared.contents("engine")["fp32"][:-40]
    row = parity.measured("m.hedgerow", "engine", "fp32", content, expected)
    assert row.refused
    assert row.accuracy is None


@pytest.mark.parametrize("missing", ["difference", "unfaithfulness", "latency_us", "peak_rss_bytes"])
def test_a_file_without_a_figure_is_not_released(expected: parity.Expected, missing: str) -> None:
    whole = parity.Figures("m.onnx", "onnx", "int8", 1, 1.0, 1.0, 0.1, 0.001, 9.0, 1 << 26)
    assert parity.why_not(whole, expected) is None
    assert parity.why_not(dataclasses.replace(whole, **{missing: None}), expected) == "it was not measured"
    assert parity.why_not(dataclasses.replace(whole, difference=np.nan), expected) == "its answers are not finite"


def test_the_table_has_a_line_for_each_file() -> None:
    rows = [
        parity.Figures("a.onnx", "onnx", "fp32", 1234, 0.97, 1.0, 0.0, 0.0, 40.0, 50_000_000),
        parity.Figures("b.tflite", "tflite", "int8", 800, refused="it loses too much"),
    ]
    lines = parity.table(rows).splitlines()
    assert lines[1].split() == ["a.onnx", "1.2", "97.0", "%", "1.000", "40", "us", "50", "MB"]
    assert lines[2].endswith("not released: it loses too much")


def test_golden_inputs_are_drawn_and_lie_in_the_range_that_was_seen(prepared: Prepared) -> None:
    drawn = prepared.golden_inputs()
    low, high = prepared.input_range
    assert drawn.shape == (4, 6)
    assert low <= drawn.min() <= drawn.max() <= high
    np.testing.assert_array_equal(drawn, prepared.golden_inputs())
