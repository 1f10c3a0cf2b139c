"""Quantisation-aware training: it rounds what the deployed model rounds, and trains as PyTorch's own rounding does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import edge_runtime as er
from edge_runtime.capture.model import capture_model
from edge_runtime.deploy.graph import quantise as deployed
from edge_runtime.deploy.graph.calibrate import calibrate
from edge_runtime.deploy.graph.captured import captured_model
from edge_runtime.deploy.graph.fold import fold
from edge_runtime.deploy.graph.rounding import predict_rounded
from edge_runtime.errors import BudgetError, ConfigError
from edge_runtime.ir.graph import Graph
from edge_runtime.ir.grids import MOVES
from edge_runtime.kernels import native
from edge_runtime.passes.fake_quant import with_fake_quant
from edge_runtime.train.batches import Batches
from edge_runtime.train.config import DataConfig
from edge_runtime.train.loop import LocalTrainer, State
from edge_runtime.train.torch_qat import Rounding
from edge_runtime.train.torch_trainer import TorchTrainer
from simulations import models
from simulations.datasets import DIGITS

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning")  # torch.export's own

Array = np.ndarray[Any, Any]


class Branches(nn.Module):
    """A batch norm before its layer, dropout between layers, two branches joined, and a pool without activation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.norm_b, self.out = nn.BatchNorm2d(4), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.dropout(self.a(torch.relu(self.norm(x))), 0.1, self.training)
        x = functional.max_pool2d(torch.cat([x, self.norm_b(self.b(x))], 1), 2)
        return self.out(torch.sigmoid(x).mean((2, 3)))


