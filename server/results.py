"""The rows and the closing figures of a run, as they stand in `run.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from server.rounds import Failure, RoundResult


@dataclass(frozen=True, slots=True)
class RoundRow:
    """One round. `clients` and `dropped` count; `failures` names. Bytes are payload bytes over all clients.

    Down go models and Programs, to be trained and to be evaluated, and what secure aggregation sends beside them.
    `uplink_bits_per_parameter` is the mean over the updates that came, good or bad, and over the parameters that
    travel; of masked ones under secure aggregation, whose keys and shares are in `uplink_bytes`.
    `applied` is false when the model stayed as it was, and `unchanged` says why. `loss` and `accuracy` are of the new
    global model, on what `final.evaluated_on` says; null in rounds that were not evaluated. `dropped_in` counts the
    clients lost in each phase of secure aggregation, null without it; from its consistency phase on they are lost to
    the protocol and still in the sum, so `clients` counts them too. `epsilon` is what all rounds up to here spent,
    `clip` the L2 norm to which updates were clipped; null without privacy. Under privacy no `train_loss` is told.
    `late` counts those whose answer the round did not wait for, `declined` those who said that they could not take
    part. `staleness` is the mean over its updates, null where rounds take in no late ones. `ended_s` is the simulated
    time at its end, null where there is none.
    """

    round: int
    loss: float | None
    accuracy: float | None
    clients: int
    dropped: int
    failures: tuple[Failure, ...]
    applied: bool
    unchanged: str | None
    train_loss: float | None
    uplink_bytes: int
    uplink_bits_per_parameter: float | None
    downlink_bytes: int
    epsilon: float | None
    seconds: float
    dropped_in: Mapping[str, int] | None = None
    clip: float | None = None
    late: int = 0
    declined: int = 0
    staleness: float | None = None
    ended_s: float | None = None


def round_row(
    result: RoundResult,
    unchanged: str | None,
    figures: Mapping[str, float],
    downlink_bytes: int,
    epsilon: float | None,
    seconds: float,
    *,
    clip: float | None = None,
    ended_s: float | None = None,
) -> RoundRow:
    """The row of a closed round; `unchanged` is why the model stayed as it was, None if it moved."""
    bits = result.uplink_bits_per_parameter
    return RoundRow(
        round=result.round,
        loss=finite(figures.get("loss")),
        accuracy=finite(figures.get("accuracy")),
        clients=len(result.clients),
        dropped=len(result.failures),
        failures=result.failures,
        applied=unchanged is None,
        unchanged=unchanged,
        train_loss=finite(result.train_loss),
        uplink_bytes=result.uplink_bytes,
        uplink_bits_per_parameter=None if bits is None else round(bits, 4),
        downlink_bytes=downlink_bytes,
        epsilon=finite(epsilon),
        seconds=round(seconds, 3),
        dropped_in=result.dropped_in,
        clip=clip,
        late=len(result.late),
        declined=len(result.declined),
        staleness=None if result.staleness is None else round(result.staleness, 4),
        ended_s=None if ended_s is None else round(ended_s, 6),
    )


def as_json(item: RoundRow) -> dict[str, Any]:
    return asdict(item)


def row_from_json(data: Mapping[str, Any]) -> RoundRow:
    """What `as_json` made, read back; fields of another release are left out."""
    known = {item.name for item in fields(RoundRow)}
    failures = tuple(Failure(**failure) for failure in data["failures"])
    return RoundRow(**{name: value for name, value in data.items() if name in known} | {"failures": failures})


def record(
    config: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    final: Mapping[str, Any] | None,
    error: str | None = None,
) -> dict[str, Any]:
    """`run.json`: of a finished run with its closing figures, of one that failed with the reason."""
    return {"version": 1, "config": dict(config), "rounds": list(rows), "final": final, "error": error}


def describe(row: RoundRow, rounds: int) -> str:
    """One round in one line, for a terminal or a log."""
    parts = [f"round {row.round:>{len(str(rounds))}}/{rounds}"]
    if row.accuracy is not None:
        parts.append(f"accuracy {row.accuracy:.3f}")
    if row.loss is not None:
        parts.append(f"loss {row.loss:.3f}")
    parts.append(f"clients {row.clients}")
    if row.dropped:
        parts.append(f"dropped {row.dropped}")
    if row.declined:
        parts.append(f"declined {row.declined}")
    if row.staleness:
        parts.append(f"staleness {row.staleness:.1f}")
    if row.epsilon is not None:
        parts.append(f"epsilon {row.epsilon:.3g}")
    if not row.applied:
        parts.append(f"model unchanged: {row.unchanged}")
    return "  ".join([*parts, f"{row.seconds:.1f} s"])


def personal_lines(final: Mapping[str, Any]) -> list[str]:
    """What a run says at the end of how good the model is for each of its clients."""
    personal = final.get("personal")
    if not personal or personal["accuracy_before"] is None:
        return []
    parts = [f"on {personal['clients']} clients' own held-out data: accuracy {personal['accuracy_before']:.3f}"]
    if personal["accuracy_after"] is not None:
        parts.append(f"after training for themselves {personal['accuracy_after']:.3f}")
    return [", ".join([*parts, f"a tenth below {personal['p10']:.3f}"])]


def privacy_lines(final: Mapping[str, Any]) -> list[str]:
    """What a run says of its privacy at the end, in one line, and why it ended early, in another."""
    lines = [f"stopped: {final['stopped']}"] if final["stopped"] else []
    if private := final["privacy"]:
        spent = "unbounded" if private["epsilon"] is None else f"{private['epsilon']:.4g}"
        noise = f"noise multiplier {private['noise_multiplier']:.4g}"
        lines.append(f"privacy: {private['mechanism']}, epsilon {spent} at delta {private['delta']:g}, {noise}")
    return lines


def finite(value: float | None) -> float | None:
    """JSON knows no NaN; a diverged model's loss becomes null."""
    return value if value is not None and math.isfinite(value) else None


def weighted_mean(reports: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of every figure over clients, weighted by their numbers of examples."""
    total = sum(report["num-examples"] for report in reports)
    names = set.intersection(*(set(report) for report in reports)) - {"num-examples"} if reports else set()
    return {name: sum(report[name] * report["num-examples"] for report in reports) / total for name in sorted(names)}
