"""Folding changes no function; ranges hold what was seen; grids are what ONNX and TFLite ask for."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from zoo import TOKENS, answer, example, ranges

from edge_runtime import deploy
from edge_runtime.adapters import merge_adapters
from edge_runtime.building import build
from edge_runtime.deploy.exporter import float_model_of
from edge_runtime.deploy.graph.blocks import blocks
from edge_runtime.deploy.graph.calibrate import SEARCHES, calibrate
from edge_runtime.deploy.graph.captured import captured_model
from edge_runtime.deploy.graph.evaluate import Evaluator, predict
from edge_runtime.deploy.graph.float_model import FloatModel, at_batch
from edge_runtime.deploy.graph.fold import fold, hard_activations
from edge_runtime.deploy.graph.quantise import activation_quant, is_integer, quantise, weight_quant
from edge_runtime.deploy.graph.quantised import Quant
from edge_runtime.deploy.graph.rounding import predict_rounded
from edge_runtime.errors import ConfigError, NumericsError, UnsupportedOpError
from edge_runtime.ir.grids import MOVES

IMAGES = ["lenet", "resnet8", "mobilenet_v2_small", "mlp", "watch_cnn", "digits_cnn"]


def captured(name: str) -> tuple[nn.Module, NDArray[np.generic], FloatModel]:
    one = example(name)
    return one.module, one.x, one.model


def folded(name: str) -> tuple[nn.Module, NDArray[np.generic], FloatModel]:
    one = example(name)
    return one.module, one.x, one.folded


class Norms(nn.Module):
    """Batch norms in every place: behind a conv that is read twice, behind an activation, behind linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, bias=False)
        self.n1, self.n2, self.n3 = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm1d(5)
        self.out = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = self.n2(torch.relu(self.n1(y) + y))
        return self.n3(self.out(torch.relu(torch.max_pool2d(z, 2)).mean((2, 3))))  # type: ignore[no-any-return]


