"""A whole run, start to end: rounds, evaluation, the record of it, and the artefact at the end."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_runtime import plugins
from edge_runtime.config import flatten
from edge_runtime.errors import ConfigError, RunError
from edge_runtime.secagg.keys import parse_public_keys
from edge_runtime.train.batches import Examples
from edge_runtime.train.config import DATASETS
from edge_runtime.train.loop import State
from edge_runtime.train.sources import DataSource
from edge_runtime.updates.versions import Parcel, Versions, model_hash
from server import personal, results
from server.artefacts import export_and_check
from server.central import Central
from server.config import ServerConfig, counting_of
from server.distributed import Distributed
from server.events import ClientAnswered, Event, Listener, RolloutTold, RoundClosed, RunFinished, RunStarted
from server.fleet import Fleet
from server.ftrl import Ftrl
from server.gather import Asked, Gather, PlainGather, content_of
from server.link import Answer, Link, Question, read_held, read_metrics
from server.local import Local
from server.model import GlobalModel
from server.private import NoPrivacy, Privacy
from server.publish import DeltaModels, WholeModels
from server.release import check_key
from server.rollout_driver import roll_out
from server.rounds import RoundResult, choose_cohort, not_played
from server.run_store import RunStore, model_bytes, refuse_used, run_directory, sha256
from server.secagg_driver import SecureGather
from server.sum_plan import SummedUpdates, SumPlanner

PRIVACY: Mapping[str, Callable[[ServerConfig, int], Privacy]] = {
    "none": NoPrivacy,
    "central": Central,
    "distributed": Distributed,
    "ftrl": Ftrl,
    "local": Local,
}
EVALUATED_ON = {"central": "held-out data", "clients": "clients' own training data", "none": None}


def federate(link: Link, config: ServerConfig, listeners: Iterable[Listener] = ()) -> RunFinished:
    """Train `config.server.rounds` rounds with the clients behind `link` and leave a run directory.

    Raises:
        RunError: too few clients ever came, or no round gathered enough good updates.
        ConfigError: the run directory already holds a run.

    """
    run = _Run(link, config, tuple(listeners))
    try:
        return run.play()
    except BaseException as error:
        run.record_failure(error)
        raise
    finally:
        run.close()


class _Run:
    """The run in progress. `play` reads top-down; the rest are its steps."""

    def __init__(self, link: Link, config: ServerConfig, listeners: Sequence[Listener]) -> None:
        self._link, self._config, self._listeners = link, config, listeners
        directory = run_directory(config.run.out)
        refuse_used(directory)
        check_key(config.rollout)
        self._fleet = Fleet()
        self._test = _load_test(config) if config.server.evaluate == "central" else None
        self._model = GlobalModel(config, self._test)
        self._privacy = make_privacy(config, self._model)
        self._gather = make_gather(link, config, self._model, self._privacy)
        self._publisher = make_publisher(config, self._model)
        self._rows: list[results.RoundRow] = []
        self._downlink_bytes = 0  # of the round in progress
        self._started_s = time.monotonic()
        self._store = RunStore(directory)  # last: what fails before this leaves nothing behind

    def play(self) -> RunFinished:
        settings = self._config.server
        nodes = self._link.wait_for_nodes(settings.cohort, settings.deadline_s)
        if len(nodes) < settings.min_updates:
            raise RunError(
                f"{len(nodes)} clients online after {settings.deadline_s:g} s, but server.min_updates = "
                f"{settings.min_updates}; start more clients or lower it"
            )
        self._store.append("run_started", flatten(self._config))
        self._privacy.open(self._store)
        size, warnings = self._model.size, self._privacy.warnings()
        self._emit(RunStarted(self._config, self._store.directory, size, warnings))
        stopped = None
        for number in range(1, settings.rounds + 1):
            if stopped := self._privacy.why_stop():
                break
            self._play_round(number)
        return self._finish(stopped)

    def _play_round(self, number: int) -> None:
        settings, started_s = self._config.server, time.monotonic()
        result, unchanged = self._train(number)
        last = number == settings.rounds or self._privacy.why_stop() is not None
        due = last or number % settings.eval_every == 0
        figures = self._evaluate(number) if due else {}
        row = results.round_row(
            result,
            unchanged,
            figures,
            self._downlink_bytes,
            self._privacy.epsilon,
            time.monotonic() - started_s,
            clip=self._privacy.clip,
        )
        self._close_round(row)
        self._downlink_bytes = 0

    def _train(self, number: int) -> tuple[RoundResult, str | None]:
        """Ask a cohort, gather what comes, move the model; returns also why the model stayed as it was, if it did."""
        settings = self._config.server
        nodes = self._link.wait_for_nodes(settings.min_updates, settings.deadline_s)
        if self._model.control is not None:
            self._model.control.meet(nodes)
        cohort = self._privacy.cohort(nodes, number)
        if len(cohort) < settings.min_updates:
            result = not_played(number, f"{len(cohort)} clients to ask, server.min_updates = {settings.min_updates}")
            return result, result.unchanged

        def hear(answer: Answer) -> None:
            self._learn(answer)
            self._emit(ClientAnswered(number, str(answer.node)))

        parcels = self._parcels(cohort, number)
        asked = Asked(number, self._question(number), parcels, hear, lambda: model_hash(self._publisher.values))
        result = self._gather.gather(asked)
        self._downlink_bytes += result.downlink_bytes
        self._privacy.settle(number, result)
        if result.delta is None:
            return result, result.unchanged
        if not self._model.apply(result.delta, tau_eff=result.tau_eff, number=number, clients=result.clients):
            return result, "the new weights would not be finite"
        return result, None

    def _question(self, number: int) -> Question:
        return Question(flatten(self._privacy.task(self._config.task(number))), self._model.program(number))

    def _parcels(self, nodes: Sequence[int], number: int) -> dict[int, Parcel]:
        """The model as it is now, for each of the nodes, which are about to be sent it."""
        self._publisher.publish(self._model.sent, number)
        return self._model.keeping.address({node: self._publisher.parcel(node) for node in nodes})

    def _learn(self, answer: Answer) -> None:
        # An error may be that the node has lost its state: it is sent the whole model the next time.
        self._publisher.learn(answer.node, read_held(answer.content) if answer.content else b"")
        self._model.keeping.learn(answer.node, answer.content is not None)
        self._fleet.hear(answer)

    def _close_round(self, row: results.RoundRow) -> None:
        self._rows.append(row)
        self._store.append("round_closed", results.as_json(row), row.round)
        self._emit(RoundClosed(row, self._config.server.rounds))

    def _evaluate(self, number: int) -> dict[str, float]:
        """Loss and accuracy of the global model: on the server's held-out data, or averaged over clients' own."""
        if self._test is not None:
            return dict(self._model.evaluate(self._test, number))
        if self._config.server.evaluate == "none":
            return {}
        settings = self._config.server
        nodes = self._link.wait_for_nodes(1, settings.deadline_s)
        # A draw of its own: else those who have just trained would judge the model, on what they trained it with.
        cohort = choose_cohort(nodes, settings.cohort, self._config.seed, number, purpose=1)
        reports = []
        parcels, question = self._parcels(cohort, number), self._question(number)
        self._downlink_bytes += sum(map(question.nbytes, parcels.values()))
        for answer in self._link.evaluate(question, parcels, settings.deadline_s):
            self._learn(answer)
            try:
                reports.append(read_metrics(content_of(answer)))
            except ValueError as error:
                self._store.append("evaluation_failed", {"client": str(answer.node), "reason": str(error)}, number)
        return _weighted_mean(reports)

    def _finish(self, stopped: str | None) -> RunFinished:
        state = self._model.state_dict()
        content = model_bytes(state)
        self._store.write("model.safetensors", content)
        applied = sum(row.applied for row in self._rows)
        if not applied:
            raise RunError(stopped if stopped and not self._rows else self._why_nothing_was_applied())
        private = self._privacy.final()
        final: dict[str, Any] = {
            "accuracy": self._rows[-1].accuracy,
            "loss": self._rows[-1].loss,
            "evaluated_on": evaluated_on(self._config),
            "rounds_applied": applied,
            "uplink_bytes": sum(row.uplink_bytes for row in self._rows),
            "downlink_bytes": sum(row.downlink_bytes for row in self._rows),
            "epsilon": results.finite(self._privacy.epsilon),
            "delta": private["delta"] if private else None,
            "privacy": private,
            "stopped": stopped,
            "parameters": self._model.size,
            "model_sha256": sha256(content),
            "files": {"model.safetensors": len(content)},
        }
        if self._config.deploy.formats:
            final["deploy"] = exported = self._export(state)
            final["files"] |= {name: entry["bytes"] for name, entry in exported.get("files", {}).items()}
            final["int8_accuracy"] = {
                row["format"]: row["accuracy"]
                for row in exported.get("formats", {}).values()
                if row.get("precision") == "int8" and row["refused"] is None
            }
        final["artefact_versions"] = self._fleet.versions
        if personal.asks(self._config):
            final["personal"] = self._personalise()
            final["downlink_bytes"] += final["personal"]["downlink_bytes"]
        if self._config.rollout.enabled:
            final["rollout"] = roll_out(self._link, self._config, final["deploy"], self._store, self._tell)
        final["seconds"] = round(time.monotonic() - self._started_s, 3)
        self._store.append("run_finished", final)
        self._write(final)
        finished = RunFinished(self._store.directory, final)
        self._emit(finished)
        return finished

    def _personalise(self) -> dict[str, Any]:
        config = self._config

        def failed(client: str, reason: str) -> None:
            self._store.append("evaluation_failed", {"client": client, "reason": reason}, config.server.rounds)

        def hear(answer: Answer) -> None:
            self._model.keeping.learn(answer.node, answer.content is not None)

        nodes = self._link.wait_for_nodes(1, config.server.deadline_s)
        return personal.personalise(self._link, config, self._model, nodes, hear, failed)

    def _export(self, state: State) -> dict[str, Any]:
        """The exported files and their figures. A failure here must not cost the trained model."""
        try:
            return export_and_check(self._config, state, self._test, self._store.directory)
        except Exception as error:  # exporter and runtime raise many private types
            text = " ".join(f"{type(error).__name__}: {error}".split())
            self._store.append("export_failed", {"error": text})
            return {"error": text}

    def _why_nothing_was_applied(self) -> str:
        """No round moved the model: the commonest reason, and where the rest stands."""
        reasons = Counter(failure.reason for row in self._rows for failure in row.failures)
        reasons.update(row.unchanged for row in self._rows if row.unchanged and not row.failures)
        reason, count = reasons.most_common(1)[0]
        where = self._store.directory / "run.json"
        return f"no round could be applied; {count} times the reason was: {reason} ({where} names every failure)"

    def record_failure(self, error: BaseException) -> None:
        """Leave what happened so far on disk, and why it ended."""
        text = f"{type(error).__name__}: {error}"
        with contextlib.suppress(RunError):  # the disk may be what failed; the first error is the one to report
            self._store.append("run_failed", {"error": text})
            self._write(final=None, error=text)

    def _write(self, final: Mapping[str, Any] | None, error: str | None = None) -> None:
        rows = [results.as_json(row) for row in self._rows]
        record = {"version": 1, "config": flatten(self._config), "rounds": rows, "final": final, "error": error}
        self._store.write_json("run.json", record)

    def close(self) -> None:
        self._store.close()

    def _tell(self, line: str) -> None:
        self._emit(RolloutTold(line))

    def _emit(self, event: Event) -> None:
        for listener in self._listeners:
            listener(event)


def evaluated_on(config: ServerConfig) -> str | None:
    """Whose examples the rows' loss and accuracy are on."""
    if config.server.evaluate == "clients" and config.personal.enabled:
        return "clients' own held-out data"
    return EVALUATED_ON[config.server.evaluate]


