"""Low-rank adapters: a model that starts as it was, trains as PyTorch says, and merges back into an ordinary one."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import edge_runtime as er
from edge_runtime.capture.adapters import with_adapters
from edge_runtime.cli import main
from edge_runtime.errors import ConfigError, UnsupportedOpError
from simulations import models

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning"),  # torch.export in torch.utils._pytree
    pytest.mark.filterwarnings("ignore:.*does not have a deterministic:UserWarning"),
]

CLASSES = 4


def seeded(make):
    torch.manual_seed(0)
    return make()


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 10, bias=False), nn.ReLU(), nn.Linear(10, CLASSES))


def pointwise() -> nn.Module:
    """1x1 convolutions with stride, padding and no bias; a 3x3 one, and norms, which have no adapters."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 1, stride=2, padding=1),
        nn.GELU(), nn.Conv2d(12, 8, 1, bias=False), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(200, CLASSES),
    )  # fmt: skip


def sequence() -> nn.Module:
    return nn.Sequential(models.TransformerBlock(8, 2), nn.Flatten(), nn.Linear(40, CLASSES))


SHAPES = {mlp: (12,), pointwise: (3, 7, 7), sequence: (5, 8)}
every_model = pytest.mark.parametrize("make", SHAPES)


def batch(make, rows: int = 8) -> tuple[np.ndarray, np.ndarray]:
    return drawn((rows, *SHAPES[make]))


def drawn(shape) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal(shape).astype(np.float32), rng.integers(0, CLASSES, shape[0])


def trained_names(program: er.Program) -> set[str]:
    return {one.tensor.name for one in program.state if one.trained and one.role == "weight"}


def moved_names(module: nn.Module) -> set[str]:
    return {name for name, one in module.named_parameters() if one.requires_grad}


def arrays(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy().copy() for name, tensor in module.state_dict().items()}


def stirred(module: nn.Module) -> nn.Module:
    """The same module with random adapters, so that both of each pair have a gradient."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    return module


@every_model
def test_a_model_starts_as_it_was_and_is_left_as_it_is(make):
    module = seeded(make).eval()
    before, tensors = list(module.state_dict()), arrays(module)
    other = with_adapters(module, 2)
    x = torch.from_numpy(batch(make)[0])
    with torch.no_grad():
        np.testing.assert_array_equal(other(x).numpy(), module(x).numpy())
    assert list(module.state_dict()) == before
    assert all(one.requires_grad for one in module.parameters())
    for name, value in tensors.items():
        np.testing.assert_array_equal(other.state_dict()[name].numpy(), value)


@every_model
def test_the_forward_pass_is_that_of_the_merged_weights(make):
    module = seeded(make).eval()
    other = stirred(with_adapters(module, 3, alpha=5.0))
    merged = er.merge_adapters(arrays(other), alpha=5.0)
    assert list(merged) == list(module.state_dict())
    module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in merged.items()}, strict=True)
    x = torch.from_numpy(batch(make)[0])
    with torch.no_grad():
        np.testing.assert_allclose(module(x).numpy(), other(x).numpy(), rtol=1e-5, atol=1e-5)


@every_model
def test_gradients_are_those_of_the_merged_weight(make):
    """With W' = W + s B A: dA = s B' dW', dB = s dW' A', where dW' comes from PyTorch's own layers."""
    rank, alpha = 2, 3.0
    module = seeded(make)
    other = stirred(with_adapters(module, rank, alpha))
    merged = er.merge_adapters(arrays(other), alpha=alpha)
    module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in merged.items()})
    x, y = map(torch.from_numpy, batch(make))
    for one in (module, other):
        functional.cross_entropy(one(x), y).backward()
    plain, got = dict(module.named_parameters()), dict(other.named_parameters())
    layers = [name.removesuffix("lora_A") for name in got if name.endswith("lora_A")]
    assert layers
    for layer in layers:
        a, b = (got[layer + name].detach().flatten(1) for name in ("lora_A", "lora_B"))
        dw = plain[f"{layer}weight"].grad.flatten(1)
        assert got[f"{layer}weight"].grad is None
        for name, expected in (("lora_A", b.T @ dw), ("lora_B", dw @ a.T)):
            found = got[layer + name].grad.flatten(1)
            np.testing.assert_allclose(found, alpha / rank * expected, rtol=1e-4, atol=1e-6)


