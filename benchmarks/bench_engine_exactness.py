"""How exact the engine's training is: gradients and trajectories against PyTorch in float64, bits against itself.

The truth is PyTorch in float64; PyTorch's own float32 is measured against it in the same way and stands beside. A
gradient error is the largest difference over all tensors, in units of the model's largest gradient; a weight error the
same with weights. The engine runs in an arena filled with NaN. Cells above 1e-5 say OVER.

1. Ops: one small module per family, one step with momentum, whose velocity is the gradient.
2. Models: gradients of the first step; 20 free steps with new data each, by the largest relative difference of the loss
   and by the weights at the end; 20 steps that each start from PyTorch's own weights (rounded to float32 for both), by
   the worst and the median gradient error. Models with ReLU part ways with float64 in float32, PyTorch's too: one of
   their activations always sits at the kink, and rounding decides its side.
3. Bits: weights and losses after three steps under every plan of the planner, and on a second run.

Models, weights and data: five of `simulations.models` after torch.manual_seed(0); standard normal x or tokens below 80.
Each model is a process of its own, on one thread.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from processes import ONE_THREAD
from torch import nn
from torch.nn import functional

import edge_runtime as er
from edge_runtime.capture.model import capture_model
from edge_runtime.engine.session import Session
from edge_runtime.passes.training import Recipe
from edge_runtime.planner.assemble import assemble
from edge_runtime.planner.budget import candidates, place
from simulations import models

MODELS: dict[str, Callable[[], nn.Module]] = {
    "lenet": models.LeNet,
    "resnet8": models.ResNet8,
    "mbv2": models.MobileNetV2Small,
    "gru": lambda: models.CharGRU(80, 64, 64),
    "tfm": lambda: models.CharTransformer(80),
}
LIMIT = 1e-5
OPTIMIZER = er.SGD(lr=0.01, momentum=0.9)

Array = np.ndarray[Any, Any]
State = dict[str, Array]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=1, help="processes per model; the worst error counts")
    parser.add_argument("--steps", type=int, default=20, help="of trajectories")
    parser.add_argument("--no-ops", action="store_true")
    parser.add_argument("--child", nargs=4, metavar=("WHAT", "MODEL", "BATCH", "STEPS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        what, model, batch, steps = options.child
        torch.set_num_threads(1)
        print(json.dumps(CHILDREN[what](model, int(batch), int(steps))))
        return
    if not options.no_ops:
        print("1. Gradient error per op, against PyTorch float64")
        print(f"   {'op':28} {'ours':>12} {'torch float32':>13}")
        for name, (ours, theirs) in fresh("ops", "-", 4, 1).items():
            print(f"   {name:28} {cell(ours)} {theirs:13.1e}")
    titles = ("grad", "grad t32", "free loss", "loss t32", "free w", "w t32", "forced worst", "forced median", "f. t32")
    print(f"\n2. Models, against PyTorch float64 ({options.steps} steps); t32: PyTorch float32 by the same measure")
    print(f"   {'model':8} {'batch':>5} " + " ".join(f"{title:>13}" for title in titles))
    for name in options.models:
        for batch in options.batches:
            rows = [fresh("model", name, batch, options.steps) for _ in range(options.repeats)]
            row = {key: max(one[key] for one in rows) for key in rows[0]}
            ours = [cell(row[key]) if "t32" not in key else f"{row[key]:13.1e}" for key in titles]
            print(f"   {name:8} {batch:5} " + " ".join(ours))
    print(
        "\n3. Bits after 3 steps: plans with equal losses and weights / plans that do not split the batch; the second"
    )
    print("   run; and the largest weight error of plans that do split it, against the one that does not")
    print(f"   {'model':8} {'batch':>5} {'equal plans':>12} {'second run':>11} {'split plans':>12} {'their error':>12}")
    for name in options.models:
        for batch in options.batches:
            row = fresh("bits", name, batch, 3)
            equal = f"{row['equal']}/{row['whole']}" + ("" if row["equal"] == row["whole"] else " DIFFER")
            again = "equal" if row["again"] else "DIFFERS"
            print(f"   {name:8} {batch:5} {equal:>12} {again:>11} {row['split']:12} {cell(row['split error'])}")


def cell(error: float) -> str:
    return f"{error:8.1e} OVER" if error > LIMIT else f"{error:13.1e}"


def fresh(what: str, model: str, batch: int, steps: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", what, model, str(batch), str(steps)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **ONE_THREAD})
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# The two sides of a comparison.


class InTorch:
    """PyTorch with SGD, in float64 or float32."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self.module = copy.deepcopy(module).to(dtype)
        self._dtype = dtype
        self._sgd = torch.optim.SGD(self.module.parameters(), lr=OPTIMIZER.lr, momentum=OPTIMIZER.momentum)

    def step(self, x: Array, y: Array) -> float:
        self._sgd.zero_grad()
        inputs = torch.from_numpy(x)
        output = self.module(inputs.to(self._dtype) if inputs.is_floating_point() else inputs)
        loss = functional.cross_entropy(output.reshape(-1, output.shape[-1]), torch.from_numpy(y).reshape(-1))
        loss.backward()
        self._sgd.step()
        return float(loss.item())

    def gradients(self) -> State:
        named = self.module.named_parameters()
        return {name: one.grad.double().numpy() for name, one in named if one.grad is not None}

    def state(self) -> State:
        return {name: one.detach().numpy().copy() for name, one in self.module.state_dict().items()}

    def load(self, state: State) -> None:
        self.module.load_state_dict({name: torch.from_numpy(np.array(one)) for name, one in state.items()})


