"""Serves the node that stands for this region above: one `Work` at a time, one round or evaluation of the devices each.

The model, the task and the Program are those of the federation above; who is asked, how many must answer, how long they
get, what stands against wrong ones and whether sums are masked is this server's own configuration.
"""

from __future__ import annotations

import contextlib
import math
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.config import flatten, from_flat
from edge_runtime.errors import ConfigError, EdgeRuntimeError, PeerError, RunError
from edge_runtime.region import KINDS, Done, Work, is_own, listen, receive_work, send_done
from edge_runtime.train.config import RoundTask
from edge_runtime.updates import TensorLayout
from edge_runtime.updates.delta import FloatVector
from edge_runtime.updates.versions import Parcel, model_hash
from server import results
from server.aggregate import MAX_EXAMPLES
from server.config import ServerConfig
from server.gather import Asked, content_of
from server.link import Answer, Link, Question, read_held, read_metrics
from server.parts import make_gather, make_privacy, make_publisher
from server.results import weighted_mean
from server.rounds import RoundResult, choose_cohort
from server.run_store import RunStore, run_directory
from server.strategy import STRATEGIES

POLL_S = 0.5  # how soon a stop is seen
ROUND_SHARE = 0.9  # of the time that the node above waits; the rest is for the sum
_NOTHING = np.empty(0, np.float32)


@dataclass(frozen=True, slots=True)
class Tensors:
    """The model's tensors, and those that training moves."""

    layout: TensorLayout
    moving: TensorLayout


def serve_region(link: Link, config: ServerConfig, stopped: Callable[[], bool] = lambda: False) -> None:
    """Answer at `config.region.socket` until `stopped`; leaves a run directory with an event for every round.

    Raises:
        ConfigError: the settings ask for what a region can't promise, or the socket can't be listened at.

    """
    check(config)
    path = Path(config.region.socket)
    with listen(path) as listener, contextlib.closing(RunStore(run_directory(config.run.out))) as store:
        store.append("run_started", flatten(config))
        region = Region(link, config, store)
        listener.settimeout(POLL_S)
        while not stopped():
            with contextlib.suppress(TimeoutError):
                connection, _ = listener.accept()
                with connection:
                    _serve(connection, region)
    path.unlink(missing_ok=True)


def check(config: ServerConfig) -> None:
    """ConfigError for what a region's server can't keep."""
    if config.mechanism != "none":
        raise ConfigError(
            f"privacy.mechanism = {config.mechanism!r}: a region's server adds no noise and keeps no budget; its sum "
            "goes on to the server above, which knows nothing of them"
        )
    if config.server.mode != "sync":
        raise ConfigError(f"server.mode = {config.server.mode!r}: must be sync in a region, which is asked for rounds")
    strategy = STRATEGIES[config.server.strategy]
    if strategy.control or strategy.normalised:
        raise ConfigError(
            f"server.strategy = {config.server.strategy!r}: must be a plain one in a region; the server above has "
            "the strategy"
        )


def _serve(connection: socket.socket, region: Region) -> None:
    connection.settimeout(60.0)  # between two pieces of one frame
    if not is_own(connection):
        return
    try:
        work = receive_work(connection)
    except (PeerError, OSError):
        return  # no node of ours
    done = region.answer(work)
    with contextlib.suppress(OSError):  # the node above may have given up: then this region has dropped out there
        send_done(connection, done)


