"""Random small models in every format: float32 as PyTorch, INT8 as the quantised graph's definition."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_runtime.deploy.exporter import FORMATS, Prepared, prepare, write
from edge_runtime.deploy.graph.quantised import QuantisedModel
from edge_runtime.deploy.graph.rounding import predict_rounded
from edge_runtime.deploy.parity import Expected, measured
from edge_runtime.deploy.runner import Runner
from edge_runtime.errors import ConfigError

ROWS = 12
TOLERANCE = {"onnx": 1e-4, "tflite": 2e-5, "engine": 2e-5}


class Of(nn.Module):
    """A function of the input and of layers."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.layers)


class Moved(nn.Module):
    """A buffer on the left or on the right of the input, and a parameter that nothing reads."""

    def __init__(self, shape: tuple[int, ...], way: int) -> None:
        super().__init__()
        self.register_buffer("b", torch.randn(shape))
        self.unused, self.way = nn.Parameter(torch.randn(3)), way

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.b, self.b - x, x * self.b, x - self.b)[self.way]


class ClassToken(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, size))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.token.expand(len(x), -1, -1), x], 1)


# The models: a few cells on an image or a sequence, then a head.


def _conv(c: int, rng: np.random.Generator) -> nn.Conv2d:
    """Of the same size."""
    kernel = (int(rng.choice([1, 3, 5])), int(rng.choice([1, 3])))
    groups = int(rng.choice([1, c]))
    return nn.Conv2d(c, c, kernel, padding=(kernel[0] // 2, kernel[1] // 2), groups=groups, bias=rng.random() < 0.7)


def _strided(c: int, rng: np.random.Generator) -> nn.Conv2d:
    kernel = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
    padding = (int(rng.integers(0, 3)), int(rng.integers(0, 2)))
    out, groups = ((5, 1), (c, c), (2 * c, c))[rng.integers(3)]
    stride = (int(rng.integers(1, 3)), int(rng.integers(1, 4)))
    return nn.Conv2d(c, out, kernel, stride, padding, groups=groups, bias=rng.random() < 0.6)


def _norm(c: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(c)
    for one in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(one)
    norm.running_var.uniform_(0.1, 3.0)
    return norm


def _act(rng: np.random.Generator) -> nn.Module:
    kinds = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.Dropout, nn.AlphaDropout)
    return kinds[rng.integers(len(kinds))]()


IMAGE: tuple[Callable[[tuple[int, ...], np.random.Generator], nn.Module], ...] = (
    lambda shape, rng: _strided(shape[0], rng),
    lambda shape, rng: nn.Sequential(_strided(shape[0], rng), nn.Identity()),
    lambda shape, rng: _norm(shape[0]),
    lambda shape, rng: _act(rng),
    lambda shape, rng: nn.MaxPool2d(3, int(rng.integers(1, 3)), 1),
    lambda shape, rng: nn.AvgPool2d((2, 1), (int(rng.integers(1, 3)), 1)),
    lambda shape, rng: Of(lambda x, f, g: g(f(x)) + x, _conv(shape[0], rng), _norm(shape[0])),
    lambda shape, rng: Of(lambda x, f, g: torch.cat([f(x).relu(), g(x)], 1), _conv(shape[0], rng), _act(rng)),
    lambda shape, rng: Of(lambda x, f: f(f(x).relu()), _conv(shape[0], rng)),
    lambda shape, rng: Of(lambda x, f: x * f(x.mean((2, 3), keepdim=True)).sigmoid(), nn.Conv2d(shape[0], shape[0], 1)),
    lambda shape, rng: Of(lambda x, f: (lambda y: y.relu() * y)(f(x)), _conv(shape[0], rng)),
    lambda shape, rng: Of(lambda x: (x - 0.3) * -0.7),
    lambda shape, rng: Of(lambda x: x.permute(0, 1, 3, 2)),
    lambda shape, rng: Moved(((shape[0], 1, 1), shape, (1,))[rng.integers(3)], int(rng.integers(4))),
    lambda shape, rng: nn.GroupNorm(shape[0], shape[0]),
)
SEQUENCE: tuple[Callable[[tuple[int, ...], np.random.Generator], nn.Module], ...] = (
    lambda shape, rng: nn.Linear(shape[-1], 6, bias=rng.random() < 0.7),
    lambda shape, rng: _act(rng),
    lambda shape, rng: nn.LayerNorm(shape[-1]),
    lambda shape, rng: nn.Softmax(-1),
    lambda shape, rng: Of(
        lambda x, f: f(x)[0], nn.GRU(shape[-1], 4, int(rng.integers(1, 3)), rng.random() < 0.5, batch_first=True)
    ),
    lambda shape, rng: Of(lambda x, f: f(x)[0], nn.LSTM(shape[-1], 4, batch_first=True)),
    lambda shape, rng: nn.TransformerEncoderLayer(shape[-1], 2, 9, batch_first=True),
    lambda shape, rng: Of(lambda x, f: torch.cat([f(x), x], -1), nn.Linear(shape[-1], 4)),
    lambda shape, rng: Moved(((shape[-1],), shape)[rng.integers(2)], int(rng.integers(4))),
    lambda shape, rng: ClassToken(shape[-1]),
)
ENDS: tuple[Callable[[tuple[int, ...]], nn.Module], ...] = (
    lambda shape: nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 4)),
    lambda shape: Of(lambda x: x.flatten(2).mean(2) if x.ndim == 4 else x.mean(1)),
    lambda shape: nn.Flatten(),
    lambda shape: nn.Identity(),
)


