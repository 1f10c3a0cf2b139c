"""The gate lets a faithful file through with all its figures, and names what is wrong with any other."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_runtime.deploy import parity
from edge_runtime.deploy.formats.onnx import write_onnx
from edge_runtime.deploy.graph.calibrate import calibrate
from edge_runtime.deploy.graph.evaluate import predict
from edge_runtime.deploy.graph.float_model import FloatModel, checked
from edge_runtime.deploy.graph.quantise import quantise
from edge_runtime.deploy.graph.quantised import QuantisedModel
from edge_runtime.deploy.graph.rounding import predict_rounded
from edge_runtime.ir.builder import Builder

RNG = np.random.default_rng(0)
X: NDArray[np.float32] = RNG.normal(size=(200, 12)).astype(np.float32)


def perceptron(seed: int = 1) -> FloatModel:
    builder, rng = Builder(batch=997), np.random.default_rng(seed)
    x = builder.input("x", (997, 12))
    weights = {"a": (16, 12), "b": (4, 16)}
    names = {name: builder.state(name, shape) for name, shape in weights.items()}
    hidden = builder.emit("relu", builder.emit("linear", x, names["a"]))
    graph = builder.finish([builder.emit("linear", hidden, names["b"])])
    return checked(FloatModel(graph, {n: rng.normal(size=s).astype(np.float32) for n, s in weights.items()}, 997))


def quantised(model: FloatModel, bits: int = 8) -> QuantisedModel:
    return quantise(model, calibrate(model, [X]), weight_bits=bits)


MODEL = perceptron()
EIGHT = quantised(MODEL)
EXPECTED = parity.Expected(
    x=X,
    y=predict(MODEL, X).argmax(1),
    float32=predict(MODEL, X),
    defined={"fp32": predict(MODEL, X), "int8": predict_rounded(EIGHT, X)},
    golden=X[:4],
    max_drop=2.0,
)


@pytest.mark.parametrize(("precision", "model"), [("fp32", MODEL), ("int8", EIGHT)])
def test_a_faithful_file_is_released_with_all_figures(precision: str, model: FloatModel | QuantisedModel) -> None:
    content = write_onnx(model)
    figures = parity.measured("model.onnx", "onnx", precision, content, EXPECTED)
    assert figures.refused is None
    assert figures.nbytes == len(content)
    assert all(one is not None for name, one in dataclasses.asdict(figures).items() if name != "refused")
    assert figures.accuracy is not None
    assert figures.accuracy > (0.999 if precision == "fp32" else 0.97)
    assert figures.agreement == figures.accuracy, "the classes are the float32 model's"


def refused(content: bytes, expected: parity.Expected = EXPECTED, precision: str = "int8") -> parity.Figures:
    figures = parity.measured("model.onnx", "onnx", precision, content, expected)
    assert figures.refused is not None
    assert "\n" not in figures.refused
    return figures


def test_a_file_of_other_weights_is_refused() -> None:
    figures = refused(write_onnx(quantised(perceptron(2))))
    assert figures.refused is not None
    assert "differ from what its graph defines" in figures.refused


def test_a_file_that_loses_too_much_accuracy_is_refused_although_it_is_faithful() -> None:
    two = quantised(MODEL, 2)
    expected = dataclasses.replace(EXPECTED, defined={"int8": predict_rounded(two, X)})
    figures = refused(write_onnx(two), expected)
    assert figures.accuracy is not None
    assert figures.refused == f"it loses {100 * (1 - figures.accuracy):.1f} points of accuracy, 2 are allowed"
    expected = dataclasses.replace(expected, max_drop=100.0)
    assert parity.measured("model.onnx", "onnx", "int8", write_onnx(two), expected).refused is None


def test_a_file_that_answers_nan_is_refused() -> None:
    spoiled = MODEL.with_weights({"b": np.full((4, 16), np.nan, np.float32)})
    assert "NaN" in str(refused(write_onnx(spoiled), precision="fp32").refused)


@pytest.mark.parametrize("content", [b"", b"no model", write_onnx(MODEL)[:-40]])
def test_what_does_not_run_has_no_figures(content: bytes) -> None:
    figures = refused(content)
    assert (figures.accuracy, figures.difference, figures.latency_us, figures.peak_rss_bytes) == (None,) * 4


@pytest.mark.parametrize("missing", ["difference", "unfaithfulness", "latency_us", "peak_rss_bytes"])
def test_a_file_without_a_figure_is_not_released(missing: str) -> None:
    whole = parity.Figures("m.onnx", "onnx", "int8", 1, 1.0, 1.0, 0.1, 0.001, 9.0, 1 << 26)
    assert parity.why_not(whole, EXPECTED) is None
    assert "not measured" in str(parity.why_not(dataclasses.replace(whole, **{missing: None}), EXPECTED))


def test_the_table_has_a_line_for_each_file() -> None:
    rows = [
        parity.Figures("model_fp32.onnx", "onnx", "fp32", 247_570, 0.97, 1.0, 0.0, 0.0, 28.9, 56_000_000),
        parity.Figures("model_int8.onnx", "onnx", "int8", 66_817, refused="it does not run"),
    ]
    head, first, second = parity.table(rows).splitlines()
    assert head.split() == ["file", "KB", "accuracy", "agreement", "latency", "RSS"]
    assert first.split() == ["model_fp32.onnx", "247.6", "97.0", "%", "1.000", "29", "us", "56", "MB"]
    assert second.endswith("not released: it does not run")
