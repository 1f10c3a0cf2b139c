"""What the engine computes is what PyTorch computes, at any budget and on any run; the pitfalls of static training.

The truth is PyTorch in float64. Gradients are read as the velocity after one step of SGD with momentum. Errors are
relative to the largest value of the model's gradients, whose float32 rounding is of that size. `benchmarks/
bench_engine_exactness.py` prints the figures, with those of PyTorch's own float32 beside them.
"""

from __future__ import annotations

import functools
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

import edge_runtime as er
from edge_runtime.capture.model import capture_model
from edge_runtime.engine import reference
from edge_runtime.engine.session import Session
from edge_runtime.errors import NumericsError
from edge_runtime.ir.graph import Graph
from edge_runtime.passes.training import Recipe, training_step
from edge_runtime.planner.assemble import assemble
from edge_runtime.planner.budget import Candidate, candidates, place
from simulations import models

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*deprecated.*:FutureWarning"
)  # torch.export calling torch.utils._pytree

Array = np.ndarray[Any, Any]
State = dict[str, Array]
MODELS = {
    "lenet": models.LeNet,
    "resnet8": models.ResNet8,
    "mbv2": models.MobileNetV2Small,
    "gru": lambda: models.CharGRU(80, 64, 64),
    "tfm": lambda: models.CharTransformer(80),
}
BATCHES = (1, 8, 32)
MOMENTUM = er.SGD(lr=0.01, momentum=0.9)


def make_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]()


def draw_batch(name: str, batch: int, generator: torch.Generator) -> tuple[Array, Array]:
    if name in ("gru", "tfm"):
        x, y = (torch.randint(0, 80, (batch, 64), generator=generator) for _ in range(2))
    else:
        x = torch.randn(batch, *((1, 28, 28) if name == "lenet" else (3, 32, 32)), generator=generator)
        y = torch.randint(0, 10, (batch,), generator=generator)
    return x.numpy(), y.numpy()


def batches(name: str, batch: int) -> Iterator[tuple[Array, Array]]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield draw_batch(name, batch, generator)


@functools.cache
def program(name: str) -> er.Program:
    """One Program for all batch sizes."""
    x, _ = next(batches(name, 2))
    return er.build(make_model(name), x, batch_size=BATCHES, optimizer=MOMENTUM)


def poisoned(built: er.Program) -> er.Trainer:
    """A trainer in an arena full of NaN."""
    trainer = er.Trainer(built)
    weights = trainer.state_dict()
    trainer._session = Session(built, poison=True)
    trainer.load_state_dict(weights)
    return trainer


class Exact:
    """PyTorch in float64, with the same SGD."""

    def __init__(self, module: nn.Module, optimizer: er.SGD) -> None:
        self.module = module.double()
        self._sgd = torch.optim.SGD(module.parameters(), lr=optimizer.lr, momentum=optimizer.momentum)

    def step(self, x: Array, y: Array) -> float:
        self._sgd.zero_grad()
        inputs = torch.from_numpy(x)
        output = self.module(inputs.double() if inputs.is_floating_point() else inputs)
        loss = functional.cross_entropy(output.reshape(-1, output.shape[-1]), torch.from_numpy(y).reshape(-1))
        loss.backward()
        self._sgd.step()
        return float(loss.item())

    def gradients(self) -> State:
        return {name: one.grad.numpy() for name, one in self.module.named_parameters() if one.grad is not None}

    def state(self) -> State:
        return {name: one.detach().numpy().copy() for name, one in self.module.state_dict().items()}


def error(found: State, true: State) -> float:
    """Largest difference over all tensors of `true`, in units of their largest value."""
    largest = max(float(np.abs(one).max()) for one in true.values())
    return max(float(np.abs(found[name] - one).max()) for name, one in true.items()) / largest


def velocities(trainer: er.Trainer, names: Any) -> State:
    snapshot = trainer.snapshot()
    return {name: snapshot[f"{name}/velocity"] for name in names}


