"""A Program's plan as a text for people."""

from __future__ import annotations

from edge_runtime.config import text_bytes
from edge_runtime.program.program import PlanPoint, Program

MOST_NAMES = 8
# Ops that look at the whole batch, and who does it.
_MIXES = (("batch_norm", "batch norm"), ("fake_quant", "rounding of activations"))


def explain(program: Program) -> str:
    """What the plan keeps, recomputes and updates, its bound, its extra work, and memory against time."""
    report = program.report
    chosen = report.chosen
    budget = f" of a budget of {_bytes(program.memory_budget)}" if program.memory_budget else ""
    ratio = program.peak_bytes / program.lower_bound_bytes
    extra = chosen.extra_flops / max(1, report.step_flops - chosen.extra_flops)
    lines = [
        f"arena       {_bytes(program.peak_bytes)} ({program.peak_bytes} bytes){budget}",
        f"lower bound {_bytes(program.lower_bound_bytes)} for this schedule (x {ratio:.3f})",
        f"plan        {chosen.name}, {_rows(program)}",
        f"work        {_flops(report.step_flops)} a step, {_flops(chosen.extra_flops)} of it extra "
        f"(+{100 * extra:.0f} %); estimated time x {chosen.cost:.2f} of the fastest plan",
        f"trained     {_trained(program)}",
        *_notes(program),
        "",
        f"fullest at  {report.fullest_at}",
        *(f"  {name:26} {_bytes(nbytes):>12}" for name, nbytes in report.parts if nbytes),
        "",
        "activations that the backward pass needs, by op",
        *_fates(program),
        "",
        "memory against time (plans that no other one beats in both)",
        f"  {'arena':>12}  {'time':>6}  {'extra work':>12}  {'rows at once':>12}  plan",
        *(_point(point, chosen) for point in report.curve),
    ]
    return "\n".join(lines) + "\n"


def _notes(program: Program) -> list[str]:
    split = {op.name for phase in program.phases if phase.kind == "accumulate" for op in phase.ops}
    notes = [f"{one} sees micro-batches: not what the whole batch would give" for name, one in _MIXES if name in split]
    bits = {op.ints[-1] for phase in program.phases for op in phase.ops if op.name == "fake_quant_weight"}
    if bits:
        notes.insert(0, f"computes with weights rounded to {', '.join(map(str, sorted(bits)))} bits")
    return [f"note        {one}" for one in notes]


def _rows(program: Program) -> str:
    if program.micro_batch == program.batch_size:
        return f"{program.batch_size} rows at once"
    return f"{program.batch_size} rows as micro-batches of {program.micro_batch}, gradients added up"


def _trained(program: Program) -> str:
    weights = [one for one in program.state if one.role == "weight"]
    trained = [one for one in weights if one.trained]
    if len(trained) == len(weights):
        return f"all {len(weights)} weight tensors, {program.parameters} parameters"
    names = [one.tensor.name for one in trained]
    shown = ", ".join(names if len(names) <= MOST_NAMES else [*names[:MOST_NAMES], "..."])
    return f"{len(trained)} of {len(weights)} weight tensors: {shown}"


def _fates(program: Program) -> list[str]:
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for op, fate, nbytes in program.report.kept:
        count, total = sums.get((fate, op), (0, 0))
        sums[fate, op] = (count + 1, total + nbytes)
    rows = sorted(sums.items(), key=lambda entry: (entry[0][0], -entry[1][1]))
    return [f"  {fate:10} {op:18} {count:4} {_bytes(total):>12}" for (fate, op), (count, total) in rows]


def _point(point: PlanPoint, chosen: PlanPoint) -> str:
    mark = "  <- this one" if point == chosen else ""
    return (
        f"  {_bytes(point.peak_bytes):>12}  {point.cost:5.2f}x  {_flops(point.extra_flops):>12}  "
        f"{point.micro_batch:>12}  {point.name}{mark}"
    )


def _bytes(nbytes: int) -> str:
    return text_bytes(nbytes, digits=2)


def _flops(count: int) -> str:
    for unit, size in (("GFLOP", 10**9), ("MFLOP", 10**6), ("kFLOP", 10**3)):
        if abs(count) >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} FLOP"
