"""The models of the zoo as `.tflite`: equal to PyTorch, small, deterministic; and what the files say about grids."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import nn
from zoo import IMAGES, TOKENS, answer, example
from zoo import quantised as quantised_zoo

from edge_runtime.deploy.formats.tflite import write_tflite
from edge_runtime.deploy.graph.captured import captured_model
from edge_runtime.deploy.graph.evaluate import predict
from edge_runtime.deploy.graph.float_model import FloatModel
from edge_runtime.deploy.graph.fold import fold
from edge_runtime.deploy.graph.quantised import Quant, QuantisedModel
from edge_runtime.deploy.graph.rounding import predict_rounded
from edge_runtime.deploy.runner import Runner
from edge_runtime.errors import UnsupportedOpError
from edge_runtime.ir.graph import Graph, Node, Value

NAMES = [name for name in (*IMAGES, *TOKENS) if name != "digits_cnn"]
ROWS, BATCH = 16, 997


def zoo(name):
    """A folded model, inputs, PyTorch's answers."""
    one = example(name)
    return one.folded, one.x[:ROWS], answer(one.module, one.x[:ROWS])


class File:
    """A written file, parsed."""

    def __init__(self, data):
        self.model = schema.ModelT.InitFromPackedBuf(data)
        self.graph = self.model.subgraphs[0]
        names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
        self.codes = [names[self.model.operatorCodes[one.opcodeIndex].builtinCode] for one in self.graph.operators]

    def operators(self, code):
        return [one for one, name in zip(self.graph.operators, self.codes, strict=True) if name == code]

    def grid(self, tensor):
        quant = self.graph.tensors[tensor].quantization
        return list(quant.scale), list(quant.zeroPoint)


@pytest.mark.parametrize("name", NAMES)
def test_float_equals_torch(name):
    model, x, expected = zoo(name)
    for batch in (1, 0):
        got = Runner.of(write_tflite(model, batch=batch), ".tflite").predict(x)
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_integers_agree_with_the_rounded_graph(name):
    quantised, x = quantised_zoo(name), zoo(name)[1]
    expected = predict_rounded(quantised, x)
    step = float(quantised.quants[quantised.model.graph.outputs[0]].scale[0])
    for batch in (1, 0):
        got = Runner.of(write_tflite(quantised, batch=batch), ".tflite").predict(x)
        off = abs(got - expected) / step
        assert off.max() <= 2.01
        assert (off > 0.5).mean() < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_four_bits(name):
    x = zoo(name)[1]
    quantised = quantised_zoo(name, weight_bits=4, activations=False)
    got = Runner.of(write_tflite(quantised), ".tflite").predict(x)
    np.testing.assert_allclose(got, predict_rounded(quantised, x), atol=1e-5)


@pytest.mark.parametrize("name", ["lenet", "resnet8", "mlp", "ds_cnn"])
def test_equal_models_give_equal_bytes_and_little_else_than_weights(name):
    model, _, _ = zoo(name)
    data = write_tflite(model)
    assert data == write_tflite(fold(model))
    small = write_tflite(quantised_zoo(name))
    assert small == write_tflite(quantised_zoo(name))
    nodes = len(model.graph.nodes)
    assert len(data) < 4 * model.parameters + 200 * nodes + 1024
    # A byte for each weight; the scale, and the bias with its own, for each channel.
    channels = sum(len(one) for one in model.weights.values() if one.ndim > 1)
    assert len(small) < model.parameters + 12 * channels + 350 * nodes + 1024


def test_one_transposition_at_most():
    """The input of images with more than one channel; none for those with one, and none before linear layers."""
    for name, expected in {"lenet": 0, "ds_cnn": 0, "mlp": 0, "resnet8": 1, "mobilenet_v2_small": 1}.items():
        for model in (zoo(name)[0], quantised_zoo(name)):
            assert len(File(write_tflite(model)).operators("TRANSPOSE")) == expected, name


def test_grids_in_the_file():
    """Per-channel axes, biases, zero in every range, and operators that must keep their input's grid."""
    for name in ("lenet", "mobilenet_v2_small", "resnet8", "ds_cnn"):
        file = File(write_tflite(quantised_zoo(name)))
        for code, axis in (("CONV_2D", 0), ("DEPTHWISE_CONV_2D", 3), ("FULLY_CONNECTED", 0)):
            for one in file.operators(code):
                x, w, b = (file.graph.tensors[i].quantization for i in one.inputs)
                assert w.quantizedDimension == axis
                channels = file.graph.tensors[one.inputs[1]].shape[axis]
                assert len(w.scale) == len(b.scale) == channels
                np.testing.assert_allclose(b.scale, x.scale[0] * w.scale, rtol=1e-6)
                assert not any([*w.zeroPoint, *b.zeroPoint])
        for one in file.graph.tensors:
            if one.type == schema.TensorType.INT8:
                assert all(-128 <= zero <= 127 for zero in one.quantization.zeroPoint)
        for code in ("MAX_POOL_2D", "RESHAPE", "PAD", "TRANSPOSE"):
            for one in file.operators(code):
                assert file.grid(one.inputs[0]) == file.grid(one.outputs[0])