# Gradients and trajectories.


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_pytorchs(name: str, batch: int) -> None:
    x, y = next(batches(name, batch))
    trainer, exact = poisoned(program(name)), Exact(make_model(name), MOMENTUM)
    assert trainer.step(x, y) == pytest.approx(exact.step(x, y), rel=1e-6)
    true = exact.gradients()
    assert error(velocities(trainer, true), true) <= 1e-5
    moved = exact.state()
    for name_, one in trainer.state_dict().items():  # weights, running statistics and counters
        np.testing.assert_allclose(one, moved[name_], rtol=1e-5, atol=1e-5 * max(1.0, np.abs(moved[name_]).max()))


@pytest.mark.parametrize("name", ["lenet", "gru", "tfm"])
def test_twenty_free_steps_stay_with_pytorch(name: str) -> None:
    trainer, exact = poisoned(program(name)), Exact(make_model(name), MOMENTUM)
    for _, (x, y) in zip(range(20), batches(name, 4), strict=False):
        assert trainer.step(x, y) == pytest.approx(exact.step(x, y), rel=1e-5)
    assert error(trainer.state_dict(), exact.state()) <= 1e-5


@pytest.mark.parametrize("name", ["resnet8", "mbv2"])
def test_twenty_steps_of_the_training_graph_in_float64_are_pytorchs(name: str) -> None:
    # In float32 these two part ways with float64 in PyTorch too: some ReLU of thousands sits at its kink.
    batch, module = 2, make_model(name)
    small = [(x[..., :24, :24].copy(), y) for _, (x, y) in zip(range(20), batches(name, batch), strict=False)]
    forward = capture_model(module, small[0][0]).forward(batch)
    names = [name_ for name_, _ in module.named_parameters()]
    graph, _ = training_step(forward, Recipe(er.CrossEntropy(), MOMENTUM, tuple(names)), batch)
    tensors: State = {name_: np.zeros(graph.values[name_].shape) for name_ in graph.state}
    tensors |= {name_: one.numpy().astype(np.float64) for name_, one in module.state_dict().items()}
    tensors |= {"rows": np.array([batch]), "norm.0": np.array([1 / batch]), "lr": np.array([MOMENTUM.lr])}
    data = next(one for one in graph.inputs if one not in (*tensors, "target.0"))
    exact = Exact(module, MOMENTUM)
    for x, y in small:
        after = reference.run(graph, {**tensors, data: x.astype(np.float64), "target.0": y})
        assert float(after[graph.outputs[0]][0]) == pytest.approx(exact.step(x, y), rel=1e-9)
        tensors |= {name_: after[name_] for name_ in graph.state}
    assert error(tensors, {k: v for k, v in exact.state().items() if k in graph.state}) <= 1e-9


class NearestKink(TorchFunctionMode):
    """While it is on: how near an input of ReLU or ReLU6 came to a kink, in units of the largest input."""

    def __init__(self) -> None:
        super().__init__()
        self.distance = math.inf

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for kink in {"relu": (0,), "relu6": (0, 6), "hardtanh": (0, 6)}.get(function.__name__, ()):
            x = args[0].detach()
            self.distance = min(self.distance, float((x - kink).abs().min() / x.abs().max()))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["resnet8", "mbv2"])
def test_each_of_twenty_steps_from_pytorchs_weights_moves_as_pytorch_does(name: str) -> None:
    """But where float32 takes the other side of a ReLU's kink, as it does in PyTorch."""
    trainer, exact, within = poisoned(program(name)), Exact(make_model(name), MOMENTUM), 0
    for _, (x, y) in zip(range(20), batches(name, 4), strict=False):
        # Both start from the same float32 numbers: rounding of weights must not count as an error of the step.
        shared = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in exact.state().items()}
        exact.module.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in shared.items()})
        trainer.load_state_dict(shared)
        with NearestKink() as kink:
            assert trainer.step(x, y) == pytest.approx(exact.step(x, y), rel=1e-5)
        true = exact.gradients()
        close = error(velocities(trainer, true), true) <= 1e-5
        assert close or kink.distance <= 1e-6
        within += close
        buffers = {k: v for k, v in exact.state().items() if "running" in k}
        assert error(trainer.state_dict(), buffers) <= 1e-5
    assert within >= 14


