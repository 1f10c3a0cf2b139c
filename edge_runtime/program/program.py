"""`Program`: a planned training step for one model, batch size and memory budget; made by `edge_runtime.build`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.ir.graph import Graph
from edge_runtime.losses import Loss
from edge_runtime.optimizers import Optimizer
from edge_runtime.program.native_op import NativeOp

# What a state tensor is: trained or frozen weight, running statistic, constant of the loss, optimizer's moment,
# the weights as loaded (FedProx), c - c_i (SCAFFOLD), or the gradient gathered over micro-batches.
ROLES = ("weight", "buffer", "constant", "variance", "moment", "anchor", "correction", "gradient")
# What a phase does: a whole step; forward and backward of a micro-batch; the update after the last of those; forward.
KINDS = ("step", "accumulate", "update", "predict")


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor lies in the arena: byte offset; dtype "f32" or "i64"; contiguous, row-major."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class StateTensor:
    """A tensor that lives on from step to step, and what it is (see ROLES). `trained`: steps move it."""

    tensor: Tensor
    role: str
    trained: bool = False


@dataclass(frozen=True, slots=True)
class Phase:
    """Ops that run in one go on up to `batch` rows. `labels` name the nodes, for error messages."""

    kind: str
    batch: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    ops: tuple[NativeOp, ...]
    labels: tuple[str, ...]
    lower_bound_bytes: int  # state and the most that lives at one op


@dataclass(frozen=True, slots=True)
class PlanPoint:
    """One plan on the curve of memory against time, for `explain`."""

    peak_bytes: int
    cost: float  # estimated time of a step, as a multiple of the fastest plan
    extra_flops: int  # per step of the whole batch
    micro_batch: int
    trained_tensors: int
    name: str


@dataclass(frozen=True, slots=True)
class Report:
    """What the planner chose and what it could have chosen; see `explain.py`."""

    chosen: PlanPoint
    curve: tuple[PlanPoint, ...]
    parts: tuple[tuple[str, int], ...]  # bytes of each part of the arena at its fullest moment
    fullest_at: str  # label of that node
    forward_flops: int
    step_flops: int
    kept: tuple[tuple[str, str, int], ...]  # of each activation that is needed twice: its op, what happens to it, bytes


@dataclass(frozen=True, slots=True)
class Program:
    """A model with everything that training it takes, and nothing that has to be decided any more.

    Attributes:
        batch_size: rows of a step; shorter batches are masked exactly.
        micro_batch: rows that go through the model at once.
        arena_bytes: one block of memory that holds weights, gradients, optimizer state, activations, workspace, input.
        memory_budget: what was asked for, in bytes; 0 for no limit.
        state: persistent tensors, at the front of the arena.
        initial: their contents at the start, by name; tensors that are not here start at zero.
        counters: int64 scalars of the module's state_dict, with their start values; a step raises those in `counted`.
        aliases: further names of one tensor in the state_dict, with the name it has here.
        forward: the model's graph in evaluation mode for a number of rows, which an export starts from; None in a
            Program that comes from a file.

    """

    loss: Loss
    optimizer: Optimizer
    batch_size: int
    micro_batch: int
    memory_budget: int
    arena_bytes: int
    state_bytes: int
    state: tuple[StateTensor, ...]
    counters: Mapping[str, int]
    counted: Mapping[str, int]
    aliases: Mapping[str, str]
    state_dict_order: tuple[str, ...]
    phases: tuple[Phase, ...]
    report: Report
    initial: Mapping[str, NDArray[Any]]
    forward: Callable[[int], Graph] | None = field(default=None, compare=False, repr=False)

    @property
    def peak_bytes(self) -> int:
        """The planned size of the arena: all of training's memory."""
        return self.arena_bytes

    @property
    def lower_bound_bytes(self) -> int:
        """What the same schedule needs at its fullest op, however its buffers are placed."""
        return max(phase.lower_bound_bytes for phase in self.phases)

    @property
    def parameters(self) -> int:
        """Elements of all weights."""
        return sum(int(np.prod(one.tensor.shape)) for one in self.state if one.role == "weight")

    def explain(self) -> str:
        """A text: what is kept, recomputed and updated, the bound, the extra work, and memory against time."""
        from edge_runtime.program.explain import explain

        return explain(self)

    def save(self, path: str | Path) -> Path:
        """Write the Program to a file; see `program_file.py` for the format."""
        from edge_runtime.program.program_file import write_program

        return write_program(self, Path(path))

    @classmethod
    def load(cls, path: str | Path, *, max_arena_bytes: int | None = None) -> Program:
        """Read a Program from a file; needs no torch.

        Raises:
            ProgramError: not a Program, damaged, of another version, with an op or tensor outside its arena, or in
                need of more than `max_arena_bytes`.

        """
        from edge_runtime.program.program_file import read_program

        return read_program(Path(path), max_arena_bytes)

    def without_weights(self) -> Program:
        """The same Program with its module's tensors at zero: for those who get their weights apart from it."""
        module = {one.tensor.name for one in self.state if one.role in ("weight", "buffer")}
        initial = {name: content for name, content in self.initial.items() if name not in module}
        return dataclasses.replace(self, initial=initial)

    def to_bytes(self) -> bytes:
        """The contents of its file."""
        from edge_runtime.program.program_file import encode

        return encode(self)

    @classmethod
    def from_bytes(cls, data: bytes, *, max_arena_bytes: int | None = None) -> Program:
        """What `to_bytes` wrote. Raises ProgramError as `load` does."""
        from edge_runtime.program.program_file import decode

        return decode(data, max_arena_bytes)