class Shared(nn.Module):
    """One convolution used twice, under different norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.n1, self.n2 = nn.BatchNorm2d(2), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.n2(self.conv(torch.relu(self.n1(self.conv(x)))))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", [*IMAGES, *TOKENS])
def test_folding_changes_no_output(name: str) -> None:
    module, x, model = folded(name)
    np.testing.assert_allclose(predict(model, x), answer(module, x), atol=1e-5)
    assert not [node for node in model.graph.nodes if node.op.startswith("batch_norm")]


@pytest.mark.parametrize("module", [Norms(), Shared()])
def test_norms_in_other_places_are_folded_too(module: nn.Module) -> None:
    x = torch.randn(8, 2, 9, 9)
    with torch.no_grad():
        for _ in range(3):
            module.train()(x)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
                part.weight.uniform_(-2, 2)  # a scale below 0 turns the channel over
                part.bias.uniform_(-2, 2)
    module.eval()
    model = fold(captured_model(module, x.numpy()))
    np.testing.assert_allclose(predict(model, x.numpy()), answer(module, x.numpy()), atol=2e-5)


@pytest.mark.parametrize("rows", [1, 2, 5, 33])
def test_the_graph_takes_any_batch(rows: int) -> None:
    module, x, model = (
        example("char_transformer").module,
        example("char_transformer").x,
        example("char_transformer").model,
    )
    x = np.resize(x, (rows, *x.shape[1:]))
    assert at_batch(model.graph, model.batch, rows).values[model.graph.inputs[0]].shape == x.shape
    np.testing.assert_allclose(predict(model, x), answer(module, x), atol=1e-5)


def test_a_model_whose_dims_are_the_usual_prime_keeps_them() -> None:
    module = nn.Sequential(nn.Linear(997, 5), nn.ReLU(), nn.Linear(5, 1994))
    x = np.zeros((3, 997), np.float32)
    model = captured_model(module, x)
    assert model.at(3).values[model.graph.outputs[0]].shape == (3, 1994)


def test_one_input_and_one_output_are_asked_for() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x + 1, x * 2

    with pytest.raises(UnsupportedOpError, match="one input and one output; this one has 1 and 2"):
        captured_model(Two(), np.zeros((2, 3), np.float32))


def test_hard_activations_are_close_and_cheap() -> None:
    module = nn.Sequential(nn.Linear(6, 16), nn.SiLU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4), nn.Sigmoid())
    x = np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32)
    model = hard_activations(fold(captured_model(module, x)))
    assert {node.op for node in model.graph.nodes} == {"linear", "scale", "clip", "mul"}
    assert np.abs(predict(model, x) - answer(module.eval(), x)).max() < 0.1


def test_a_built_program_is_exported_from_its_own_graph() -> None:
    module, x = example("resnet8").module, example("resnet8").x
    program = build(module, x, batch_size=4)
    model = fold(float_model_of(program, None, x))
    np.testing.assert_allclose(predict(model, x), answer(module, x), atol=1e-5)
    loaded = type(program).from_bytes(program.to_bytes())
    with pytest.raises(ConfigError, match="give the module"):
        float_model_of(loaded, None, x)


def test_adapters_are_merged_where_they_only_read_weights() -> None:
    module, x = copy.deepcopy(example("mlp").module), example("mlp").x
    program = build(module, x, batch_size=4, lora_rank=2)
    state = {name: np.full(one.shape, 0.01, np.float32) + one for name, one in program.initial.items()}
    model = fold(float_model_of(program, state, x))
    merged = merge_adapters(state)
    module.load_state_dict({name: torch.from_numpy(np.array(merged[name])) for name in module.state_dict()})
    np.testing.assert_allclose(predict(model, x), answer(module, x), atol=1e-4)


@pytest.mark.parametrize("method", ["minmax", *SEARCHES])
def test_ranges_are_inside_what_was_seen(method: str) -> None:
    x, model = example("lenet").x, example("lenet").folded
    ranges = calibrate(model, [x[:15], x[15:]], method)
    seen = {name: (value.min(), value.max()) for name, value in Evaluator(model, len(x)).values(x).items()}
    for name, (low, high) in ranges.items():
        if method == "minmax":
            np.testing.assert_allclose((low, high), seen[name], atol=1e-5)  # sums in another order
        else:
            slack = 1e-5 + (max(seen[name][1], 0) - min(seen[name][0], 0)) / 1000
            assert min(seen[name][0], 0) - slack <= low <= high <= max(seen[name][1], 0) + slack


@pytest.mark.parametrize("method", ["mse", "percentile"])
def test_outliers_do_not_stretch_a_searched_range(method: str) -> None:
    x = np.random.default_rng(1).standard_normal((4000, 8)).astype(np.float32)
    x[0, 0] = 12.0
    model = captured_model(nn.Sequential(nn.Linear(8, 3)), x)
    name = model.graph.inputs[0]
    assert calibrate(model, [x], method)[name][1] < calibrate(model, [x])[name][1]


def test_calibration_refuses_what_it_cannot_use() -> None:
    _, x, model = captured("mlp")
    with pytest.raises(ConfigError, match="empty"):
        calibrate(model, [])
    with pytest.raises(ConfigError, match="one of minmax, percentile"):
        calibrate(model, [x], "magic")
    with pytest.raises(NumericsError, match="NaN or infinite"):
        calibrate(model, [np.full_like(x, np.inf)])


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
@settings(max_examples=200)
def test_zero_is_on_every_activation_grid(a: float, b: float) -> None:
    quant = activation_quant(min(a, b), max(a, b))
    assert quant.round(np.zeros(1, np.float32)) == 0
    x = np.linspace(min(a, b, 0.0), max(a, b, 0.0), 50, dtype=np.float32)
    assert np.abs(quant.round(x) - x).max() <= quant.scale[0] * 0.501 + 1e-6


@given(st.integers(2, 8), st.integers(1, 5), st.integers(0, 2**31))
@settings(max_examples=60)
def test_weights_are_rounded_to_half_a_step_per_channel(bits: int, rows: int, seed: int) -> None:
    w = np.random.default_rng(seed).standard_normal((rows, 7)).astype(np.float32)
    w[0] = 0
    quant = weight_quant(w, bits)
    q = quant.quantise(w)
    assert np.abs(q).max() <= 2 ** (bits - 1) - 1
    assert not quant.zero_point.any()
    assert (np.abs(quant.dequantise(q) - w) <= quant.scale[:, None] * 0.5001).all()


def test_rounding_is_half_to_even_and_saturates() -> None:
    quant = Quant(np.ones(1, np.float32), np.zeros(1, np.int32))
    assert quant.quantise(np.array([0.5, 1.5, -0.5, 300, -300], np.float32)).tolist() == [0, 2, 0, 127, -128]


@pytest.mark.parametrize("name", IMAGES)
def test_grids_are_what_integer_kernels_need(name: str) -> None:
    module, x, model = folded(name)
    quantised = quantise(model, ranges(name))
    graph, quants = model.graph, quantised.quants
    assert {graph.inputs[0], graph.outputs[0]} <= quants.keys()
    for block in blocks(graph):
        node = block.node
        assert is_integer(node, graph, quants)
        assert block.output in quants
        assert block.act == "" or node.outputs[0] not in quants, "a grid between a layer and its activation"
        if node.op in MOVES:
            assert quants[node.inputs[0]] is quants[block.output]
        if node.op in ("conv2d", "linear") and len(node.inputs) > 2:
            bias = quants[node.inputs[2]]
            np.testing.assert_allclose(bias.scale, quants[node.inputs[0]].scale * quants[node.inputs[1]].scale, 1e-6)
    assert (predict_rounded(quantised, x).argmax(-1) == answer(module, x).argmax(-1)).mean() >= 0.9


@pytest.mark.parametrize("name", TOKENS)
def test_sequence_models_are_rounded_where_they_can_be(name: str) -> None:
    module, x, model = folded(name)
    quantised = quantise(model, ranges(name))
    assert quantised.quants["embedding.weight"].axis == 0
    assert np.abs(predict_rounded(quantised, x) - answer(module, x)).max() < 0.2


def test_a_dead_channel_keeps_its_bias() -> None:
    """A channel whose weights are all 0 would get a scale so small that its bias is no int32 any more."""
    module = nn.Sequential(nn.Linear(3, 2))
    with torch.no_grad():
        module[0].weight[0] = 1e-30
        module[0].bias.copy_(torch.tensor([5.0, 1.0]))
    x = np.ones((4, 3), np.float32)
    model = captured_model(module, x)
    quantised = quantise(model, calibrate(model, [x]))
    np.testing.assert_allclose(predict_rounded(quantised, x), answer(module, x), atol=0.05)
    assert np.abs(quantised.integers("0.bias")).max() <= 2**30


def test_bits_by_name() -> None:
    _, x, model = folded("lenet")
    ranges = calibrate(model, [x])
    quantised = quantise(model, ranges, weight_bits={"f1.weight": 4})
    assert {name: one.bits for name, one in quantised.quants.items() if name.endswith("weight")} == {
        "c1.weight": 8, "c2.weight": 8, "f1.weight": 4, "f2.weight": 8, "f3.weight": 8,
    }  # fmt: skip
    assert np.abs(quantised.integers("f1.weight")).max() == 7
    with pytest.raises(ConfigError, match=r"f9\.weight is no weight"):
        quantise(model, ranges, weight_bits={"f9.weight": 4})
    with pytest.raises(ConfigError, match="from 2 to 8"):
        quantise(model, ranges, weight_bits=1)


def test_weight_only_leaves_activations_alone() -> None:
    _, x, model = folded("lenet")
    quantised = quantise(model, {}, weight_bits=8, activations=False)
    assert all(name in model.graph.state for name in quantised.quants)
    np.testing.assert_allclose(predict_rounded(quantised, x), predict(quantised.rounded(), x), atol=1e-6)


def test_weights_of_another_shape_are_refused() -> None:
    module, x, model = captured("mlp")
    with pytest.raises(ValueError, match="the graph has"):
        model.with_weights({"1.weight": np.zeros((3, 3), np.float32)})
    with pytest.raises(ConfigError, match="has no"):
        captured_model(module, x, {})
    with pytest.raises(ConfigError, match="the model has"):
        captured_model(module, x, {name: np.zeros(2) for name in module.state_dict()})


def test_public_names_load_lazily() -> None:
    assert deploy.Runner is not None
    assert FloatModel.__doc__
