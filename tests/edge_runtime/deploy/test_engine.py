"""Hedgerow's own engine against what its graph means (`predict_rounded`), on models, odd graphs and real digits."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from numpy.typing import NDArray
from torch import nn

from edge_runtime import losses, optimizers, plugins
from edge_runtime.deploy.formats.engine import write_engine
from edge_runtime.deploy.graph.calibrate import calibrate
from edge_runtime.deploy.graph.captured import captured_model
from edge_runtime.deploy.graph.evaluate import predict
from edge_runtime.deploy.graph.float_model import FloatModel
from edge_runtime.deploy.graph.fold import fold
from edge_runtime.deploy.graph.quantise import quantise
from edge_runtime.deploy.graph.quantised import QuantisedModel
from edge_runtime.deploy.graph.rounding import predict_rounded
from edge_runtime.deploy.run.engine import EngineBackend
from edge_runtime.deploy.run.engine_file import decode
from edge_runtime.deploy.runner import Runner
from edge_runtime.errors import ArtefactError, BudgetError, ConfigError
from edge_runtime.kernels import native
from edge_runtime.train.batches import Batches
from edge_runtime.train.config import DATASETS, DataConfig
from edge_runtime.train.torch_trainer import TorchTrainer
from simulations import models

IMAGES = [name for name in zoo.IMAGES if name not in ("digits_cnn", "ds_cnn")]
ROWS = 24
WHOLE = ("lenet", "mlp", "resnet8", "mobilenet_v2_small", "watch_cnn")  # of integer ops alone
LSB = 2.001


def inputs(shape: tuple[int, ...] | None, rows: int = ROWS) -> NDArray[Any]:
    rng = np.random.default_rng(7)
    return rng.integers(0, 80, (rows, 64)) if shape is None else rng.standard_normal((rows, *shape)).astype(np.float32)


def folded(module: nn.Module, x: NDArray[Any]) -> FloatModel:
    return fold(captured_model(module.eval(), x[:2]))


def made(name: str) -> tuple[FloatModel, QuantisedModel, NDArray[Any]]:
    return zoo.example(name).folded, zoo.quantised(name), zoo.example(name).x


def answers(file: bytes, x: NDArray[Any], **settings: Any) -> NDArray[np.float32]:
    return Runner.of(file, ".hedgerow", **settings).predict(x)


def step(quantised: QuantisedModel) -> float:
    return float(quantised.quants[quantised.model.graph.outputs[0]].scale[0])


# The answers.


@pytest.mark.parametrize("name", [*IMAGES, *zoo.TOKENS])
def test_int8_answers_as_the_graph_means(name: str) -> None:
    _, quantised, x = made(name)
    got, want = answers(write_engine(quantised), x), predict_rounded(quantised, x)
    off = np.abs(got - want) / step(quantised)
    assert off.max() <= LSB
    assert (off > 0.5).mean() < 0.05


@pytest.mark.parametrize("name", [*IMAGES, *zoo.TOKENS])
def test_fp32_answers_as_the_graph_does(name: str) -> None:
    model, _, x = made(name)
    np.testing.assert_allclose(answers(write_engine(model), x), predict(model, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["lenet", "char_gru"])
def test_weight_only_integers_are_dequantised_at_load(name: str) -> None:
    model, _, x = made(name)
    quantised = quantise(model, {}, activations=False)
    file = write_engine(quantised)
    assert len(file) < 0.3 * len(write_engine(model))
    np.testing.assert_allclose(answers(file, x), predict_rounded(quantised, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_fewer_bits_take_fewer_bytes_and_mean_the_same(bits: int) -> None:
    model, eight, x = made("lenet")
    quantised = quantise(model, calibrate(model, [x]), weight_bits=bits)
    file = write_engine(quantised)
    stored = {2: 2, 3: 4, 4: 4, 5: 8}[bits]
    saved = model.parameters * (8 - stored) // 8
    assert abs(len(write_engine(eight)) - len(file) - saved) < 1500
    off = np.abs(answers(file, x) - predict_rounded(quantised, x)) / step(quantised)
    assert off.max() <= LSB


def test_bits_of_each_layer_may_differ() -> None:
    model, _, x = made("lenet")
    quantised = quantise(model, calibrate(model, [x]), weight_bits={"f1.weight": 4, "c1.weight": 8, "f2.weight": 2})
    off = np.abs(answers(write_engine(quantised), x) - predict_rounded(quantised, x)) / step(quantised)
    assert off.max() <= LSB


@dataclass(frozen=True)
class Digits:
    quantised: QuantisedModel
    x: NDArray[np.float32]
    y: NDArray[np.int64]


@pytest.fixture(scope="module")
def digits() -> Digits:
    """A DigitsCNN that has learned, calibrated on its training images."""
    source = plugins.load(DATASETS, "digits")
    data = DataConfig(name="digits", clients=1, partition="iid")
    train, test = source.client_split(data, 1, 0), source.test_split(data, 1)
    torch.manual_seed(1)
    trainer = TorchTrainer(
        models.digits_cnn(), loss=losses.CrossEntropy(), optimizer=optimizers.SGD(0.05, momentum=0.9)
    )
    trainer.fit(Batches(train, 32, np.random.default_rng(1)), epochs=5)
    model = fold(captured_model(models.digits_cnn(), train.x[:2], trainer.state_dict()))
    return Digits(quantise(model, calibrate(model, [train.x[:200]])), test.x, test.y)


def test_real_digits_get_the_graphs_own_labels(digits: Digits) -> None:
    got = answers(write_engine(digits.quantised), digits.x).argmax(1)
    assert (got == predict_rounded(digits.quantised, digits.x).argmax(1)).mean() > 0.995
    assert (got == predict(digits.quantised.model, digits.x).argmax(1)).mean() > 0.97
    assert (got == digits.y).mean() > 0.9


# Odd graphs.


class Gate(nn.Module):
    """Squeeze and excitation: a product that repeats its second factor over the image."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(x))
        return (x * torch.sigmoid(self.b(x.mean((2, 3), keepdim=True)))).flatten(1)  # type: ignore[no-any-return]