def test_an_activation_is_fused_and_its_grid_starts_at_zero():
    file = File(write_tflite(quantised_zoo("lenet")))
    assert not file.operators("RELU")
    for one in file.operators("CONV_2D"):
        assert one.builtinOptions.fusedActivationFunction == schema.ActivationFunctionType.RELU
        assert file.grid(one.outputs[0])[1] == [-128]


def test_constants_are_aligned_and_written_once():
    layer = nn.Linear(64, 64)
    module = nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), layer)
    data = write_tflite(captured_model(module, torch.zeros(2, 64)))
    assert len(data) < 4 * 64 * 65 + 2048
    assert data.index(layer.weight.detach().numpy().tobytes()) % 16 == 0


def test_a_file_for_any_batch():
    model, x, expected = zoo("resnet8")
    runner = Runner.of(write_tflite(model, batch=0), ".tflite")
    assert runner.input.shape == (-1, 3, 32, 32)
    assert runner.output.shape == (-1, 10)
    for rows in (3, 3, 1, 5, ROWS):
        np.testing.assert_allclose(runner.predict(x[:rows]), expected[:rows], atol=1e-5)


def test_a_fixed_batch_is_cut_and_padded():
    model, x, expected = zoo("lenet")
    runner = Runner.of(write_tflite(model, batch=6), ".tflite")
    assert runner.input.shape == (6, 1, 28, 28)
    np.testing.assert_allclose(runner.predict(x), expected, atol=1e-5)


def test_input_and_output_are_integers():
    file = File(write_tflite(quantised_zoo("resnet8")))
    for tensor in (file.graph.inputs[0], file.graph.outputs[0]):
        assert file.graph.tensors[tensor].type == schema.TensorType.INT8
    assert {"QUANTIZE", "DEQUANTIZE"}.isdisjoint(file.codes)


def graph_of(*nodes, values=(), weights=None, shape=(6,)):
    every = {"x": Value("x", (BATCH, 6)), "y": Value("y", (BATCH, *shape)), **{one.name: one for one in values}}
    weights = weights or {}
    return FloatModel(Graph(every, ("x",), tuple(weights), nodes, ("y",)), weights, BATCH)


def test_what_tflite_cannot_hold_is_named():
    strange = graph_of(Node("relu_grad", ("x", "x"), ("y",), source="model.py:7: y = f(x)"))
    with pytest.raises(UnsupportedOpError, match=r"TFLite has no relu_grad \(relu_grad at model.py:7: y = f\(x\)\)"):
        write_tflite(strange)

    computed = graph_of(
        Node("mean", ("x",), ("v",), {"dims": (0,), "keepdim": False}),
        Node("linear", ("x", "w", "v"), ("y",), source="model.py:8"),
        values=[Value("v", (6,)), Value("w", (6, 6))],
        weights={"w": np.ones((6, 6), np.float32)},
    )
    with pytest.raises(UnsupportedOpError, match=r"no v that is computed \(linear at model.py:8\)"):
        write_tflite(computed)

    token = Value("token", (1, 6))
    repeated = Value("t", (BATCH, 6))
    nodes = (
        Node("expand", ("token",), ("t",), {"shape": (BATCH, 6), "by": 1.0}),
        Node("cat", ("x", "t"), ("y",), {"dim": 1}, source="model.py:9"),
    )
    model = graph_of(*nodes, values=[token, repeated], weights={"token": np.ones((1, 6), np.float32)}, shape=(12,))
    with pytest.raises(UnsupportedOpError, match=r"any batch \(cat at model.py:9\); write the file for a fixed batch"):
        write_tflite(model, batch=0)
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    np.testing.assert_array_equal(Runner.of(write_tflite(model, batch=4), ".tflite").predict(x), predict(model, x))

    coarse = Quant(np.ones(1, np.float32), np.zeros(1, np.int32), 4)
    with pytest.raises(UnsupportedOpError, match="no activations of 4 bits"):
        write_tflite(QuantisedModel(graph_of(Node("relu", ("x",), ("y",))), {"x": coarse, "y": coarse}))