class Ours:
    """The engine in an arena of NaN."""

    def __init__(self, program: er.Program) -> None:
        self.trainer = er.Trainer(program)
        weights = self.trainer.state_dict()
        self.trainer._session = Session(program, poison=True)
        self.trainer.load_state_dict(weights)
        self.step, self.state = self.trainer.step, self.trainer.state_dict

    def gradients(self) -> State:
        """Of the first step since weights were loaded."""
        snapshot = self.trainer.snapshot()
        ending = "/velocity"
        return {name.removesuffix(ending): one for name, one in snapshot.items() if name.endswith(ending)}


def error(found: State, true: State) -> float:
    largest = max(float(np.abs(one).max()) for one in true.values())
    return max(float(np.abs(found[name] - one).max()) for name, one in true.items()) / largest


def batches(name: str, batch: int) -> Iterator[tuple[Array, Array]]:
    generator = torch.Generator().manual_seed(0)
    while True:
        if name in ("gru", "tfm"):
            x, y = (torch.randint(0, 80, (batch, 64), generator=generator) for _ in range(2))
        else:
            shape = (1, 28, 28) if name == "lenet" else (3, 32, 32)
            x = torch.randn(batch, *shape, generator=generator)
            y = torch.randint(0, 10, (batch,), generator=generator)
        yield x.numpy(), y.numpy()


def make_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]()


# What runs in processes of its own.


def measure_model(name: str, batch: int, steps: int) -> dict[str, float]:
    data = list(islice(batches(name, batch), steps))
    module = make_model(name)
    program = er.build(module, data[0][0], batch_size=batch, optimizer=OPTIMIZER)
    ours, exact, single = Ours(program), InTorch(module, torch.float64), InTorch(module, torch.float32)
    found: dict[str, float] = {"free loss": 0, "loss t32": 0}
    for number, (x, y) in enumerate(data):
        true = exact.step(x, y)
        found["free loss"] = max(found["free loss"], abs(ours.step(x, y) - true) / abs(true))
        found["loss t32"] = max(found["loss t32"], abs(single.step(x, y) - true) / abs(true))
        if number == 0:
            found["grad"] = error(ours.gradients(), exact.gradients())
            found["grad t32"] = error(single.gradients(), exact.gradients())
    found["free w"], found["w t32"] = error(ours.state(), exact.state()), error(single.state(), exact.state())
    exact, forced, forced_t32 = InTorch(module, torch.float64), [], []
    for x, y in data:
        shared = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in exact.state().items()}
        exact.load(shared)
        single.load(shared)
        ours.trainer.load_state_dict(shared)
        for one in (exact, single, ours):
            one.step(x, y)
        forced.append(error(ours.gradients(), exact.gradients()))
        forced_t32.append(error(single.gradients(), exact.gradients()))
    found |= {"forced worst": max(forced), "forced median": statistics.median(forced), "f. t32": max(forced_t32)}
    return found