class Moves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)[:, :, 1:7, 2:]
        x = torch.cat([x.transpose(2, 3), torch.tanh(x).transpose(2, 3)], 2)
        return self.out(torch.nn.functional.avg_pool2d(x, 2).permute(0, 2, 1, 3).reshape(len(x), 7, -1))  # type: ignore[no-any-return]


class Branches(nn.Module):
    """An image that a layer reads after a flatten, and another before."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, groups=2, padding=1)
        self.c, self.d = nn.Linear(6 * 36, 7), nn.Linear(6, 7, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu6(self.a(x))
        y = torch.relu(self.b(x) + x)
        return self.c(y.flatten(1)) + self.d(y.mean((2, 3)))  # type: ignore[no-any-return]


class Sequence(nn.Module):
    """Layers over the last dim of (N, T, K), a sum with a weight, a softmax, which stays float32."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.place = nn.Linear(6, 8), nn.Linear(8, 4), nn.Parameter(torch.randn(5, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(x) + self.place).mean(1)
        return torch.softmax(self.b(x), 1)


class LateNorm(nn.Module):
    """A batch norm that no layer can take: a product and a sum for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm2d(3), nn.Conv2d(3, 4, (3, 2), (2, 1), (1, 0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.silu(self.out(self.norm(torch.max_pool2d(x, 3, 2, 1)))).flatten(1)


class Multiplied(nn.Module):
    """Depthwise with two outputs a channel, which the core has no integer op for."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, groups=3), nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x)))  # type: ignore[no-any-return]


ODD = {
    "gate": (Gate, (3, 9, 7)),
    "moves": (Moves, (3, 8, 9)),
    "branches": (Branches, (3, 8, 8)),
    "sequence": (Sequence, (5, 6)),
    "late norm": (LateNorm, (3, 8, 9)),
    "multiplied": (Multiplied, (3, 6, 6)),
}


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("name", ODD)
def test_odd_graphs_mean_the_same(name: str, rows: int) -> None:
    build, shape = ODD[name]
    torch.manual_seed(0)
    x = inputs(shape, 10)
    model = folded(build(), x)
    np.testing.assert_allclose(answers(write_engine(model, batch=rows), x), predict(model, x), rtol=1e-4, atol=1e-5)
    quantised = quantise(model, calibrate(model, [x]))
    got, want = answers(write_engine(quantised, batch=rows), x), predict_rounded(quantised, x)
    scale = quantised.quants.get(model.graph.outputs[0])
    assert np.abs(got - want).max() <= (LSB * scale.scale[0] if scale else 2e-3)


# One answer, whatever runs it.