class Region:
    """The devices below as one client. What rounds leave behind (who holds which version, device keys) is kept."""

    def __init__(self, link: Link, config: ServerConfig, store: RunStore) -> None:
        self._link, self._config, self._store = link, config, store
        self._floor: Floor | None = None

    def answer(self, work: Work) -> Done:
        """Never raises for what the work or the devices bring: that is the region's failure above."""
        try:
            # A device below keeps its state under this server's own run, which serves one run above after another.
            task = replace(from_flat(RoundTask, dict(work.task)), run=0)
            return (self._train if work.kind == KINDS[0] else self._evaluate)(work, task)
        except EdgeRuntimeError as error:
            return Done({}, _NOTHING, error=str(error))

    def _train(self, work: Work, task: RoundTask) -> Done:
        floor, started_s = self._floor_for(work, task), time.monotonic()
        nodes = self._nodes(work)
        cohort = floor.privacy.cohort(nodes, task.round)
        settings = self._config.server
        if len(cohort) < settings.min_updates:
            raise RunError(f"{len(cohort)} devices to ask, server.min_updates = {settings.min_updates}")
        question = Question(flatten(floor.privacy.task(task)), work.program)
        examples = 0

        def told(kind: str, data: Any) -> None:
            nonlocal examples
            if kind == "update_received":
                examples += int(data.get("examples", 0))
            self._store.append(kind, data, task.round)

        parcels = floor.parcels(work.weights, cohort, task.round)
        goal = 0 if self._config.secure.enabled else min(settings.cohort, len(cohort))
        asked = Asked(
            number=task.round,
            question=question,
            parcels=parcels,
            hear=floor.hear,
            model_hash=lambda: model_hash(floor.publisher.values),
            goal=goal,
            told=told,
        )
        result = floor.gather.gather(asked)
        floor.privacy.settle(task.round, result)
        self._write(result, time.monotonic() - started_s)
        clients, failed = len(result.clients), len(result.failures)
        if result.delta is None:
            return Done({}, _NOTHING, clients, failed, result.unchanged or "no update")
        # Under secure aggregation nobody's examples are known: each device counts for one.
        weight = clients if self._config.secure.enabled else examples
        if weight > MAX_EXAMPLES:
            raise RunError(f"the region's devices claim {weight} examples together; one client may have 2^28")
        figures = {"num-examples": weight, "loss": result.train_loss or 0.0}
        with np.errstate(over="ignore"):  # the server above refuses what is not finite
            delta = result.delta.astype(np.float32)
        return Done(figures, delta, clients, failed)

    def _evaluate(self, work: Work, task: RoundTask) -> Done:
        floor = self._floor_for(work, task)
        cohort = choose_cohort(self._nodes(work), self._config.server.cohort, task.seed, task.round, purpose=1)
        parcels = floor.parcels(work.weights, cohort, task.round)
        question, reports, failed = Question(flatten(task), work.program), [], 0
        for answer in self._link.evaluate(question, parcels, self._deadline_s(work)):
            floor.hear(answer)
            try:
                reports.append(read_metrics(content_of(answer)))
            except ValueError as error:
                failed += 1
                self._store.append("evaluation_failed", {"client": str(answer.node), "reason": str(error)}, task.round)
        if not reports:
            raise RunError(f"none of {len(cohort)} devices evaluated the model")
        total = sum(report["num-examples"] for report in reports)
        return Done({**weighted_mean(reports), "num-examples": int(total)}, _NOTHING, len(reports), failed)

    def _nodes(self, work: Work) -> list[int]:
        return self._link.wait_for_nodes(self._config.server.min_updates, self._deadline_s(work) / 2)

    def _deadline_s(self, work: Work) -> float:
        """The settings' own, or less where the node above waits less; in steps, so that it seldom is another."""
        left = 2 ** (math.floor(8 * math.log2(ROUND_SHARE * work.deadline_s)) / 8)
        return min(self._config.server.deadline_s, left)

    def _floor_for(self, work: Work, task: RoundTask) -> Floor:
        """What serves this model and task: the last one, unless the federation above has become another."""
        server = replace(self._config.server, deadline_s=self._deadline_s(work))
        config = replace(self._config, seed=task.seed, uplink=task.uplink, downlink=task.downlink, server=server)
        if self._floor is None or not self._floor.serves(config, work):
            self._floor = Floor(self._link, config, Tensors(work.layout, work.moving))
        return self._floor

    def _write(self, result: RoundResult, seconds: float) -> None:
        row = results.round_row(result, result.unchanged, {}, result.downlink_bytes, None, seconds)
        self._store.append("round_closed", results.as_json(row), result.round)


class Floor:
    """What plays rounds below, for one model and one way of writing it."""

    def __init__(self, link: Link, config: ServerConfig, tensors: Tensors) -> None:
        self._config, self._tensors = config, tensors
        self.privacy = make_privacy(config, tensors)
        self.gather = make_gather(link, config, tensors, self.privacy)
        self.publisher = make_publisher(config, tensors)

    def serves(self, config: ServerConfig, work: Work) -> bool:
        same = self._tensors.layout.shapes == work.layout.shapes and self._tensors.moving.shapes == work.moving.shapes
        return same and self._config == config

    def parcels(self, weights: FloatVector, nodes: list[int], number: int) -> dict[int, Parcel]:
        self.publisher.publish(weights, number)
        return {node: self.publisher.parcel(node) for node in nodes}

    def hear(self, answer: Answer) -> None:
        self.publisher.learn(answer.node, read_held(answer.content) if answer.content else b"")
