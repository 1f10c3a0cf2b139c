"""What a run keeps of itself: the rows of its closed rounds, and all that it takes to go on from the last of them.

A part of the run is `Stateful`. Its state is in the checkpoint of the round, which the store takes in one transaction
with the round's row: a run that is killed goes on as if the rounds after it had never begun.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Protocol

from edge_runtime.errors import ConfigError, EdgeRuntimeError, RunError
from server import results
from server.checkpoint import Stateful, pack, unpack
from server.config import OutputConfig, ServerConfig
from server.run_store import Checkpoint, LoggedEvent, RunStore


class Blobs(Protocol):
    """Where parts too large for every checkpoint keep what has changed: byte strings, named by their content."""

    def keep(self, content: bytes) -> str:
        """Keep it, and return its name."""

    def blob(self, name: str) -> bytes:
        """What was kept under that name."""


class Peers(Stateful, Protocol):
    """The clients' own states, where they live in the server's process tree: in a simulation."""

    def open(self, blobs: Blobs) -> None:
        """Called once, before all else."""

    def blobs(self) -> Collection[str]:
        """The names that the last `state`, or what was restored, refers to."""


def began_with(store: RunStore, output: OutputConfig) -> ServerConfig | None:
    """The settings that the store's run began with, its place as `output` has it; None if it never began.

    Raises:
        ConfigError: the run is finished.

    """
    if store.last_event("run_finished") is not None:
        raise ConfigError(f"run.out = {str(store.directory)!r}: the run is finished, there is nothing left to resume")
    begun = store.last_event("run_started")
    if begun is None:
        return None
    config = ServerConfig.from_run_config(begun.data)
    return replace(config, run=replace(config.run, out=output.out, resume=output.resume))


class Journal:
    """The run's record, with the model's last `keep_models` versions. `run_id` is Flower's, another after a crash."""

    def __init__(
        self, store: RunStore, parts: Mapping[str, Stateful], run_id: int, keep_models: int, peers: Peers | None = None
    ) -> None:
        self._store, self._parts, self._run_id, self._peers = store, dict(parts), str(run_id), peers
        if peers is not None:
            peers.open(store)
            self._parts["peers"] = peers
        self._models: deque[str] = deque(maxlen=keep_models)
        self.rows: list[results.RoundRow] = []
        self.seconds_before = 0.0  # that closed rounds took before the run was resumed
        self.same_run = True  # it is still the Flower run that it was
        self._key = 0

    @property
    def last(self) -> int:
        """The number of the last closed round; 0 if there is none."""
        return self.rows[-1].round if self.rows else 0

    @property
    def key(self) -> int:
        """What clients keep their state under, whichever Flower run this is: 1 to 2^63 - 1."""
        return self._key

    def open(self, facts: Mapping[str, Any]) -> None:
        """Write down once what holds for the whole run, and draw its key: nobody has been asked for anything before."""
        if (kept := self._store.last_event("run_facts")) is None or "key" not in kept.data:
            # Random, and not Flower's number of the run, which others know: see clients/state.py.
            self._store.append("run_facts", {**facts, "key": f"{1 + secrets.randbelow(2**63 - 1):x}"}, durable=True)
            kept = self._store.last_event("run_facts")
        assert kept is not None
        self._key = int(kept.data["key"], 16)

    def resume(self) -> int:
        """Bring rows and parts to where they were when the last round closed; returns how many events came after that.

        Raises:
            RunError: the checkpoint can't be read, or is not of these parts.

        """
        last = self._store.last_event("checkpoint")
        if last is None:
            return self._store.events_after(0)
        try:
            self._restore(last)
        except EdgeRuntimeError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            what = f"{type(error).__name__}: {error}"
            raise RunError(f"checkpoint of round {last.round}: is none of this run ({what[:200]})") from error
        return self._store.events_after(last.id)

    def _restore(self, last: LoggedEvent) -> None:
        tree = unpack(self._store.blob(last.data["blob"]))
        if missing := {*self._parts, "run_id"} - tree.keys():
            raise RunError(f"checkpoint of round {last.round}: does not hold {', '.join(sorted(missing))}")
        for name, part in self._parts.items():
            part.restore(tree[name])
        self.same_run = tree["run_id"] == self._run_id
        self.rows = [results.row_from_json(data) for _, data in self._store.events("round_closed")]
        self.seconds_before = sum(row.seconds for row in self.rows)
        self._models.extend(data["model"] for _, data in self._store.events("checkpoint"))

    def close_round(self, row: results.RoundRow, model: bytes) -> None:
        """When this returns the disk has the round, and a run that is killed goes on behind it.

        `model` is the model after it, as safetensors.
        """
        state = {name: part.state() for name, part in self._parts.items()} | {"run_id": self._run_id}
        checkpoint = Checkpoint(row.round, self._store.keep(pack(state)), self._store.keep_model(model))
        self._store.close_round(row.round, results.as_json(row), checkpoint)
        self.rows.append(row)
        self._models.append(checkpoint.model)
        self._store.forget({checkpoint.blob, *(self._peers.blobs() if self._peers else ())}, self._models)