def drawn(seed: int) -> tuple[nn.Module, NDArray[np.generic]]:
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    kind = ("image", "image", "sequence", "tokens")[rng.integers(4)]
    size = tuple(int(n) for n in rng.integers(4, 9, 2))
    x = torch.randn(ROWS, 2, *size) if kind == "image" else torch.randn(ROWS, size[0], 4)
    cells: list[nn.Module] = []
    if kind == "tokens":
        x = torch.randint(0, 9, (ROWS, size[0]))
        cells.append(nn.Embedding(9, 4))
    for _ in range(int(rng.integers(1, 5))):
        shape = tuple(nn.Sequential(*cells).eval()(x).shape[1:])
        if min(shape) < 3 and kind == "image":
            break
        among = IMAGE if kind == "image" else SEQUENCE
        cells.append(among[rng.integers(len(among))](shape, rng))
    shape = tuple(nn.Sequential(*cells).eval()(x).shape[1:])
    module = nn.Sequential(*cells, ENDS[rng.integers(len(ENDS))](shape))
    with torch.no_grad():
        parameters = [one for one in module.parameters() if one.ndim > 1]
        if parameters and seed % 5 == 0:  # a dead layer, a tiny one, a large one
            parameters[rng.integers(len(parameters))].mul_(float(rng.choice([0.0, 1e-6, 100.0])))
    return module.eval(), x.numpy()


def answer(module: nn.Module, x: NDArray[np.generic]) -> NDArray[np.float32]:
    with torch.no_grad():
        y: NDArray[np.float32] = module(torch.from_numpy(x)).numpy()
    return y


def hold(module: nn.Module, x: NDArray[np.generic], prepared: Prepared, name: str, batch: int | None) -> None:
    """The files of format `name` answer as the module does, and as the quantised graph is defined."""
    quantised = prepared.quantised
    assert quantised is not None
    expected = answer(module, x)
    size = max(1.0, float(np.abs(expected).max()))
    fp32 = Runner.of(write(prepared.float_model, name, batch), FORMATS[name].suffix).predict(x)
    assert fp32.shape == expected.shape
    assert np.abs(fp32 - expected).max() / size < TOLERANCE[name]
    int8 = Runner.of(write(quantised, name, batch), FORMATS[name].suffix).predict(x)
    apart = np.abs(int8 - predict_rounded(quantised, x))
    assert int8.shape == expected.shape
    step = steps(quantised)
    assert apart.max() < (2.5 * step if step else 0.02 * size)


def steps(quantised: QuantisedModel) -> float:
    """One step of the output's grid; 0 where it has none."""
    quant = quantised.quants.get(quantised.model.graph.outputs[0])
    return 0.0 if quant is None else float(quant.scale[0])


def any_batch(module: nn.Module, name: str) -> int:
    """TFLite cannot repeat a class token for any batch, and says so."""
    return 4 if name == "tflite" and any(isinstance(one, ClassToken) for one in module.modules()) else 0


@functools.cache
def made(seed: int) -> tuple[nn.Module, NDArray[np.generic], Prepared]:
    module, x = drawn(seed)
    return module, x, prepare(module, None, [x[:7], x[7:]], calibrate=("minmax", "percentile", "mse")[seed % 3])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("seed", range(14))
