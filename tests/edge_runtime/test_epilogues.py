"""Joining ops changes how a Program runs, not one bit of what it gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

import edge_runtime as er
from edge_runtime.kernels import native
from edge_runtime.program import packed
from edge_runtime.program.epilogues import ACTS, join_activations
from edge_runtime.program.native_op import NativeOp
from simulations import models

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning")  # torch.export's own


@pytest.fixture(autouse=True, params=native.isas())
def _use_isa(request: pytest.FixtureRequest) -> Iterator[None]:
    before = native.selected_isa()
    native.select_isa(request.param)
    yield
    native.select_isa(before)


def trained(program: er.Program) -> list[bytes]:
    rng = np.random.default_rng(0)
    trainer = er.Trainer(program, threads=1)
    losses = [
        trainer.step(rng.standard_normal((5, 3, 32, 32)).astype(np.float32), rng.integers(0, 10, 5)) for _ in range(3)
    ]
    return [np.float64(losses).tobytes(), *(one.tobytes() for one in trainer.state_dict().values())]


@pytest.mark.parametrize("make", [models.ResNet8, models.MobileNetV2Small])
@pytest.mark.parametrize("tight", [False, True])
def test_a_program_with_joined_ops_gives_the_same_bits(
    make: type[torch.nn.Module], tight: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    module, x = make(), np.zeros((1, 3, 32, 32), np.float32)
    budget = min(point.peak_bytes for point in er.build(module, x, batch_size=5).report.curve) if tight else None
    joined = er.build(module, x, batch_size=5, memory_budget=budget)
    monkeypatch.setattr(packed, "join_activations", lambda ops: ops)
    apart = er.build(module, x, batch_size=5, memory_budget=budget)
    assert joined.peak_bytes == apart.peak_bytes
    assert trained(joined) == trained(apart)
    before, after = (
        [op for phase in one.phases if phase.kind == "step" for op in phase.ops] for one in (apart, joined)
    )
    activations = [sum(op.name == "unary" and op.ints[0] in ACTS for op in ops) for ops in (before, after)]
    assert activations[0] >= (7 if make is models.ResNet8 else 17)  # more where some are recomputed
    assert activations[1] == 0


def op(name: str, *buffers: int, ints: Sequence[int], makes: tuple[int, int] = (-1, 0)) -> NativeOp:
    return NativeOp(name, buffers, tuple(ints), makes=makes)


LINEAR = op("linear", 0, 64, -1, 256, ints=(2, 8, 4), makes=(256, 16))
RELU = op("unary", 256, 256, ints=(0, 16))


def test_an_activation_in_place_joins_the_op_before_it() -> None:
    assert join_activations([LINEAR, RELU]) == [dataclasses.replace(LINEAR, ints=(2, 8, 4, 1))]


@pytest.mark.parametrize(
    "other",
    [
        op("unary", 256, 512, ints=(0, 16)),  # elsewhere
        op("unary", 256, 256, ints=(0, 8)),  # of a part
        op("unary", 512, 512, ints=(0, 16)),  # of something else
        op("unary", 256, 256, ints=(2, 16)),  # gelu
    ],
)
def test_what_is_not_the_same_elements_in_place_stays_apart(other: NativeOp) -> None:
    assert join_activations([LINEAR, other]) == [LINEAR, other]


def test_an_op_takes_one_activation() -> None:
    assert len(join_activations([LINEAR, RELU, RELU])) == 2