def test_lenet_trains_where_executorch_went_wrong() -> None:
    """Recycled memory under a scatter-add: c1's gradients were wrong at step 0, the loss at step 1, all at step 5."""
    module = make_model("lenet")
    plain = er.SGD(lr=0.01)
    x, y = next(batches("lenet", 8))
    trainer, exact = poisoned(er.build(module, x, batch_size=8, optimizer=plain)), Exact(module, plain)
    losses = [(trainer.step(x, y), exact.step(x, y)) for _ in range(10)]
    assert losses[0][0] == pytest.approx(2.347, abs=5e-4)
    assert losses[1][0] == pytest.approx(2.344, abs=5e-4)
    for ours, true in losses:
        assert ours == pytest.approx(true, rel=1e-6)
    for name in ("c1.weight", "c1.bias"):
        np.testing.assert_allclose(trainer.state_dict()[name], exact.state()[name], atol=1e-6)


# Plans.


def plans(module: nn.Module, x: Array, batch: int) -> Iterator[tuple[Candidate, er.Program]]:
    """Every plan that the planner considers, the best ones and the others; with train-mode batch norm, unsplit."""
    model = capture_model(module, x)
    whole = any(node.op == "batch_norm" for node in model.forward(batch).nodes)
    sizes = (batch,) if whole else (batch, batch // 2, 1)
    recipe = Recipe(er.CrossEntropy(), MOMENTUM, model.trainable)
    for one in candidates(model.forward, model.predict, recipe, model.state, [batch], sizes):
        placed = place(one)
        yield one, assemble(placed, [placed], 0, batch, model)


def trained(built: er.Program, name: str, batch: int, steps: int = 3) -> tuple[list[float], State]:
    trainer = poisoned(built)
    losses = [trainer.step(x, y) for _, (x, y) in zip(range(steps), batches(name, batch), strict=False)]
    assert trainer._session.touched_bytes() <= built.peak_bytes
    return losses, trainer.snapshot()


@pytest.mark.parametrize("name", MODELS)
def test_every_plan_gives_the_same_bits(name: str) -> None:
    batch = 4
    x, _ = next(batches(name, batch))
    kinds = set()
    first: tuple[list[float], State] | None = None
    for plan, built in plans(make_model(name), x, batch):
        losses, state = trained(built, name, batch)
        if first is None:
            first = losses, state
            again = trained(built, name, batch)
            assert again[0] == losses
            assert all(np.array_equal(again[1][key], one) for key, one in state.items())
        kinds.add((plan.name, plan.micro_batch))
        if plan.micro_batch == batch:
            assert losses == first[0], plan.name
            for key, one in first[1].items():
                np.testing.assert_array_equal(state[key], one, err_msg=f"{key} under {plan.name!r}")
        else:  # another order of sums
            np.testing.assert_allclose(losses, first[0], rtol=1e-5)
            weights = {key: one for key, one in first[1].items() if key in built.state_dict_order}
            assert error(state, weights) <= 1e-5, plan.name
    assert len(kinds) >= 3


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.SiLU(), nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.GELU(),
            nn.Flatten(), nn.LazyLinear(3),
        )  # fmt: skip
        self.body(torch.randn(2, 2, 10, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.body(x)
        return y


def step_graph(plan: Candidate) -> Graph:
    return plan.phases[0].graph


def test_batch_norm_statistics_move_once_however_often_it_is_recomputed() -> None:
    torch.manual_seed(0)
    module = Normed()
    x, y = torch.randn(5, 2, 10, 10).numpy(), np.array([0, 1, 2, 0, 1])
    recomputed = 0
    found = list(plans(module, x, 5))
    exact = Exact(module, MOMENTUM)
    exact.step(x, y)
    true = exact.state()
    for plan, built in found:
        ops = [node.op for node in step_graph(plan).nodes]
        assert ops.count("batch_norm") == ops.count("running_stats") == 3
        recomputed += ops.count("batch_norm_apply")
        trainer = poisoned(built)
        trainer.step(x, y)
        for key, one in trainer.state_dict().items():
            if "running" in key or "tracked" in key:
                np.testing.assert_allclose(one, true[key], rtol=1e-5, atol=1e-7)
    assert recomputed


def test_the_place_in_a_pools_window_is_one_byte() -> None:
    graph = step_graph(next(plans(make_model("lenet"), next(batches("lenet", 4))[0], 4))[0])
    places = [node.outputs[1] for node in graph.nodes if node.op == "max_pool2d"]
    assert len(places) == 2
    assert all(graph.values[name].dtype == "u8" for name in places)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.qkv, self.out = nn.Embedding(7, 4), nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.table(x)).chunk(3, -1)
        y: torch.Tensor = self.out(functional.scaled_dot_product_attention(q, k, v, is_causal=True))
        return y


def test_attention_stores_no_scores() -> None:
    batch, length = 2, 256
    scores_bytes = 4 * length * length  # of one row of the batch
    for plan, built in plans(Attention(), np.zeros((batch, length), np.int64), batch):
        for phase in plan.phases:
            assert all(buffer.nbytes < scores_bytes for buffer in phase.lifetimes.buffers)
        assert plan.micro_batch < batch or built.peak_bytes - built.state_bytes < batch * scores_bytes


def test_nothing_is_computed_below_the_lowest_trained_layer() -> None:
    x, _ = next(batches("resnet8", 2))
    model = capture_model(make_model("resnet8"), x)
    forward = model.forward(2)

    def ops(*trainable: str) -> list[str]:
        graph, _ = training_step(forward, Recipe(er.CrossEntropy(), MOMENTUM, trainable), 2)
        return [node.op for node in graph.nodes]

    every = ops(*model.trainable)
    assert every.count("conv2d_dw") == every.count("conv2d") == 9
    assert every.count("conv2d_dx") == 8  # not for the first
    head = ops("out.weight", "out.bias")
    assert not {"conv2d_dx", "conv2d_dw", "linear_dx", "batch_norm_grad"} & set(head)
    assert head.count("linear_dw") == 1
    last = ops("blocks.2.conv2.weight", "out.weight")
    assert (last.count("conv2d_dx"), last.count("conv2d_dw")) == (0, 1)


# No heap.

HOOK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
static char *first, *last;
static long calls;
void watch(char *start, char *end) { first = start; last = end; calls = 0; }
long counted(void) { return calls; }
#define COUNT { char *from = __builtin_return_address(0); if (from >= first && from < last) calls++; }
#define REAL(kind, name, ...) static kind (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, name)
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
void *malloc(size_t n) { COUNT return __libc_malloc(n); }
void *calloc(size_t n, size_t m) { COUNT return __libc_calloc(n, m); }
void *realloc(void *p, size_t n) { COUNT return __libc_realloc(p, n); }
void *aligned_alloc(size_t a, size_t n) { COUNT return __libc_memalign(a, n); }
void *mmap(void *a, size_t n, int p, int f, int d, long o)
{ COUNT REAL(void *, "mmap", void *, size_t, int, int, int, long); return real(a, n, p, f, d, o); }
"""
COUNT_CALLS = """
import ctypes, sys
import numpy as np
import edge_runtime as er
from edge_runtime.engine.session import Session
hook, path, batch = ctypes.CDLL(sys.argv[1]), sys.argv[2], int(sys.argv[3])
hook.watch.argtypes, hook.counted.restype = [ctypes.c_void_p] * 2, ctypes.c_long
program = er.Program.load(path)
trainer = er.Trainer(program)
spans = [line.split()[0].split("-") for line in open("/proc/self/maps") if "libhedgerow_core" in line]
hook.watch(min(int(a, 16) for a, _ in spans), max(int(b, 16) for _, b in spans))
session = Session(program)
created = hook.counted()
data = np.load(sys.argv[4])
for _ in range(3):
    trainer.step(data["x"], data["y"])
print(created, hook.counted() - created)
"""


@pytest.mark.skipif(shutil.which("cc") is None or sys.platform != "linux", reason="needs a C compiler and glibc")
@pytest.mark.parametrize("name", MODELS)
def test_a_step_allocates_nothing_in_the_core(name: str, tmp_path: Path) -> None:
    library = tmp_path / "hook.so"
    (tmp_path / "hook.c").write_text(HOOK)
    subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", library, tmp_path / "hook.c", "-ldl"], check=True)
    path = program(name).save(tmp_path / "program")
    x, y = next(batches(name, 8))
    np.savez(tmp_path / "data.npz", x=x, y=y)
    command = [sys.executable, "-P", "-c", COUNT_CALLS, library, path, "8", tmp_path / "data.npz"]
    done = subprocess.run(
        list(map(str, command)), env={"LD_PRELOAD": str(library)}, check=True, capture_output=True, text=True
    )
    created, in_steps = map(int, done.stdout.split())
    assert created > 0  # the hook does see what the core allocates when a session is made
    assert in_steps == 0


# What is not finite.


def two_layers() -> er.Program:
    module = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    return er.build(module, torch.zeros(2, 1), loss="mse", batch_size=2, optimizer=er.SGD(lr=0.1))


def filled(trainer: er.Trainer, *values: float) -> State:
    state = {name: np.full_like(one, value) for (name, one), value in zip(trainer.state_dict().items(), values)}  # noqa: B905
    trainer.load_state_dict(state)
    return state


def assert_bits(trainer: er.Trainer, state: State) -> None:
    for name, one in trainer.state_dict().items():
        assert one.tobytes() == state[name].tobytes(), name


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_nan_in_the_data_is_reported_at_its_step_and_moves_nothing(bad: float) -> None:
    trainer = er.Trainer(two_layers())
    trainer.step(np.ones((2, 1), np.float32), np.ones((2, 1), np.float32))
    before = trainer.state_dict()
    with pytest.raises(NumericsError, match=r"step 1: .*row 1"):
        trainer.step(np.array([[1], [bad]], np.float32), np.ones((2, 1), np.float32))
    assert_bits(trainer, before)
    assert trainer.steps == 1


@pytest.mark.parametrize("checked", [False, True])
def test_an_infinite_loss_is_reported_before_any_weight_moves(checked: bool) -> None:
    trainer = er.Trainer(two_layers(), check_numerics=checked)
    before = filled(trainer, 1e30, 0, 1e30, 0)
    with pytest.raises(NumericsError, match="step 0: the loss is NaN or infinite") as caught:
        trainer.step(np.ones((2, 1), np.float32), np.zeros((2, 1), np.float32))
    assert_bits(trainer, before)
    assert trainer.steps == 0
    assert ("first such value is made by linear" in str(caught.value)) == checked


def test_an_infinite_gradient_names_its_op_and_is_undone_when_checked() -> None:
    # z = 1e30 (0 x + 0) is finite, and so is the loss; dL/dw of the first layer is 1e30 x 1e10.
    x, y = np.full((2, 1), 1e10, np.float32), np.ones((2, 1), np.float32)
    plain, checked = er.Trainer(two_layers()), er.Trainer(two_layers(), check_numerics=True)
    before = filled(plain, 0, 0, 1e30, 0)
    with pytest.raises(NumericsError, match="step 0: a gradient is NaN or infinite"):
        plain.step(x, y)
    filled(checked, 0, 0, 1e30, 0)
    with pytest.raises(NumericsError, match="the first such value is made by linear_dw"):
        checked.step(x, y)
    assert_bits(checked, before)
    assert checked.steps == 0