@every_model
@pytest.mark.parametrize("settings", [{}, {"lora_alpha": 4.0}, {"trainable": ["*.bias"]}])
def test_the_engine_trains_them_as_pytorch_does(make, settings):
    module = seeded(make)
    x, y = batch(make)
    torch.manual_seed(3)
    program = er.build(module, x, batch_size=8, optimizer=er.SGD(0.1, momentum=0.9), lora_rank=2, **settings)
    torch.manual_seed(3)
    other = with_adapters(module, 2, settings.get("lora_alpha"), settings.get("trainable"))
    trainer, rival = er.Trainer(program), er.TorchTrainer(copy.deepcopy(other), optimizer=er.SGD(0.1, momentum=0.9))
    assert list(trainer.state_dict()) == list(rival.state_dict())
    assert trained_names(program) == moved_names(other)
    start = trainer.state_dict()
    for _ in range(6):
        np.testing.assert_allclose(trainer.step(x, y), rival.step(x, y), rtol=1e-5, atol=1e-6)
    state = trainer.state_dict()
    buffers = trainer.buffer_names()
    for name, value in rival.state_dict().items():
        np.testing.assert_allclose(state[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
        assert np.array_equal(state[name], start[name]) != (name in trained_names(program) | buffers), name
    merged = er.merge_adapters(state, alpha=settings.get("lora_alpha"))
    module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in merged.items()}, strict=True)
    with torch.no_grad():
        np.testing.assert_allclose(module.eval()(torch.from_numpy(x)), trainer.predict(x), rtol=1e-4, atol=1e-4)


def test_what_trains_is_all_but_the_weights_that_have_adapters():
    names = moved_names(with_adapters(models.lenet(), 4))
    adapters = {f"f{k}.{name}" for k in (1, 2) for name in ("lora_A", "lora_B")}
    rest = {name for name, _ in models.lenet().named_parameters()} - {"f1.weight", "f2.weight"}
    assert names == adapters | rest
    assert moved_names(with_adapters(models.lenet(), 4, trainable="auto")) == names


def test_named_tensors_train_beside_the_adapters_and_no_others():
    adapters = {f"f{k}.{name}" for k in (1, 2) for name in ("lora_A", "lora_B")}
    for trainable, more in (
        (["f3.*"], {"f3.weight", "f3.bias"}), ("f1.weight", {"f1.weight"}), ("*.lora_*", set()), ([], set()),
    ):  # fmt: skip
        assert moved_names(with_adapters(models.lenet(), 4, trainable=trainable)) == adapters | more
    with pytest.raises(ConfigError, match=r"trainable = 'c9': fits no parameter; there are c1\.weight"):
        with_adapters(models.lenet(), 4, trainable=["c9"])


def test_what_was_frozen_rests_beside_the_adapters():
    module = models.lenet().requires_grad_(False)
    assert moved_names(with_adapters(module, 4)) == {f"f{k}.{name}" for k in (1, 2) for name in ("lora_A", "lora_B")}


def test_a_layer_smaller_than_its_adapters_trains_in_full():
    module = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 30), nn.Linear(30, 2))
    # 2 (4 + 6) < 24 and 2 (6 + 30) < 180; at rank 3 the first layer would gain nothing, at 5 neither would.
    assert "0.lora_A" in moved_names(with_adapters(module, 2))
    names = moved_names(with_adapters(module, 3))
    assert {"0.weight", "1.lora_A"} <= names
    assert not {"0.lora_A", "1.weight"} & names
    with pytest.raises(ConfigError, match=r"lora_rank = 5: .* use a lower rank"):
        with_adapters(module, 5)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.inner = nn.Linear(16, 16)
        self.tied = nn.Linear(16, 20, bias=False)
        self.tied.weight = self.embedding.weight
        self.out = nn.Linear(20, CLASSES)

    def forward(self, x):
        return self.out(self.tied(self.inner(self.embedding(x)))).mean(1)


def test_tied_weights_have_none_for_merging_would_move_both():
    names = moved_names(with_adapters(Tied(), 2))
    assert {"inner.lora_A", "embedding.weight"} <= names
    assert not {"tied.lora_A", "inner.weight"} & names


