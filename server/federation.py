"""A whole run, start to end: rounds, evaluation, the record of it, and the artefact at the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_runtime.config import flatten
from edge_runtime.errors import ConfigError, RunError
from edge_runtime.train.config import RoundTask
from edge_runtime.updates.versions import Parcel, model_hash
from server import ending, personal, results
from server.checkpoint import Stateful
from server.config import ServerConfig
from server.events import ClientAnswered, Event, Listener, RolloutTold, RoundClosed, RunFinished, RunStarted
from server.fleet import Fleet
from server.gather import Asked, content_of
from server.journal import Journal, Peers, began_with
from server.link import Answer, Link, Question, read_held, read_lasts, read_metrics, why_declined
from server.model import GlobalModel
from server.orders import Orders
from server.parts import load_test, make_gather, make_privacy, make_publisher
from server.pool import Pool
from server.release import check_key
from server.rollout_driver import roll_out
from server.rounds import Failure, RoundResult, choose_cohort, not_played
from server.run_store import EVENTS, RunStore, model_bytes, refuse_used, run_directory

_TOLD = ("client", "bytes", "reason", "phase")  # of single clients, where they are promised privacy


def federate(
    link: Link, config: ServerConfig, listeners: Iterable[Listener] = (), peers: Peers | None = None
) -> RunFinished:
    """Train `config.server.rounds` rounds with the clients behind `link` and leave a run directory.

    With `config.run.resume` the run in that directory goes on after its last closed round, with the settings that it
    began with. `peers` are the clients' own states, where they are this process's to keep.

    Raises:
        RunError: too few clients came, or came back, within `server.patience_s`; no round gathered enough good
            updates; or the disk is full.
        ConfigError: the run directory already holds a run; to be resumed, it holds none, or one that is finished.

    """
    directory, store = run_directory(config.run.out), None
    if config.run.resume:
        if not config.run.out:
            raise ConfigError("run.resume: needs run.out, the directory of the run that is to go on")
        store = RunStore(directory, resume=True)
    else:
        refuse_used(directory)
    try:
        begun = began_with(store, config.run) if store else None
        run = _Run(link, begun or config, tuple(listeners), store, peers)
    except BaseException:
        if store is not None:
            store.close()
        raise
    try:
        return run.play(resumed=begun is not None)
    except BaseException as error:
        run.record_failure(error)
        raise
    finally:
        run.close()


def finished_run(directory: Path) -> RunFinished | None:
    """The run in that directory, if it is finished; its `run.json` is then whole. None if it is not.

    Raises:
        ConfigError: another process writes there, or it can't be read.

    """
    if not (directory / EVENTS).is_file():
        return None
    store = RunStore(directory, resume=True)
    try:
        final, begun = store.last_event("run_finished"), store.last_event("run_started")
        if final is None or begun is None:
            return None
        rows = [data for _, data in store.events("round_closed")]
        store.write_json("run.json", results.record(begun.data, rows, final.data))  # killed before it was written?
        return RunFinished(directory, final.data)
    finally:
        store.close()


class _Run:
    """The run in progress. `play` reads top-down; the rest are its steps."""

    def __init__(
        self,
        link: Link,
        config: ServerConfig,
        listeners: Sequence[Listener],
        store: RunStore | None,
        peers: Peers | None,
    ) -> None:
        self._link, self._config, self._listeners = link, config, listeners
        check_key(config.rollout)
        self._fleet = Fleet(link.clock, private=bool(config.protection))
        self._test = load_test(config)
        self._model = GlobalModel(config, self._test)
        self._privacy = make_privacy(config, self._model)
        self._gather = make_gather(link, config, self._model, self._privacy)
        self._publisher = make_publisher(config, self._model)
        self._downlink_bytes = 0  # of the round in progress
        self._started_s = time.monotonic()
        # Last: what fails before this leaves nothing behind.
        self._store = store or RunStore(run_directory(config.run.out))
        self._orders = Orders(self._store)
        self._pool = Pool(link, self._fleet, config.server, self._store.append, self._emit, self._orders.why_stop)
        parts: dict[str, Stateful] = {
            "model": self._model,
            "keeping": self._model.keeping,
            "publisher": self._publisher,
            "privacy": self._privacy,
            "fleet": self._fleet,
            "pool": self._pool,
            "gather": self._gather,
        }
        self._journal = Journal(self._store, parts, link.run_id, config.run.keep_models, peers)

    def play(self, *, resumed: bool) -> RunFinished:
        settings = self._config.server
        if resumed:
            self._resume()
        self._fleet.open(self._store)
        if not resumed:
            self._store.append("run_started", flatten(self._config))
        self._journal.open(self._facts())
        self._privacy.open(self._store)
        size, warnings = self._model.size, self._privacy.warnings()
        self._emit(RunStarted(self._config, self._store.directory, size, warnings, self._journal.last))
        stopped = None
        for number in range(self._journal.last + 1, settings.rounds + 1):
            if (stopped := self._why_stop()) or not self._play_round(number):
                stopped = stopped or self._why_stop()
                break
        return self._finish(stopped)

    def _facts(self) -> dict[str, Any]:
        return {
            "parameters": self._model.size,
            "warnings": list(self._privacy.warnings()),
            "protection": self._config.protection,
            "evaluated_on": ending.evaluated_on(self._config),
        }

    def _resume(self) -> None:
        """Go back to the last closed round; what came after it counts for nothing."""
        lost = self._journal.resume()
        if not self._journal.same_run:
            # What a node kept it may still have, and uses then. What it needs otherwise it is sent once more.
            self._publisher.forget_nodes()
            self._model.keeping.forget_nodes()
            self._gather.forget_nodes()
        self._store.append("run_resumed", {"round": self._journal.last, "lost_events": lost})

    def _why_stop(self) -> str | None:
        """Why no further round is to be played; None if one is."""
        return self._orders.why_stop() or self._privacy.why_stop()

    def _play_round(self, number: int) -> bool:
        """False, and no round was played, if the operator has asked to stop before anybody was asked to train."""
        settings, started_s = self._config.server, time.monotonic()
        if (result := self._gather_round(number)) is None:
            return False
        unchanged = self._move(number, result)
        last = number == settings.rounds or self._why_stop() is not None
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
            ended_s=self._link.clock() if self._link.replays else None,
        )
        self._journal.close_round(row, model_bytes(self._model.state_dict()))
        self._downlink_bytes = 0
        self._emit(RoundClosed(row, settings.rounds))
        return True

    def _gather_round(self, number: int) -> RoundResult | None:
        """What a cohort's updates come to; None if the operator wants no more of them."""
        result, declined = self._attempt(number), list[Failure]()
        # Where nobody has begun, nothing has been played: asked again, as long as the pool has patience. Noise is
        # accounted by who was asked, and such a round counts.
        while result is not None and result.all_declined and self._config.mechanism == "none":
            declined += result.declined
            result = self._attempt(number)
        return None if result is None else replace(result, declined=(*declined, *result.declined))

    def _move(self, number: int, result: RoundResult) -> str | None:
        """Move the model by what was gathered; returns why it stays as it was, if it does."""
        self._privacy.settle(number, result)
        if result.delta is None:
            return result.unchanged
        if not self._model.apply(result.delta, tau_eff=result.tau_eff, number=number, clients=result.clients):
            return "the new weights would not be finite"
        return None

    def _attempt(self, number: int) -> RoundResult | None:
        """Ask a cohort, and gather what comes; None if the operator has asked to stop before anybody was asked."""
        settings = self._config.server
        nodes = self._pool.enough(number, self._model.training_bytes(number))
        if self._orders.why_stop():
            return None
        if self._model.control is not None:
            self._model.control.meet(nodes)
        cohort = self._choose(nodes, number)
        if (able := len(cohort) + len(self._gather.busy)) < settings.min_updates:
            return not_played(number, f"{able} clients to ask, server.min_updates = {settings.min_updates}")
        result = self._gather.gather(self._ask(cohort, number))
        self._downlink_bytes += result.downlink_bytes
        self._pool.settle(result)
        return replace(result, outcomes=self._fleet.settle(result))

    def _choose(self, nodes: Sequence[int], number: int, more: int | None = None) -> list[int]:
        """Who is asked as the round begins, or up to so many more in its course."""
        busy, wants = self._gather.busy, self._gather.wants if more is None else more
        idle = [node for node in nodes if node not in busy]
        return self._privacy.cohort(idle, number) if wants is None else self._privacy.further(idle, wants, number)

    def _ask(self, cohort: Sequence[int], number: int) -> Asked:
        """What the cohort is about to be sent; the log has it before anybody is asked."""
        settings, nodes = self._config.server, [str(node) for node in cohort]
        # Where noise is drawn for the sum of all who were asked, all are waited for.
        free = settings.mode != "sync" or self._config.mechanism == "none"
        goal = settings.cohort if free else len(cohort)
        if settings.mode == "sync":
            goal = min(goal, len(cohort))
        plan = {"asked": nodes, "goal": goal, "mode": settings.mode, "deadline_s": settings.deadline_s}
        self._store.append("round_planned", plan, number)

        def hear(answer: Answer) -> None:
            self._learn(answer)
            self._emit(ClientAnswered(number, str(answer.node)))

        def told(kind: str, data: Mapping[str, Any]) -> None:
            if self._config.protection:
                data = {name: value for name, value in data.items() if name in _TOLD}
            self._store.append(kind, data, number)

        def more(count: int) -> Mapping[int, Parcel]:
            able = self._fleet.eligible(self._link.nodes(), self._model.training_bytes(number))
            nodes = self._choose(able, number, count)
            self._fleet.ask(nodes)
            if nodes:
                self._store.append("clients_asked", {"asked": [str(node) for node in nodes]}, number)
                self._privacy.task(self._task(number))  # which is in the question, and books who is asked
            return self._model.keeping.address({node: self._publisher.parcel(node) for node in nodes})

        question, parcels = self._question(number), self._parcels(cohort, number)
        self._fleet.ask(cohort)
        return Asked(number, question, parcels, hear, lambda: model_hash(self._publisher.values), goal, more, told)

    def _question(self, number: int) -> Question:
        return Question(flatten(self._privacy.task(self._task(number))), self._model.program(number))

    def _task(self, number: int) -> RoundTask:
        return replace(self._config.task(number), run=self._journal.key)

    def _parcels(self, nodes: Sequence[int], number: int) -> dict[int, Parcel]:
        """The model as it is now, for each of the nodes, which are about to be sent it."""
        self._publisher.publish(self._model.sent, number)
        return self._model.keeping.address({node: self._publisher.parcel(node) for node in nodes})

    def _learn(self, answer: Answer) -> None:
        # Who declines has read nothing, and holds what it held. An error may be that the node has lost its state: it is
        # sent the whole model the next time.
        if answer.content is None or why_declined(answer.content) is None:
            self._publisher.learn(answer.node, read_held(answer.content) if answer.content else b"")
            lasts = read_lasts(answer.content) if answer.content else None
            self._model.keeping.learn(answer.node, answer.content is not None, lasts=lasts)
        self._fleet.hear(answer)
        if self._fleet.to_be_seen:
            self._fleet.online(self._link.nodes())

    def _evaluate(self, number: int) -> dict[str, float]:
        """Loss and accuracy of the global model: on the server's held-out data, or averaged over clients' own."""
        if self._test is not None:
            return dict(self._model.evaluate(self._test, number))
        if self._config.server.evaluate == "none":
            return {}
        settings = self._config.server
        nodes = self._pool.now(1, self._model.training_bytes(number))
        # A draw of its own: else those who have just trained would judge the model, on what they trained it with.
        cohort = choose_cohort(nodes, settings.cohort, self._config.seed, number, purpose=1)
        reports = []
        parcels, question = self._parcels(cohort, number), self._question(number)
        self._downlink_bytes += sum(map(question.nbytes, parcels.values()))
        for answer in self._link.evaluate(question, parcels, settings.deadline_s):
            self._learn(answer)
            if answer.content is not None and why_declined(answer.content):
                continue
            try:
                reports.append(read_metrics(content_of(answer)))
            except ValueError as error:
                self._store.append("evaluation_failed", {"client": str(answer.node), "reason": str(error)}, number)
        return results.weighted_mean(reports)

    def _finish(self, stopped: str | None) -> RunFinished:
        config, store = self._config, self._store
        rows = self._journal.rows
        figures = self._last_figures() if rows else {}
        final = ending.write_model(config, rows, figures, self._model, self._privacy, store, stopped)
        if config.deploy.formats:
            final |= ending.export(config, self._model.state_dict(), self._test, store)
            final["files"] |= {name: entry["bytes"] for name, entry in final["deploy"].get("files", {}).items()}
        final["artefact_versions"] = self._fleet.versions
        if personal.asks(config):
            final["personal"] = personal.personalise(
                self._link, config, self._model, self._pool.now(1), store, self._journal.key
            )
            final["downlink_bytes"] += final["personal"]["downlink_bytes"]
        if config.rollout.enabled:
            final["rollout"] = roll_out(self._link, config, final["deploy"], store, self._tell)
        final["seconds"] = round(self._journal.seconds_before + time.monotonic() - self._started_s, 3)
        store.append("run_finished", final)
        self._write(final)
        finished = RunFinished(store.directory, final)
        self._emit(finished)
        return finished

    def _last_figures(self) -> Mapping[str, float | None]:
        """Of the model as it is: a run that was stopped may have closed rounds since it was evaluated last."""
        last = self._journal.rows[-1]
        if last.accuracy is None and self._test is not None:
            return self._evaluate(last.round)
        return {"loss": last.loss, "accuracy": last.accuracy}

    def record_failure(self, error: BaseException) -> None:
        """Leave what happened so far on disk, and why it ended."""
        text = f"{type(error).__name__}: {error}"
        with contextlib.suppress(RunError):  # the disk may be what failed; the first error is the one to report
            self._store.append("run_failed", {"error": text})
            self._write(final=None, error=text)

    def _write(self, final: Mapping[str, Any] | None, error: str | None = None) -> None:
        rows = [results.as_json(row) for row in self._journal.rows]
        self._store.write_json("run.json", results.record(flatten(self._config), rows, final, error))

    def close(self) -> None:
        with contextlib.suppress(RunError):
            self._fleet.tell()
        self._store.close()

    def _tell(self, line: str) -> None:
        self._emit(RolloutTold(line))

    def _emit(self, event: Event) -> None:
        for listener in self._listeners:
            listener(event)
