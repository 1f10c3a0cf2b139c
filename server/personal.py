"""After the last round: how good the model is for each client, as it is and once that client has trained it for itself.

Clients measure on examples of their own that no round has trained on, and send figures alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edge_runtime.config import flatten
from edge_runtime.train.config import DownlinkConfig, PersonalTask, RoundTask, TrainConfig
from server.config import ServerConfig
from server.gather import content_of
from server.link import Link, Question, read_metrics, why_declined
from server.model import GlobalModel
from server.publish import WholeModels
from server.run_store import RunStore

TUNED = "tuned-"  # stands before a figure that was measured after a client's own training


def asks(config: ServerConfig) -> bool:
    """Whether clients are asked for their figures at the end."""
    return config.personal.enabled and not config.protection


def personal_task(config: ServerConfig, model: GlobalModel) -> RoundTask:
    """What clients are asked at the end: as a round after the last, without what a strategy adds to local training."""
    personal, task = config.personal, config.task(config.server.rounds)
    return replace(
        task,
        round=config.server.rounds + 1,
        proximal_mu=0.0,
        control=False,
        normalise=False,
        personal=PersonalTask(personal.layers, personal.holdout, tune=bool(personal.fine_tune_epochs)),
        train=_tuning(config, task.train, model),
        # Whole, for deltas are of what clients hold, control variates among it.
        downlink=DownlinkConfig(config.downlink.codec),
    )


def personalise(
    link: Link,
    config: ServerConfig,
    model: GlobalModel,
    nodes: Sequence[int],
    store: RunStore,
    run: int,
) -> dict[str, Any]:
    """Ask these nodes; the closing figures, as `run.json` has them in `final.personal`. `run` is the run's key."""
    task = replace(personal_task(config, model), run=run)
    whole = WholeModels(model.parts.shared, task.downlink.build())
    whole.publish(model.weights, task.round)
    question = Question(flatten(task), model.program_for(task))
    parcels = model.keeping.address({node: whole.parcel(node) for node in nodes})
    reports = []
    for answer in link.evaluate(question, parcels, config.server.deadline_s):
        if answer.content is not None and why_declined(answer.content) is not None:
            continue
        try:
            reports.append(read_metrics(content_of(answer)))
        except ValueError as error:
            data = {"client": str(answer.node), "reason": str(error)}
            store.append("evaluation_failed", data, config.server.rounds)
    downlink_bytes = sum(map(question.nbytes, parcels.values()))
    layers = [name for name, _ in model.parts.personal.shapes]
    return {"layers": layers, "asked": len(nodes), **_figures(reports, downlink_bytes)}


def _tuning(config: ServerConfig, train: TrainConfig, model: GlobalModel) -> TrainConfig:
    settings = config.personal
    if not settings.fine_tune_epochs:
        return train
    trainable = ",".join(model.head()) if settings.fine_tune == "head" else train.trainable
    return replace(train, epochs=settings.fine_tune_epochs, trainable=trainable)


def _figures(reports: Sequence[Mapping[str, float]], downlink_bytes: int) -> dict[str, Any]:
    """Means over clients, each counting alike; `worst` and `p10` are of the accuracy that clients end with."""
    before = _column(reports, "accuracy")
    after = _column(reports, TUNED + "accuracy")
    last = after if after else before
    return {
        "clients": len(reports),
        "accuracy_before": _mean(before),
        "accuracy_after": _mean(after),
        "loss_before": _mean(_column(reports, "loss")),
        "loss_after": _mean(_column(reports, TUNED + "loss")),
        "worst": min(last) if last else None,
        "p10": float(np.percentile(last, 10)) if last else None,
        "downlink_bytes": downlink_bytes,
    }


def _column(reports: Sequence[Mapping[str, float]], name: str) -> list[float]:
    """The figure of every client; empty unless all say it."""
    values = [report[name] for report in reports if name in report]
    return values if len(values) == len(reports) else []


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