class Twice(nn.Module):
    """One layer that runs twice, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 12)
        self.second = self.first
        self.out = nn.Linear(12, CLASSES)

    def forward(self, x):
        return self.out(self.second(torch.tanh(self.first(x))))


def test_a_layer_that_runs_twice_has_adapters_once():
    module = seeded(Twice)
    x, y = drawn((8, 12))
    torch.manual_seed(3)
    trainer = er.Trainer(er.build(module, x, batch_size=8, lora_rank=2))
    torch.manual_seed(3)
    rival = er.TorchTrainer(with_adapters(module, 2))
    for _ in range(3):
        np.testing.assert_allclose(trainer.step(x, y), rival.step(x, y), rtol=1e-5)
    state = trainer.state_dict()
    for name, value in rival.state_dict().items():
        np.testing.assert_allclose(state[name], value, rtol=1e-5, atol=1e-6)
    merged = er.merge_adapters(state)
    assert list(merged) == list(module.state_dict())
    np.testing.assert_array_equal(merged["first.weight"], merged["second.weight"])


def test_pytorchs_own_composite_layers_have_none():
    encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    module = nn.Sequential(nn.Linear(8, 8), encoder, nn.Flatten(), nn.Linear(40, CLASSES))
    assert {name for name in moved_names(with_adapters(module, 2)) if "lora_" in name} == {"0.lora_A", "0.lora_B"}


class ReadsTheWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(12, 12)
        self.out = nn.Linear(12, CLASSES)

    def forward(self, x):
        return self.out(functional.linear(x, self.hidden.weight))


def test_a_model_that_passes_its_adapters_by_is_refused():
    with pytest.raises(UnsupportedOpError, match=r"uses hidden\.weight without calling its layer"):
        er.build(ReadsTheWeight(), np.zeros((2, 12), np.float32), lora_rank=2)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"lora_rank": -1}, "lora_rank = -1"),
        ({"lora_rank": 1.5}, "lora_rank = 1.5"),
        ({"lora_rank": 2, "lora_alpha": 0.0}, "lora_alpha = 0.0"),
        ({"lora_rank": 2, "lora_alpha": float("nan")}, "lora_alpha = nan"),
    ],
)
def test_a_rank_or_alpha_outside_its_range_is_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        er.build(seeded(mlp), np.zeros((2, 12), np.float32), **settings)


@pytest.mark.parametrize("make", [models.lenet, models.mlp])
def test_a_plan_with_adapters_needs_less_memory(make):
    """Resting weights need no gradient and no moment."""
    x = np.zeros((1, 1, 28, 28), np.float32)
    full, adapted = (
        er.build(make(), x, batch_size=8, optimizer=er.SGD(0.1, momentum=0.9), lora_rank=rank) for rank in (0, 4)
    )
    sizes = {one.tensor.name: int(np.prod(one.tensor.shape)) for one in adapted.state}
    resting = [name for name in adapted.state_dict_order if name not in trained_names(adapted)]
    assert resting
    assert not {f"{name}/velocity" for name in resting} & sizes.keys()
    moments = sum(4 * sizes[name] for name in resting)
    added = sum(2 * 4 * sizes[name] for name in adapted.state_dict_order if "lora_" in name)
    assert full.peak_bytes - adapted.peak_bytes > moments - added > 0
    shown = next(line for line in adapted.explain().splitlines() if line.startswith("trained"))
    assert "lora_A" in shown
    assert not any(name in shown for name in resting)


def test_a_budget_may_leave_some_adapters_out():
    module, x = seeded(pointwise), batch(pointwise)[0]  # its batch norm keeps the planner from splitting the batch
    settings = {"batch_size": 8, "optimizer": er.Adam(), "lora_rank": 2, "trainable": "auto"}
    free = er.build(module, x, **settings)
    smallest = min(point.peak_bytes for point in free.report.curve)
    tight = er.build(module, x, memory_budget=smallest - 1, **settings)
    assert tight.peak_bytes < smallest
    assert trained_names(tight) < trained_names(free)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.floats(0.1, 100), st.booleans(), st.integers(0, 99))
def test_merging_adds_the_scaled_product(rank, outputs, inputs, alpha, convolution, seed):
    rng = np.random.default_rng(seed)
    shapes = {"n.bias": (outputs,), "x.lora_B": (2, 2), "n.weight": (outputs, inputs), "n.lora_A": (rank, inputs)}
    shapes |= {"n.lora_B": (outputs, rank), "my_lora_A": (3,)}
    if convolution:
        shapes |= {f"n.{part}": (*shapes[f"n.{part}"], 1, 1) for part in ("weight", "lora_A", "lora_B")}
    state = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    merged = er.merge_adapters(state, alpha=alpha)
    assert list(merged) == ["n.bias", "x.lora_B", "n.weight", "my_lora_A"]
    w, a, b = (torch.from_numpy(state[f"n.{part}"]).double().flatten(1) for part in ("weight", "lora_A", "lora_B"))
    expected = (w + alpha / rank * b @ a).float().reshape(state["n.weight"].shape)
    assert merged["n.weight"].dtype == np.float32
    np.testing.assert_allclose(merged["n.weight"], expected, rtol=1e-6, atol=1e-6)
    for name in ("n.bias", "x.lora_B", "my_lora_A"):
        assert merged[name] is state[name]


def test_a_layer_alone_merges_under_its_bare_names():
    state = {"weight": np.zeros((3, 2), np.float32), "lora_A": np.ones((1, 2)), "lora_B": np.ones((3, 1))}
    assert er.merge_adapters(state)["weight"].tolist() == [[1.0, 1.0]] * 3


def test_the_command_line_plans_with_adapters(capsys):
    arguments = ["explain", "digits_cnn", "--input", "1x8x8", "--batch-size", "4"]
    assert main([*arguments, "--lora-rank", "2"]) == 0
    assert "hidden.lora_A, hidden.lora_B, out.weight" in capsys.readouterr().out
    assert main([*arguments, "--lora-rank", "99"]) == 2
    assert "lora_rank = 99" in capsys.readouterr().err