@pytest.mark.parametrize("name", ["lenet", "mobilenet_v2_small"])
def test_rows_of_a_batch_do_not_touch_each_other(name: str) -> None:
    _, quantised, x = made(name)
    one = answers(write_engine(quantised), x)
    assert Runner.of(write_engine(quantised, batch=5), ".hedgerow").input.shape[0] == 5
    np.testing.assert_array_equal(answers(write_engine(quantised, batch=5), x), one)


@pytest.mark.parametrize("name", ["resnet8", "char_gru"])
def test_threads_change_no_bit(name: str) -> None:
    _, quantised, x = made(name)
    file = write_engine(quantised, batch=4)
    np.testing.assert_array_equal(answers(file, x, threads=3), answers(file, x))


@pytest.fixture
def any_isa() -> Iterator[None]:
    before = native.selected_isa()
    yield
    native.select_isa(before)


@pytest.mark.usefixtures("any_isa")
@pytest.mark.parametrize("name", WHOLE)
def test_every_isa_gives_the_same_bits_where_all_is_integers(name: str) -> None:
    _, quantised, x = made(name)
    file, found = write_engine(quantised), []
    assert all(op.name.endswith("_s8") for op in decode(file).ops)
    for isa in native.isas():
        native.select_isa(isa)
        found.append(answers(file, x[:4]))
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_equal_models_make_equal_files() -> None:
    _, quantised, _ = made("lenet")
    assert write_engine(quantised) == write_engine(quantised)


# Memory.


@pytest.mark.parametrize("name", ["lenet", "mobilenet_v2_small", "char_gru"])
def test_an_answer_depends_on_nothing_that_lay_in_the_arena_and_changes_no_constant(name: str) -> None:
    _, quantised, x = made(name)
    backend = EngineBackend(write_engine(quantised))
    want = backend.predict(x[:1])
    constants = backend.arena[backend.activation_bytes :].copy()
    backend.arena[: backend.activation_bytes] = 0xA5
    np.testing.assert_array_equal(backend.predict(x[:1]), want)
    np.testing.assert_array_equal(backend.arena[backend.activation_bytes :], constants)


@pytest.mark.parametrize("name", WHOLE)
def test_activations_take_what_the_two_largest_neighbours_need(name: str) -> None:
    """The high-water mark: no plan is below the largest op, and these are near it."""
    _, quantised, _ = made(name)
    file = decode(write_engine(quantised))
    graph = quantised.model.at(1)
    x = graph.values[graph.inputs[0]]
    largest = max(sum(graph.values[n].size for n in (node.inputs[0], node.outputs[0])) for node in graph.nodes)
    assert file.activation_bytes <= max(1.5 * largest, x.nbytes + x.size) + 640


def test_a_bound_on_memory_is_kept(digits: Digits) -> None:
    file = write_engine(digits.quantised)
    needed = EngineBackend(file).arena.nbytes
    assert Runner.of(file, ".hedgerow", max_memory=needed).predict(digits.x[:1]).shape == (1, 10)
    with pytest.raises(BudgetError, match=f"{needed} bytes"):
        Runner.of(file, ".hedgerow", max_memory=needed - 1)
    with pytest.raises(ConfigError, match="max_memory"):
        Runner.of(b"", ".onnx", max_memory=needed)


DEVICE = """
import sys
import numpy as np
from edge_runtime.deploy.runner import Runner
x = np.load(sys.argv[2])
Runner.of(open(sys.argv[1], "rb").read(), ".hedgerow").predict(x)
heavy = {"torch", "onnx", "onnxruntime", "flatbuffers", "ai_edge_litert", "cryptography", "edge_runtime.ir"}
print(*sorted(heavy & set(sys.modules)))
"""


def test_a_device_loads_nothing_heavy(tmp_path: Any) -> None:
    _, quantised, x = made("lenet")
    (tmp_path / "model.hedgerow").write_bytes(write_engine(quantised))
    np.save(tmp_path / "x.npy", x[:1])
    command = [sys.executable, "-c", DEVICE, str(tmp_path / "model.hedgerow"), str(tmp_path / "x.npy")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


# What is refused.


def test_a_token_outside_the_table_is_a_value_error() -> None:
    _, quantised, x = made("char_gru")
    runner = Runner.of(write_engine(quantised), ".hedgerow")
    with pytest.raises(ValueError, match="token"):
        runner.predict(np.full_like(x[:1], 10**6))
    assert np.isfinite(runner.predict(x[:1])).all()


def test_other_bytes_are_refused() -> None:
    with pytest.raises(ArtefactError, match="not a \\.hedgerow model"):
        EngineBackend(b"TFL3" * 100)