class Tied(nn.Module):
    """An embedding whose table is the last layer's weight, and learned places added."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm, self.middle = nn.Embedding(12, 8), nn.LayerNorm(8), nn.Linear(8, 8)
        self.places, self.out = nn.Parameter(torch.randn(6, 8)), nn.Linear(8, 12)
        self.out.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embedding(x) + self.places
        return self.out(x + self.middle(self.norm(x)))


SHAPES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "branches": (Branches, (3, 6, 6), 0),
    "digits": (models.DigitsCNN, (1, 8, 8), 0),
    "gru": (lambda: models.CharGRU(20, 8, 8), (6,), 20),
    "lenet": (models.LeNet, (1, 28, 28), 0),
    "mbv2": (models.MobileNetV2Small, (3, 32, 32), 0),
    "resnet8": (models.ResNet8, (3, 32, 32), 0),
    "tfm": (lambda: models.CharTransformer(20), (64,), 20),
    "tied": (Tied, (6,), 12),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return SHAPES[name][0]()


def inputs(name: str, rows: int) -> Array:
    rng = np.random.default_rng(rows)
    _, shape, tokens = SHAPES[name]
    return rng.integers(0, tokens, (rows, *shape)) if tokens else rng.standard_normal((rows, *shape)).astype(np.float32)


def batch(name: str, rows: int) -> tuple[Array, Array]:
    x = inputs(name, rows)
    tokens = SHAPES[name][2]
    return x, np.random.default_rng(1).integers(0, tokens or 5, x.shape if tokens else rows)


def rounded_values(graph: Graph) -> set[str]:
    return {node.inputs[0] for node in graph.nodes if node.op.startswith("fake_quant")}


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_rounded_is_what_the_deployed_model_rounds(name: str) -> None:
    """In the folded graph, value by value; in the training graph, as many."""
    x = inputs(name, 4)
    model = fold(captured_model(made(name), x))
    quants = deployed.quantise(model, calibrate(model, [x])).quants
    makers = {node.outputs[0]: node.op for node in model.graph.nodes}
    biases = {node.inputs[2] for node in model.graph.nodes if node.op in ("conv2d", "linear") and node.inputs[2:]}
    expected = {one for one in quants if makers.get(one) not in MOVES} - biases
    folded = with_fake_quant(model.graph, 8, True)
    assert rounded_values(folded) == expected
    if name not in ("branches", "tied"):  # a norm is two ops when folded, a tied weight two tensors
        training = with_fake_quant(capture_model(made(name), x).forward(4), 8, True)
        assert len(rounded_values(training)) == len(expected)


@pytest.mark.parametrize(("name", "bits"), [("digits", 2), ("digits", 8), ("gru", 2), ("resnet8", 2)])
def test_evaluation_is_that_of_the_deployed_weights(name: str, bits: int) -> None:
    """Though batch norms are folded there before weights are rounded, and here not."""
    module, x = made(name), inputs(name, 8)
    with torch.no_grad():
        for one in module.modules():
            if isinstance(one, nn.BatchNorm2d):
                for tensor in (one.weight, one.bias, one.running_mean):
                    tensor += 0.3 * torch.randn_like(tensor)
                one.weight[::3] *= -1
    program = er.build(module, x, batch_size=8, qat_bits=bits)
    model = fold(captured_model(module, x))
    expected = predict_rounded(deployed.quantise(model, {}, weight_bits=bits, activations=False), x)
    got = er.Trainer(program).predict(x)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-4 * np.abs(expected).max())
    plain = er.Trainer(er.build(module, x, batch_size=8)).predict(x)
    assert np.abs(got - plain).max() > 1e-3 * np.abs(plain).max()


@pytest.mark.parametrize(
    ("name", "activations"),
    # Not tied with activations: what its branches add is rounded before they are added by one of the two alone.
    [*((name, False) for name in ("digits", "gru", "tied")), ("digits", True), ("gru", True), ("lenet", True)],
)
def test_a_step_is_that_of_pytorchs_own_rounding(name: str, activations: bool) -> None:
    """One SGD step of rate 1, so that the difference of the weights is the gradient."""
    x, y = batch(name, 16)
    program = er.build(made(name), x, batch_size=16, optimizer=er.SGD(lr=1.0), qat_bits=3, qat_activations=activations)
    ours = er.Trainer(program)
    theirs = TorchTrainer(made(name), optimizer=er.SGD(lr=1.0), qat_bits=3, qat_activations=activations)
    before = ours.state_dict()
    assert ours.step(x, y) == pytest.approx(theirs.step(x, y), rel=1e-3 if activations else 1e-5)
    moved, expected = ours.state_dict(), theirs.state_dict()
    assert list(moved) == list(expected) == list(made(name).state_dict())
    for one, content in expected.items():
        gradient = before[one] - content
        # A value half a step from the grid lands elsewhere for a difference in the last place.
        error = np.linalg.norm(before[one] - moved[one] - gradient) / (np.linalg.norm(gradient) + 1e-7)
        assert error < (2e-2 if activations else 1e-5), one


def test_the_gradient_goes_through_as_if_nothing_were_rounded() -> None:
    """Of a single layer: that of the squared error at the rounded weight, given to the weight itself."""
    torch.manual_seed(0)
    module, x, y = nn.Linear(6, 4, bias=False), torch.randn(5, 6), torch.randn(5, 4)
    w = module.weight.detach().clone()
    trainer = er.Trainer(
        er.build(module, x, loss="mse", batch_size=5, optimizer=er.SGD(lr=1.0), qat_bits=2, qat_activations=False)
    )
    trainer.step(x.numpy(), y.numpy())
    rounded = torch.tensor(deployed.weight_quant(w.numpy(), 2).round(w.numpy()), requires_grad=True)
    functional.mse_loss(x @ rounded.T, y).backward()
    np.testing.assert_allclose(w.numpy() - trainer.state_dict()["weight"], rounded.grad, atol=1e-6)


def test_weights_stay_float_and_some_move_by_less_than_a_step() -> None:
    x, y = batch("digits", 16)
    trainer = er.Trainer(er.build(made("digits"), x, batch_size=16, qat_bits=2, optimizer=er.SGD(lr=1e-4)))
    before = trainer.state_dict()
    trainer.step(x, y)
    for name, one in trainer.state_dict().items():
        assert np.array_equal(one.shape, before[name].shape)
        assert 0 < np.abs(one - before[name]).max() < 1e-2
        assert name.endswith("bias") or len(np.unique(one[0])) > 3


@pytest.mark.parametrize("name", ["lenet", "gru"])
def test_every_isa_and_number_of_threads_rounds_alike(name: str) -> None:
    x, y = batch(name, 8)
    program = er.build(made(name), x, batch_size=8, qat_bits=4)
    for isa in native.isas():
        native.select_isa(isa)
        found = set()
        for threads in (1, 2, 5):
            trainer = er.Trainer(program, threads=threads)
            found.add((trainer.step(x, y), trainer.step(x, y)))
        assert len(found) == 1


def test_a_budget_changes_no_bit_and_does_not_split_a_batch() -> None:
    x, y = batch("lenet", 16)
    losses = set()
    free = er.build(made("lenet"), x, batch_size=16, qat_bits=4, qat_activations=True)
    for budget in (free.peak_bytes, int(free.peak_bytes * 0.9), int(free.peak_bytes * 0.885)):
        program = er.build(made("lenet"), x, batch_size=16, qat_bits=4, memory_budget=budget)
        assert program.micro_batch == 16
        trainer = er.Trainer(program)
        losses.add((trainer.step(x, y), trainer.step(x, y), trainer.state_dict()["c1.weight"].tobytes()))
    assert len(losses) == 1
    with pytest.raises(BudgetError, match="qat_activations=False, which lets a batch be split"):
        er.build(made("lenet"), x, batch_size=64, qat_bits=4, memory_budget=free.peak_bytes)
    program = er.build(
        made("lenet"), x, batch_size=64, qat_bits=4, qat_activations=False, memory_budget=free.peak_bytes
    )
    assert program.micro_batch < 64


def test_padding_of_a_short_batch_has_no_part_in_a_range() -> None:
    x, y = batch("lenet", 5)
    short, whole = (er.Trainer(er.build(made("lenet"), x, batch_size=size, qat_bits=8)) for size in (5, 8))
    big = 1e3 * np.ones((8, 1, 28, 28), np.float32)
    whole.step(big, np.zeros(8, np.int64))  # leaves large numbers where the padding will be
    whole.load_state_dict(short.state_dict())
    assert whole.step(x, y) == pytest.approx(short.step(x, y), rel=1e-6)


def test_prediction_of_an_example_does_not_depend_on_the_others() -> None:
    x = inputs("lenet", 8)
    x[1:] *= 100
    trainer = er.Trainer(er.build(made("lenet"), x, batch_size=8, qat_bits=8))
    assert np.array_equal(trainer.predict(x)[:1], trainer.predict(x[:1]))


def test_bits_by_weight_name() -> None:
    x = inputs("lenet", 2)
    graph = capture_model(made("lenet"), x).forward(2)
    bits = {
        node.inputs[0]: node.attributes["bits"]
        for node in with_fake_quant(graph, {"f1.weight": 4}, False).nodes
        if node.op == "fake_quant_weight"
    }
    assert bits == {"c1.weight": 8, "c2.weight": 8, "f1.weight": 4, "f2.weight": 8, "f3.weight": 8}
    for build in (
        lambda bits: er.build(made("lenet"), x, qat_bits=bits),
        lambda bits: TorchTrainer(made("lenet"), qat_bits=bits),
    ):
        with pytest.raises(ConfigError, match=r"f1.bias is no weight of a layer; there are c1.weight, c2.weight"):
            build({"f1.bias": 4})
        with pytest.raises(ConfigError, match=r"bits of c1.weight = 9: must be from 2 to 8"):
            build({"c1.weight": 9})
        with pytest.raises(ConfigError, match=r"bits of c1.weight = 1: must be from 2 to 8"):
            build(1)


def test_explain_says_that_it_rounds_and_that_parts_of_a_batch_have_ranges_of_their_own() -> None:
    x = inputs("digits", 4)
    whole = er.build(made("digits"), x, batch_size=4, qat_bits={"conv.weight": 4}).explain()
    assert "note        computes with weights rounded to 4, 8 bits" in whole
    assert "micro-batches" not in whole
    parts = er.build(made("digits"), x, batch_size=4, micro_batch=2, qat_bits=8).explain()
    assert "note        rounding of activations sees micro-batches: not what the whole batch would give" in parts


def test_adapters_are_refused() -> None:
    with pytest.raises(ConfigError, match="qat_bits: must be 0 with a lora_rank"):
        er.build(made("lenet"), inputs("lenet", 2), qat_bits=8, lora_rank=2)


def test_off_is_the_program_of_before() -> None:
    x = inputs("digits", 4)
    plain = er.build(made("digits"), x)
    assert plain.to_bytes() == er.build(made("digits"), x, qat_bits=0).to_bytes()
    ops = {op.name for phase in plain.phases for op in phase.ops}
    assert not {"fake_quant", "fake_quant_weight"} & ops


def test_a_program_with_rounding_survives_its_file() -> None:
    program = er.build(made("digits"), inputs("digits", 4), batch_size=4, qat_bits=4)
    again = er.Program.from_bytes(program.to_bytes())
    x, y = batch("digits", 4)
    assert er.Trainer(again).step(x, y) == er.Trainer(program).step(x, y)


def test_pytorchs_recurrent_layers_see_their_weights_rounded() -> None:
    """They keep a list of their weights beside the parameters."""
    torch.manual_seed(0)
    gru, x = nn.GRU(4, 4, batch_first=True), torch.randn(2, 3, 4)
    expected = nn.GRU(4, 4, batch_first=True)
    with torch.no_grad():
        for name, one in expected.named_parameters():
            source = getattr(gru, name)
            one.copy_(torch.tensor(deployed.weight_quant(source.numpy(force=True), 2).round(source.numpy(force=True))))
            if name.startswith("bias"):
                one.copy_(source)
    rounding = Rounding(gru, 2, activations=False)
    torch.testing.assert_close(rounding(x), expected(x))
    rounding(x)[0].sum().backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in gru.parameters())
    torch.testing.assert_close(rounding(x), expected(x))


@pytest.mark.parametrize("kind", ["engine", "torch"])
def test_two_bits_fail_without_and_hold_with_it(kind: str) -> None:
    """A small network on real digits, judged as it is deployed: 2-bit weights, 8-bit activations."""
    data = DataConfig(name="digits", clients=1, partition="iid")
    train, test = DIGITS.client_split(data, 1, 0), DIGITS.test_split(data, 1)

    def fitted(bits: int, epochs: int, start: State | None) -> State:
        torch.manual_seed(0)
        module, rule = models.DigitsCNN(), er.Adam(lr=5e-3)
        trainer: LocalTrainer = TorchTrainer(module, optimizer=rule, qat_bits=bits)
        if kind == "engine":
            trainer = er.Trainer(er.build(module, train.x[:1], optimizer=rule, qat_bits=bits))
        if start is not None:
            trainer.load_state_dict(start)
        schedule = er.schedules.Cosine(steps=epochs * -(-len(train) // 32))
        trainer.fit(Batches(train, 32, np.random.default_rng(0)), epochs, schedule=schedule)
        return trainer.state_dict()

    def accuracy(state: State) -> float:
        model = fold(captured_model(models.DigitsCNN(), test.x, state))
        ranges = calibrate(model, [train.x[:100]])
        return float(
            (predict_rounded(deployed.quantise(model, ranges, weight_bits=2), test.x).argmax(1) == test.y).mean()
        )

    state = fitted(0, 10, None)
    assert accuracy(state) < 0.8
    assert accuracy(fitted(2, 6, state)) > 0.9
