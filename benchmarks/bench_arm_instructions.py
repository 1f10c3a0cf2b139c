"""Instructions that a training step executes on ARM, by op: counted, not timed, so equal on every machine.

The cross-compiled core runs under qemu 7.2 as a Cortex-A72 (NEON, no dot products), one op at a time, with a plugin
that counts (tests/arm/count_instructions.c). Models, weights and data: five of `simulations.models` after
torch.manual_seed(0), standard normal x or tokens below 80; the first step of SGD with momentum at batch 8.

Counts say whether a kernel has become dearer, not how long it takes: a load that misses the cache counts as one.
`.ci/arm` builds what this needs and shows which counts are a tenth off the recorded ones; `.ci/arm --counts` records.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

import edge_runtime as er
from edge_runtime.engine import session
from simulations import models

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "arm"))
from remote_core import RemoteCores, remote_program  # noqa: E402  it stands with the tests, which are no package

RECORDED = ROOT / "benchmarks" / "results" / "arm_instructions.json"
MODELS = ("lenet", "resnet8", "mobilenet_v2_small", "char_gru", "char_transformer")
BATCH = 8
NOTABLE = 0.10
Counts = dict[str, dict[str, int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qemu", required=True, help="the emulator and its options, without the plugin")
    parser.add_argument("--server", type=Path, required=True, help="core_server for ARM")
    parser.add_argument("--plugin", type=Path, required=True, help="count_instructions.c, built")
    parser.add_argument("--record", action="store_true", help=f"write {RECORDED.relative_to(ROOT)}")
    options = parser.parse_args()
    found: Counts = {}
    for name in MODELS:
        with tempfile.NamedTemporaryFile("r") as out:
            cores = RemoteCores([f"{options.qemu} -plugin {options.plugin},out={out.name} {options.server}"])
            found[name] = count(name, cores, Path(out.name))
            cores.close()
    if options.record:
        RECORDED.parent.mkdir(exist_ok=True)
        RECORDED.write_text(json.dumps(found, indent=2) + "\n")
    show(found, json.loads(RECORDED.read_text()) if RECORDED.exists() else {})


def count(name: str, cores: RemoteCores, out: Path) -> dict[str, int]:
    """Instructions of one training step by the native op's name, the dearest first."""
    program, x, y = prepare(name)
    session.NativeProgram = one_by_one(cores)  # type: ignore[misc]
    trainer = er.Trainer(program, threads=1)
    before = len(out.read_text().splitlines())
    trainer.step(x, y)
    counts = map(int, out.read_text().splitlines()[before:])
    step = next(phase for phase in program.phases if phase.kind == "step")
    sums: Counter[str] = Counter()
    for op, instructions in zip(step.ops, counts, strict=True):
        sums[op.name] += instructions
    return dict(sums.most_common())


def prepare(name: str) -> tuple[er.Program, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    if name.startswith("char"):
        x, y = (rng.integers(0, 80, (BATCH, 64)) for _ in range(2))
    else:
        shape = (1, 28, 28) if name == "lenet" else (3, 32, 32)
        x, y = rng.standard_normal((BATCH, *shape)).astype(np.float32), rng.integers(0, 10, BATCH)
    optimizer = er.SGD(lr=0.05, momentum=0.9)
    return er.build(getattr(models, name)(), torch.tensor(x[:1]), optimizer=optimizer, batch_size=BATCH), x, y


def one_by_one(cores: RemoteCores) -> type:
    """A native program that asks for each op by itself, so that each has a line of its own in the plugin's output."""

    class OneByOne(remote_program(cores)):  # type: ignore[misc]
        def run(self, arena: np.ndarray[Any, Any], first: int, count: int, team: None = None) -> tuple[int, int]:
            for op in range(first, first + count):
                status, bad = super().run(arena, op, 1)
                if status:
                    return status, bad
            return 0, -1

    return OneByOne


def show(found: Counts, recorded: Counts) -> None:
    """Millions by op, and what has moved; a count that grew is no failure, for a wiser kernel may do more."""
    for model, counts in found.items():
        print(f"{model}, batch {BATCH}: {sum(counts.values()) / 1e6:.1f} M instructions a step")
        for op in {**counts, **recorded.get(model, {})}:
            now, then = counts.get(op, 0), recorded.get(model, {}).get(op, 0)
            moved = now / then - 1 if then else float("inf")
            if abs(moved) > NOTABLE:
                print(f"  {op:20}{then / 1e6:10.2f} M ->{now / 1e6:10.2f} M{moved:+9.0%}")


if __name__ == "__main__":
    main()