def measure_bits(name: str, batch: int, steps: int) -> dict[str, Any]:
    data = list(islice(batches(name, batch), steps))
    model = capture_model(make_model(name), data[0][0])
    whole = any(node.op == "batch_norm" for node in model.forward(batch).nodes)
    sizes = (batch,) if whole or batch == 1 else (batch, -(-batch // 2), 1)
    recipe = Recipe(er.CrossEntropy(), OPTIMIZER, model.trainable)

    def trained(program: er.Program) -> tuple[list[float], State]:
        ours = Ours(program)
        return [ours.step(x, y) for x, y in data], ours.state()

    first: tuple[list[float], State] | None = None
    row: dict[str, Any] = {"equal": 0, "whole": 0, "split": 0, "split error": 0.0}
    for one in candidates(model.forward, model.predict, recipe, model.state, [batch], sizes):
        placed = place(one)
        program = assemble(placed, [placed], 0, batch, model)
        losses, state = trained(program)
        if first is None:
            first = losses, state
            row["again"] = same(trained(program), first)
        if one.micro_batch == batch:
            row["whole"] += 1
            row["equal"] += same((losses, state), first)
        else:
            row["split"] += 1
            row["split error"] = max(row["split error"], error(state, first[1]))
    return row


def same(a: tuple[list[float], State], b: tuple[list[float], State]) -> bool:
    return a[0] == b[0] and all(a[1][name].tobytes() == one.tobytes() for name, one in b[1].items())


class Then(nn.Module):
    """A function of the input behind a first layer, whose gradient shows what the function passes on."""

    def __init__(self, first: nn.Module, function: Callable[[Any], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.function = first, function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.first(x))


def op_modules() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """One module a family; each ends in logits."""
    image, row = torch.randn(4, 8, 12, 12), torch.randn(4, 32)
    sequence, tokens = torch.randn(4, 10, 16), torch.randint(0, 30, (4, 10))

    def pixels(*layers: nn.Module) -> tuple[nn.Module, torch.Tensor]:
        body = nn.Sequential(nn.Conv2d(8, 8, 1), *layers, nn.Flatten())
        return nn.Sequential(body, nn.Linear(body(image).shape[1], 5)), image

    def numbers(function: Callable[[torch.Tensor], torch.Tensor]) -> tuple[nn.Module, torch.Tensor]:
        return nn.Sequential(Then(nn.Linear(32, 24), function), nn.Linear(24, 5)), row

    def steps(function: Callable[[torch.Tensor], torch.Tensor], width: int = 16) -> tuple[nn.Module, torch.Tensor]:
        return nn.Sequential(Then(nn.Linear(16, 16), function), nn.Linear(width, 5)), sequence

    def recurrent(layer: nn.Module) -> tuple[nn.Module, torch.Tensor]:
        return nn.Sequential(nn.Linear(16, 16), Then(layer, lambda outputs: outputs[0]), nn.Linear(16, 5)), sequence

    def attend(causal: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        def function(x: torch.Tensor) -> torch.Tensor:
            q, k, v = x, 0.5 * x, torch.tanh(x)
            return functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

        return function

    return {
        "linear": (nn.Linear(32, 5), row),
        "conv 3x3": pixels(nn.Conv2d(8, 12, 3, padding=1)),
        "conv stride 2": pixels(nn.Conv2d(8, 12, 3, stride=2)),
        "conv 1x1": pixels(nn.Conv2d(8, 12, 1, bias=False)),
        "conv grouped": pixels(nn.Conv2d(8, 12, 3, groups=2)),
        "conv depthwise": pixels(nn.Conv2d(8, 8, 3, padding=1, groups=8)),
        "add (residual)": numbers(lambda x: x + torch.tanh(x)),
        "mul": numbers(lambda x: x * torch.sigmoid(x)),
        "scale": numbers(lambda x: 3 * x - 1),
        "relu": numbers(torch.relu),
        "relu6": numbers(functional.relu6),
        "gelu": numbers(functional.gelu),
        "sigmoid": numbers(torch.sigmoid),
        "tanh": numbers(torch.tanh),
        "silu": numbers(functional.silu),
        "max_pool2d": pixels(nn.MaxPool2d(3, 2, 1)),
        "avg_pool2d": pixels(nn.AvgPool2d(2)),
        "mean": pixels(nn.AdaptiveAvgPool2d(1)),
        "batch_norm": pixels(nn.BatchNorm2d(8)),
        "batch_norm, frozen": pixels(nn.BatchNorm2d(8).eval()),
        "group_norm": pixels(nn.GroupNorm(2, 8)),
        "layer_norm": steps(nn.LayerNorm(16, elementwise_affine=False)),
        "embedding": (nn.Sequential(nn.Embedding(30, 16), nn.Linear(16, 5)), tokens),
        "attention": steps(attend(causal=False)),
        "attention, causal": steps(attend(causal=True)),
        "softmax": steps(lambda x: x.softmax(-1)),
        "gru": recurrent(nn.GRU(16, 16, batch_first=True)),
        "lstm": recurrent(nn.LSTM(16, 16, batch_first=True)),
        "cat, slice": steps(lambda x: torch.cat([x[..., 4:], x[..., :8]], -1), 20),
        "transpose": steps(lambda x: x.transpose(1, 2).reshape(4, 10, 16)),
    }


def measure_ops(_: str, __: int, ___: int) -> dict[str, tuple[float, float]]:
    torch.manual_seed(0)
    found = {}
    for name, (module, x) in op_modules().items():
        y = torch.randint(0, 5, module(x).shape[:-1]).numpy()
        ours = Ours(er.build(module, x, batch_size=len(x), optimizer=OPTIMIZER))
        exact, single = InTorch(module, torch.float64), InTorch(module, torch.float32)
        for one in (ours, exact, single):
            one.step(x.numpy(), y)
        found[name] = error(ours.gradients(), exact.gradients()), error(single.gradients(), exact.gradients())
    return found


CHILDREN: dict[str, Callable[[str, int, int], dict[str, Any]]] = {
    "ops": measure_ops,
    "model": measure_model,
    "bits": measure_bits,
}

if __name__ == "__main__":
    main()