def test_random_models(seed: int, name: str) -> None:
    module, x, prepared = made(seed)
    hold(module, x, prepared, name, any_batch(module, name) if seed % 2 else None)


# Each of these once gave wrong answers, or none.


@pytest.mark.parametrize("batch", [0, 4])
def test_a_batch_that_is_not_in_front_is_not_taken_for_a_dim_of_one(batch: int) -> None:
    torch.manual_seed(0)
    module = nn.TransformerEncoderLayer(6, 2, 9, batch_first=True).eval()
    x = np.random.default_rng(0).normal(size=(5, 4, 6)).astype(np.float32)
    hold(module, x, prepare(module, None, [x]), "tflite", batch)


@pytest.mark.parametrize("way", range(4))
def test_a_buffer_without_the_batch_beside_an_image(way: int) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), Moved((3, 5, 4), way), nn.Conv2d(3, 2, 1)).eval()
    x = np.random.default_rng(0).normal(size=(6, 2, 5, 4)).astype(np.float32)
    prepared = prepare(module, None, [x])
    for name in FORMATS:
        hold(module, x, prepared, name, None)


def test_four_bit_weights_that_are_small_beside_their_bias() -> None:
    torch.manual_seed(0)
    module = nn.Linear(6, 5)
    with torch.no_grad():
        module.weight.mul_(1e-6)
    x = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    prepared = prepare(module, None, [x], weight_bits=4)
    for name in FORMATS:
        hold(module, x, prepared, name, None)


def test_a_softmax_whose_shares_are_small_and_read_by_a_layer() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 6, bias=False), nn.Softmax(1), nn.Linear(6, 3))
    with torch.no_grad():
        module[0].weight.mul_(0.1)
    x = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    prepared = prepare(module, None, [x])
    for name in FORMATS:
        hold(module, x, prepared, name, None)


@pytest.mark.parametrize("layer", [nn.GRU, nn.LSTM])
def test_a_last_state_that_a_layer_reads(layer: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        Of(
            lambda x, f: f(x)[1].squeeze(0) if layer is nn.GRU else f(x)[1][1].squeeze(0), layer(6, 3, batch_first=True)
        ),
        nn.Linear(3, 2),
    ).eval()
    x = np.random.default_rng(0).normal(size=(6, 4, 6)).astype(np.float32)
    prepared = prepare(module, None, [x])
    for name in FORMATS:
        hold(module, x, prepared, name, None)


def test_a_class_token() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        Of(lambda x, f: f(x).flatten(2).transpose(1, 2), nn.Conv2d(2, 8, 3, 3)),
        ClassToken(8),
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        Of(lambda x, f: f(x[:, 0]), nn.Linear(8, 3)),
    ).eval()
    x = np.random.default_rng(0).normal(size=(6, 2, 6, 6)).astype(np.float32)
    prepared = prepare(module, None, [x])
    for name in FORMATS:
        hold(module, x, prepared, name, 4)
        hold(module, x, prepared, name, any_batch(module, name))


def test_dropout_of_channels_is_nothing_in_evaluation() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Dropout2d(), nn.Conv2d(2, 2, 3)).train()
    x = np.random.default_rng(0).normal(size=(4, 2, 5, 5)).astype(np.float32)
    prepared = prepare(module, None, [x])
    hold(module.eval(), x, prepared, "onnx", None)


@pytest.mark.parametrize("by", [1.0, -1.0])
def test_the_gate_sees_wrong_weights_behind_a_large_mean(by: float) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        module[2].bias.add_(1000.0)
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    expected = answer(module, x)
    with torch.no_grad():
        module[0].weight.mul_(by)
    content = write(prepare(module, None, [x], precision="fp32").float_model, "onnx")
    row = measured("model.onnx", "onnx", "fp32", content, Expected(x, None, expected, {"fp32": expected}, 1.0))
    assert (row.refused is None) == (by == 1.0)


def test_a_batch_below_zero_is_a_wrong_setting() -> None:
    prepared = prepare(nn.Linear(2, 2), None, [np.ones((3, 2), np.float32)])
    for name in FORMATS:
        with pytest.raises(ConfigError, match="batch = -3"):
            write(prepared.float_model, name, -3)
