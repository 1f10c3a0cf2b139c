"""The LiteRT backend: what it takes and gives, what it refuses, and how it sees that a runtime does not run."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from edge_runtime.deploy.formats.tflite import write_tflite
from edge_runtime.deploy.formats.tflite.file import TfliteFile
from edge_runtime.deploy.graph.float_model import FloatModel
from edge_runtime.deploy.graph.quantised import Quant, QuantisedModel
from edge_runtime.deploy.run import litert
from edge_runtime.deploy.runner import Runner
from edge_runtime.errors import ArtefactError, EdgeRuntimeError, MissingPackageError
from edge_runtime.ir.graph import Graph, Node, Value

BATCH = 997


def relu(quants=None, dtype="f32"):
    values = {name: Value(name, (BATCH, 5), dtype) for name in "xy"}
    model = FloatModel(Graph(values, ("x",), (), (Node("relu", ("x",), ("y",)),), ("y",)), {}, BATCH)
    return write_tflite(QuantisedModel(model, quants or {}), batch=0)


def grid(scale, zero):
    return Quant(np.array([scale], np.float32), np.array([zero], np.int32))


def test_floats_go_in_and_come_out_of_an_integer_file():
    """Rounded half to even and saturated, as `Quant` does; NumPy is the oracle."""
    x_grid, y_grid = grid(0.1, 3), grid(0.05, -128)
    runner = Runner.of(relu({"x": x_grid, "y": y_grid}), ".tflite")
    assert runner.input.dtype == runner.output.dtype == "f32"
    x = np.concatenate([np.linspace(-14, 14, 101, dtype=np.float32), np.float32([0.05, 0.15, 0.25, -0.05])])
    x = x.reshape(-1, 5)
    expected = y_grid.round(np.maximum(x_grid.round(x), 0))
    assert abs(runner.predict(x) - expected).max() <= 0.05 * 1.01


def test_answers_do_not_change_with_the_next_call():
    runner = Runner.of(relu(), ".tflite")
    first = runner.predict(np.ones((2, 5), np.float32))
    kept = first.copy()
    runner.predict(np.full((2, 5), 7, np.float32))
    np.testing.assert_array_equal(first, kept)


def test_a_token_outside_its_table_is_told():
    values = {"x": Value("x", (BATCH, 2), "i64"), "y": Value("y", (BATCH, 2, 3)), "w": Value("w", (4, 3))}
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    nodes = (Node("embedding", ("w", "x"), ("y",)),)
    model = FloatModel(Graph(values, ("x",), ("w",), nodes, ("y",)), {"w": table}, BATCH)
    runner = Runner.of(write_tflite(model), ".tflite")
    np.testing.assert_array_equal(runner.predict(np.array([[3, 0]])), [table[[3, 0]]])
    for token in (4, -1, 2**40):
        with pytest.raises(EdgeRuntimeError, match="LiteRT stopped"):
            runner.predict(np.array([[0, token]]))
    np.testing.assert_array_equal(runner.predict(np.array([[1, 2]])), [table[[1, 2]]])


def test_a_file_that_is_none():
    for data in (b"", b"not a model", relu()[:100]):
        with pytest.raises(ArtefactError, match="LiteRT refuses the model"):
            Runner.of(data, ".tflite")


def test_the_probe_is_what_the_writer_writes():
    file = TfliteFile()
    assert file.finish([one := file.tensor((1,))], [one]) == litert.PROBE


def test_a_runtime_that_is_not_there_or_does_not_run():
    """In a process of its own, in which the packages are hidden, or cannot build an interpreter."""
    script = """
import sys, types
from edge_runtime.deploy.run.litert import LiteRtBackend
from edge_runtime.errors import MissingPackageError

def message():
    try:
        LiteRtBackend(b"")
    except MissingPackageError as error:
        return str(error)

sys.modules["ai_edge_litert"] = sys.modules["tflite_runtime"] = None
assert "hedgerow[litert]" in message()

class Interpreter:
    def __init__(self, **_):
        raise AttributeError("_ARRAY_API not found")

package, module = types.ModuleType("tflite_runtime"), types.ModuleType("tflite_runtime.interpreter")
Interpreter.__module__ = "tflite_runtime.interpreter"
module.Interpreter = Interpreter
sys.modules |= {"tflite_runtime": package, "tflite_runtime.interpreter": module}
assert "tflite_runtime is installed but cannot run" in message() and "numpy<2" in message()
assert not {"torch", "flatbuffers"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert issubclass(MissingPackageError, ImportError)