def make_privacy(config: ServerConfig, model: GlobalModel) -> Privacy:
    """What `[privacy]` asks for."""
    if config.secure.enabled and config.mechanism == "none":
        return SummedUpdates(config, model.moving.size)
    return PRIVACY[config.mechanism](config, model.moving.size)


def make_gather(link: Link, config: ServerConfig, model: GlobalModel, privacy: Privacy) -> Gather:
    """How rounds are played."""
    settings = config.server
    if config.secure.enabled:
        if not isinstance(privacy, SumPlanner):
            raise ConfigError(f"privacy.mechanism = {config.mechanism!r}: makes no sums under secure aggregation")
        return SecureGather(
            link,
            config.secure,
            privacy,
            model.moving.size,
            privacy.aggregate,
            seed=config.seed,
            min_updates=settings.min_updates,
            deadline_s=settings.deadline_s,
            devices=read_devices(config.secure.devices) if config.secure.devices else None,
        )
    return PlainGather(
        link,
        config.uplink.build(),
        model.moving,
        privacy.aggregate,
        min_updates=settings.min_updates,
        deadline_s=settings.deadline_s,
        counting=lambda number: counting_of(config, number),
    )


def read_devices(path: str) -> frozenset[bytes]:
    """The public keys in a file that the operator keeps; ConfigError if it can't be read."""
    try:
        text = Path(path).read_text("utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"secure.devices = {path!r}: cannot be read ({error.strerror})") from error
    return frozenset(parse_public_keys(text, f"secure.devices = {path!r}"))


def make_publisher(config: ServerConfig, model: GlobalModel) -> WholeModels | DeltaModels:
    """What `[downlink]` asks for."""
    full, delta = config.downlink.build(), config.downlink.build_delta()
    if delta is None:
        return WholeModels(model.layout, full)
    return DeltaModels(Versions(model.layout, model.moving, full, delta), config.seed)


def _weighted_mean(reports: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of every figure over clients, weighted by their numbers of examples."""
    total = sum(report["num-examples"] for report in reports)
    names = set.intersection(*(set(report) for report in reports)) - {"num-examples"} if reports else set()
    return {name: sum(report[name] * report["num-examples"] for report in reports) / total for name in sorted(names)}


def _load_test(config: ServerConfig) -> Examples:
    source: DataSource = plugins.load(DATASETS, config.data.name)
    return source.test_split(config.data, config.seed)
