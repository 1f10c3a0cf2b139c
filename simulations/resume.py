"""What a simulated run needs to go on, beside what a server keeps: its scenario, its time, its clients' states."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from edge_runtime.config import flatten, from_flat
from edge_runtime.errors import ConfigError
from edge_runtime.files import write_atomically
from server.checkpoint import Tree, pack, unpack
from server.journal import Blobs
from server.run_store import EVENTS
from simulations.scenario import Scenario, parse_override

SCENARIO = "scenario.json"  # in the run directory
MOST_BLOBS = 64  # that hold states; beyond it they are joined
MAY_CHANGE = ("server.workers",)  # of a run that is resumed


def keep_scenario(scenario: Scenario, directory: Path) -> None:
    """Write down what is simulated, before it begins; ConfigError if it can't be."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        kept = {"scenario": dict(flatten(scenario)), "entry_folder": _entry_folder(scenario.model.entry)}
        text = json.dumps(kept, indent=1) + "\n"
        write_atomically(directory / SCENARIO, [text.encode()])
    except OSError as error:
        raise ConfigError(f"run.out = {str(directory)!r}: cannot be written ({error.strerror or error})") from error


def kept_scenario(directory: Path, overrides: Sequence[str] = ()) -> Scenario:
    """The scenario of the run in that directory, to be resumed.

    Raises:
        ConfigError: there is none, or an override would make it another run.

    """
    try:
        kept = json.loads((directory / SCENARIO).read_text("utf-8"))
        values: dict[str, Any] = kept["scenario"]
        folder: str = kept["entry_folder"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{directory}: holds no simulated run to resume ({SCENARIO}: {reason})") from error
    for override in overrides:
        name, value = parse_override(override)
        if name not in MAY_CHANGE:
            raise ConfigError(
                f"--set {override}: a resumed run keeps the settings it began with; {', '.join(MAY_CHANGE)} may change"
            )
        values[name] = value
    if folder and folder not in sys.path:
        sys.path.append(folder)
    # A run that was killed before its first event begins now.
    began = (directory / EVENTS).is_file()
    return from_flat(Scenario, values | {"run.out": str(directory), "run.resume": began})


def _entry_folder(entry: str) -> str:
    """Where the user's own model is imported from; empty if there is none."""
    spec = importlib.util.find_spec(entry.partition(":")[0].partition(".")[0]) if entry else None
    if spec is None or spec.origin is None:
        return ""
    package = spec.submodule_search_locations is not None
    return str(Path(spec.origin).resolve().parents[1 if package else 0])


class Clients(Protocol):
    """Whoever holds the simulated clients' states."""

    def changed_states(self) -> Mapping[int, bytes]: ...
    def restore_states(self, states: Mapping[int, bytes], now_s: float) -> None: ...
    def clock(self) -> float: ...


class ClientStates:
    """The clients' own states as part of a run's checkpoints.

    Those that have changed since the last one are written together, as one blob, for every file costs the disk a wait;
    of each client the newest counts. Once many blobs hold such, all states go into one again.
    """

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._blobs: Blobs | None = None
        self._places: dict[str, str] = {}  # client -> the blob with its newest state

    def open(self, blobs: Blobs) -> None:
        self._blobs = blobs

    def blobs(self) -> Collection[str]:
        return set(self._places.values())

    def state(self) -> Tree:
        changed = {str(node): content for node, content in self._clients.changed_states().items()}
        if changed and len(self.blobs()) >= MOST_BLOBS:
            changed = self._read() | changed
        if changed:
            assert self._blobs is not None
            self._places |= dict.fromkeys(changed, self._blobs.keep(pack(changed)))
        return {"clients": dict(self._places), "now_s": self._clients.clock()}

    def restore(self, state: Tree) -> None:
        self._places = dict(state["clients"])
        states = {int(client): content for client, content in self._read().items()}
        self._clients.restore_states(states, state["now_s"])

    def _read(self) -> dict[str, bytes]:
        assert self._blobs is not None
        trees = {name: unpack(self._blobs.blob(name)) for name in self.blobs()}
        return {client: trees[name][client] for client, name in self._places.items()}
