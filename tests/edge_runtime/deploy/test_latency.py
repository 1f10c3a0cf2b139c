"""A file is measured in a process of its own, or there is no figure."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from edge_runtime.deploy.formats.onnx import write_onnx
from edge_runtime.deploy.graph.float_model import FloatModel, checked
from edge_runtime.deploy.latency import cost_of
from edge_runtime.deploy.trust.trial import peak_rss_bytes
from edge_runtime.errors import ArtefactError
from edge_runtime.ir.builder import Builder

WIDTH = 256
ROW = np.ones((1, WIDTH), np.float32)


def deep(layers: int) -> bytes:
    """So many linear layers, one behind the other."""
    builder = Builder(batch=997)
    w = builder.state("w", (WIDTH, WIDTH))
    x = builder.input("x", (997, WIDTH))
    for _ in range(layers):
        x = builder.emit("linear", x, w)
    weights = {"w": np.eye(WIDTH, dtype=np.float32)}
    return write_onnx(checked(FloatModel(builder.finish([x]), weights, 997)))


def test_a_model_of_more_layers_costs_more() -> None:
    few, many = cost_of(deep(1), ".onnx", ROW), cost_of(deep(60), ".onnx", ROW)
    assert 0 < 2 * few.latency_us < many.latency_us < 1e6


def test_memory_is_that_of_the_process_and_not_of_the_one_that_started_it() -> None:
    ours = np.ones(50_000_000)
    cost = cost_of(deep(1), ".onnx", ROW)
    assert 10e6 < cost.peak_rss_bytes < 150e6 < ours.nbytes


def test_memory_that_was_given_back_counts() -> None:
    before = peak_rss_bytes()
    taken = before + 20_000_000
    np.ones(taken // 8)
    assert peak_rss_bytes() > taken


def test_a_model_that_does_not_load_has_no_figure() -> None:
    with pytest.raises(ArtefactError, match=r"a \.onnx model was not measured: .*ArtefactError") as caught:
        cost_of(b"no model", ".onnx", ROW)
    assert "\n" not in str(caught.value)


def test_a_model_that_cannot_take_the_row_has_no_figure() -> None:
    with pytest.raises(ArtefactError, match="was not measured: ValueError"):
        cost_of(deep(1), ".onnx", ROW[:, 1:])


def test_a_measurement_ends_in_time() -> None:
    with pytest.raises(ArtefactError, match=r"no answer within 0\.01 s"):
        cost_of(deep(1), ".onnx", ROW, wall_s=0.01)


def test_the_process_needs_the_devices_half_alone() -> None:
    lines = [
        "import sys, edge_runtime.deploy.latency, edge_runtime.deploy.runner",
        "assert not {'torch', 'onnx', 'flatbuffers', 'flwr'} & set(sys.modules)",
    ]
    subprocess.run([sys.executable, "-I", "-c", "\n".join(lines)], check=True)
