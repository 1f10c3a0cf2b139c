"""INT8 files in ONNX Runtime: what they compute is what the quantised graph says, and integers are what is stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import zoo
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional
from zoo import ROWS, TOKENS

from edge_runtime.deploy.formats.onnx import write_onnx
from edge_runtime.deploy.formats.onnx.stored import packed, packed_bits, unpacking_table
from edge_runtime.deploy.graph.calibrate import calibrate
from edge_runtime.deploy.graph.captured import captured_model
from edge_runtime.deploy.graph.fold import fold
from edge_runtime.deploy.graph.quantise import quantise, weight_quant
from edge_runtime.deploy.graph.quantised import QuantisedModel
from edge_runtime.deploy.graph.rounding import predict_rounded
from edge_runtime.deploy.run import onnx_runtime
from edge_runtime.deploy.runner import Runner

IMAGES = [name for name in zoo.IMAGES if name != "digits_cnn"]


def quantised(name: str, **options: object) -> tuple[QuantisedModel, NDArray[np.generic]]:
    return zoo.quantised(name, **options), zoo.example(name).x


def differences(q: QuantisedModel, x: NDArray[np.generic], content: bytes) -> NDArray[np.float32]:
    """Between the file's outputs and those by definition, in steps of the output's grid."""
    step = q.quants[q.model.graph.outputs[0]].scale[0]
    apart: NDArray[np.float32] = np.abs(Runner.of(content, ".onnx").predict(x) - predict_rounded(q, x)) / step
    return apart


@pytest.mark.parametrize("batch", [0, 4])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", [*IMAGES, *TOKENS])
def test_a_file_computes_what_the_quantised_graph_says(name: str, bits: int, batch: int) -> None:
    """A float32 sum in another order moves a value by a step where it lies between two, and those behind it."""
    q, x = quantised(name, weight_bits=bits)
    apart = differences(q, x, write_onnx(q, batch=batch))
    assert apart.max() < 2.5
    assert (apart > 0.5).mean() < 0.05


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", [*IMAGES, *TOKENS])
def test_the_exact_kernels_of_older_cores_compute_the_same(
    name: str, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_runtime, "cpu_flags", frozenset)
    q, x = quantised(name, weight_bits=bits)
    apart = differences(q, x, write_onnx(q))
    assert apart.max() < 2.5
    assert (apart > 0.5).mean() < 0.05


@pytest.mark.parametrize("bits", [8, 5, 4, 2])
@pytest.mark.parametrize("name", ["lenet", "char_gru", "char_transformer"])
def test_weights_alone_as_integers(name: str, bits: int) -> None:
    q, x = quantised(name, weight_bits=bits, activations=False)
    content = write_onnx(q)
    np.testing.assert_allclose(Runner.of(content, ".onnx").predict(x), predict_rounded(q, x), rtol=1e-4, atol=1e-4)
    graph = onnx.load_from_string(content).graph
    assert "QuantizeLinear" not in {node.op_type for node in graph.node}
    whole = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    largest = max(len(one.raw_data) for one in graph.initializer if one.data_type in whole)
    weight = max((q.model.weights[name] for name in q.quants), key=np.size)
    assert 8 * largest == {8: 8, 5: 8, 4: 4, 2: 2}[bits] * weight.size


def test_bits_by_name() -> None:
    q, x = quantised("lenet", weight_bits={"f1.weight": 4, "f2.weight": 2})
    content = write_onnx(q)
    assert differences(q, x, content).max() < 2.5
    sizes = {len(one.raw_data) for one in onnx.load_from_string(content).graph.initializer}
    assert {120 * 400 // 2, 84 * 120 // 4, 16 * 6 * 25} <= sizes


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@given(size=st.integers(1, 3000), seed=st.integers(0, 99))
def test_integers_that_share_bytes_come_back(bits: int, size: int, seed: int) -> None:
    quant = weight_quant(np.ones((1, 1), np.float32), bits)
    width = packed_bits(quant, size)
    assert width >= bits
    if width < 8:
        content = np.random.default_rng(seed).integers(quant.low, quant.high + 1, size)
        bytes_ = packed(content, width)
        assert bytes_.nbytes * 8 == size * width
        np.testing.assert_array_equal(unpacking_table(width)[bytes_].reshape(-1), content)


@pytest.mark.parametrize(
    ("name", "at_most"), [("lenet", 0.29), ("resnet8", 0.29), ("mlp", 0.27), ("mobilenet_v2_small", 0.37)]
)
def test_int8_files_are_a_fraction_of_the_float_ones(name: str, at_most: float) -> None:
    q, _ = quantised(name)
    assert len(write_onnx(q)) <= at_most * len(write_onnx(q.model))


@pytest.mark.parametrize(("bits", "share"), [(4, 0.54), (3, 0.54), (2, 0.33)])
def test_fewer_bits_take_fewer_bytes(bits: int, share: float) -> None:
    assert len(write_onnx(quantised("mlp", weight_bits=bits)[0])) < share * len(write_onnx(quantised("mlp")[0]))


def test_weights_of_a_gru_are_integers() -> None:
    graph = onnx.load_from_string(write_onnx(quantised("char_gru")[0])).graph
    shapes = {tuple(one.dims): one.data_type for one in graph.initializer}
    assert shapes[1, 384, 16] == shapes[1, 384, 128] == onnx.TensorProto.INT8
    assert not any(one.data_type == onnx.TensorProto.FLOAT and np.prod(one.dims) > 1000 for one in graph.initializer)


@pytest.mark.parametrize("name", IMAGES)
def test_scales_are_per_channel_for_weights_and_one_for_activations(name: str) -> None:
    q, _ = quantised(name)
    proto = onnx.load_from_string(write_onnx(q))
    onnx.checker.check_model(proto, full_check=True)
    stored = {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}
    channels = 0
    for node in proto.graph.node:
        if node.op_type == "QuantizeLinear":
            assert stored[node.input[1]].shape == stored[node.input[2]].shape == ()
            assert stored[node.input[2]].dtype == np.uint8
        if node.op_type == "DequantizeLinear" and (weight := stored.get(node.input[0])) is not None:
            assert stored[node.input[1]].shape == weight.shape[:1]
            assert weight.dtype == (np.int32 if weight.ndim == 1 else np.int8)
            channels += weight.dtype == np.int8
    assert channels == sum(node.op in ("conv2d", "linear") for node in q.model.graph.nodes)


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2_small"])
def test_onnx_runtime_computes_every_layer_in_integers(name: str, tmp_path: Path) -> None:
    """Also layers behind a value that two nodes read: what its optimiser makes of the file has no float layer left."""
    import onnxruntime as ort

    q, _ = quantised(name)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(write_onnx(q), options, providers=["CPUExecutionProvider"])
    ops = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    convolutions = sum(node.op == "conv2d" for node in q.model.graph.nodes)
    assert ops.count("QLinearConv") == convolutions
    assert ops.count("QGemm") == 1
    assert ops.count("QLinearAdd") == 3
    assert not {"Conv", "Gemm", "Add", "Relu", "Clip"} & set(ops)


class Does(nn.Module):
    """A convolution, and a function of what it makes."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.by = nn.Conv2d(3, 4, 3, padding=1), nn.Parameter(torch.randn(4, 1, 1))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x) * self.by)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "relu": torch.relu,
    "relu6": functional.relu6,
    "softmax": lambda y: y.softmax(1),
    "line": lambda y: 3 * y - 1,
    "gate": lambda y: y * y.mean((2, 3), keepdim=True).sigmoid(),
    "residual": lambda y: torch.relu(y + functional.max_pool2d(y, 3, 1, 1)),
    "joined": lambda y: torch.cat([y, y.relu(), 2 * y], 1),
    "part": lambda y: y[:, 1:3].transpose(2, 3).relu().flatten(1),
    "pools": lambda y: functional.avg_pool2d(functional.max_pool2d(y, 2), 2),
    "mean of rows": lambda y: y.mean(2),
    "sum": lambda y: y.sum((2, 3)),
    "spread": lambda y: y[:, :, :1].expand(-1, -1, 8, -1) + y,
}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_integers(name: str, bits: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(ROWS, 3, 8, 8).numpy()
    model = fold(captured_model(Does(FUNCTIONS[name]).eval(), x))
    q = quantise(model, calibrate(model, [x]), weight_bits=bits)
    got, want = Runner.of(write_onnx(q), ".onnx").predict(x), predict_rounded(q, x)
    quant = q.quants.get(model.graph.outputs[0])
    step = float(quant.scale[0]) if quant else float(np.ptp(want)) / 255
    apart = np.abs(got - want) / step
    assert apart.max() < 2.5
    assert (apart > 0.5).mean() < 0.02


LAYERS = {
    "linear": (lambda: nn.Linear(64, 10), (64,)),
    "odd linear": (lambda: nn.Linear(37, 10), (37,)),
    "3x3": (lambda: nn.Conv2d(8, 16, 3, padding=1), (8, 10, 10)),
    "1x1": (lambda: nn.Conv2d(16, 16, 1), (16, 10, 10)),
    "depthwise": (lambda: nn.Conv2d(16, 16, 3, groups=16), (16, 10, 10)),
    "grouped": (lambda: nn.Conv2d(16, 16, 3, groups=4), (16, 10, 10)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_sums_do_not_saturate(name: str) -> None:
    """The largest inputs and weights: two products of 8 bits do not fit 16, where some x86 kernels add them."""
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    module, rng = make(), np.random.default_rng(0)
    with torch.no_grad():
        weight = module.weight
        weight.copy_(torch.from_numpy(np.where(rng.random(weight.shape) < 0.9, 1.0, -1.0)))
    x = np.where(rng.random((8, *shape)) < 0.9, 1.0, rng.random((8, *shape))).astype(np.float32)
    model = fold(captured_model(module.eval(), x))
    q = quantise(model, calibrate(model, [x]))
    content = write_onnx(q)
    for rows in (1, len(x)):
        assert differences(q, x[:rows], content).max() < 1.5
