"""The models of a device: the one that runs, the one before it, and how a new one takes its place or does not.

    folder/state.json     which slot is current, which is previous, the version floor: replaced in one move
           slots/NAME/    a verified artefact: manifest, signatures, golden vectors, one model file
           incoming/      what is being received; worth nothing until it was renamed into slots/
           journal.jsonl  what happened

`install` goes: signed manifest (size caps, root key, release key, version above the floor, not expired) -> room on
the disk -> each file streamed into incoming/, no byte past its signed size -> SHA-256 -> structural allow-list -> trial
in a child process -> fsync, rename -> state.json names it (the switch) -> trial where it stands -> on trial, until
`judge` has seen a healthy window. Whatever fails before the switch leaves the state untouched; whatever fails after it
rolls back to the previous slot. Between any two steps the power may go: `state.json` names whole slots alone.

A lower version never comes from outside: what a server wants back, it signs again with a higher one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.deploy.artefact import verified_bytes
from edge_runtime.deploy.runner import Runner
from edge_runtime.deploy.trust.digest import sha256_hex
from edge_runtime.deploy.trust.disk import attempt, remove, sync_folder, write_file
from edge_runtime.deploy.trust.health import Health, Verdict
from edge_runtime.deploy.trust.journal import append_event, read_events
from edge_runtime.deploy.trust.keys import public_key
from edge_runtime.deploy.trust.manifest import MANIFEST, Golden, Manifest, parse_manifest
from edge_runtime.deploy.trust.state import STATE, State, Trust, locked, read_state, write_state
from edge_runtime.deploy.trust.verify import (
    SignedManifest,
    Source,
    check_fresh,
    directory_source,
    exact_chunks,
    signed_manifest,
)
from edge_runtime.errors import ArtefactError

if TYPE_CHECKING:
    # A process that only runs a model never starts another one: what a trial takes is loaded by the trial.
    from edge_runtime.deploy.trust.sandbox import Limits, Trial

SUFFIXES = (".hedgerow", ".tflite", ".onnx")  # what a device would rather run
MAX_ARTEFACT_BYTES = 256 << 20
RESERVE_BYTES = 1 << 20  # stays free, so that a roll-back can always be written down
MAX_STARTS = 3


@dataclass(frozen=True, slots=True)
class Slot:
    """An installed artefact: its folder, the model file in it that this device runs, and its manifest."""

    folder: Path
    model: Path
    manifest: Manifest

    @property
    def version(self) -> int:
        """The manifest's."""
        return self.manifest.version


class Slots:
    """The slots of one state folder. Any number of processes may hold it; one at a time installs.

    Args:
        folder: made if it is not there.
        root_key: the publisher's root key: 32 bytes, 64 hex digits, or its `.pub` file.
        suffixes: the model files this device runs, the preferred first.
        limits: what a trial may take.
        max_bytes: the largest artefact received.
        clock: seconds since 1970.
        after_step: called with a step's name right after it: for progress, and for tests that cut the power there.

    """

    def __init__(
        self,
        folder: str | Path,
        root_key: bytes | str | Path,
        *,
        suffixes: Sequence[str] = SUFFIXES,
        limits: Limits | None = None,
        max_bytes: int = MAX_ARTEFACT_BYTES,
        clock: Callable[[], float] = time.time,
        after_step: Callable[[str], None] = lambda step: None,
    ) -> None:
        self.folder = Path(folder)
        self._root_key = public_key(root_key)
        self._suffixes, self._limits, self._max_bytes = tuple(suffixes), limits, max_bytes
        self._clock, self._after_step = clock, after_step
        self._opened: str | None = None  # the slot that this process runs; another one may install
        place = self.folder / "slots"
        attempt("made", place, lambda: place.mkdir(parents=True, exist_ok=True))

    # What is there.

    @property
    def state(self) -> State:
        """As it stands on the disk now."""
        return read_state(self.folder / STATE)

    def current(self) -> Slot | None:
        """The slot that runs, or None on a device that has none yet."""
        name = self.state.current
        return self._slot(name) if name else None

    def events(self) -> list[dict[str, Any]]:
        """The journal, the newest last."""
        return read_events(self.folder)

    def open(self, *, threads: int = 1) -> Runner | None:
        """A runner of the current model, verified now; of the previous one, if the current one was damaged since.

        Raises:
            ArtefactError: neither is whole.

        """
        name = self.state.current
        if name is None:
            return None
        self._opened = name
        try:
            return Runner.open(self._slot(name).model, threads=threads, root_key=self._root_key)
        except ArtefactError as error:
            slot = self._left(name, f"cannot be opened: {error}", to_none=False)
        return Runner.open(slot.model, threads=threads, root_key=self._root_key) if slot else None

    def start(self) -> Slot | None:
        """The slot to run, as a service asks when it starts.

        A model that was not tested where it stands is tested now. One still on trial that has been started more than
        `MAX_STARTS` times without a verdict keeps taking its process down with it, and is rolled back.
        """
        with self._changing():
            state = self.state
            if state.trust is not Trust.CONFIRMED:
                self._write(replace(state, starts=state.starts + 1))
        self._opened = name = state.current
        if name is None:
            return None
        if state.trust is not Trust.CONFIRMED and state.starts >= MAX_STARTS:
            return self._left(name, f"started {state.starts} times without proving healthy")
        try:
            slot = self._slot(name)
        except ArtefactError as error:
            return self._left(name, str(error))
        if state.trust is Trust.SWITCHED and (reason := self._self_test(slot)):
            return self._left(name, reason)
        return slot

    # What changes it.

    def install(self, source: Source | str | Path) -> Slot:
        """Take an artefact from a folder, or from a function of a file's name that gives its chunks.

        Returns the slot that now runs, on trial; the current one, if it is this very artefact and not damaged. Only the
        manifest, its signatures, the golden vectors and one model file are asked for.

        Raises:
            ArtefactError: refused, or it failed its self-test after the switch and the previous slot runs again; the
                text and the journal say why. What `source` itself raises comes through.

        """
        source = directory_source(source) if isinstance(source, (str, Path)) else source
        with locked(self.folder / "install.lock", wait=False):
            self._sweep()
            with self._refusing():
                signed = signed_manifest(source, self._root_key)
            version = signed.manifest.version
            repairs = self._is_current(signed)
            if repairs and (whole := self._whole()):
                return whole
            with self._refusing(version=version):
                name = self._received(signed, source, repairs=repairs)
            with self._changing():
                old = self.state
                seen = (version, signed.release.serial, max(old.time_s, signed.manifest.created))
                self._write(State(name, old.previous if repairs else old.current, Trust.SWITCHED, 0, *seen))
            self._note("switched", version=version)
            self._after_step("switched")
            self._opened, slot = name, self._slot(name)
            if reason := self._self_test(slot):
                self._left(name, reason)
                raise ArtefactError(f"version {version} was rolled back: {reason}")
            self._sweep()
            self._after_step("swept")
            return slot

    def judge(self, health: Health) -> Verdict:
        """Confirm the slot on trial if its window is healthy; roll it back if it is not. Nothing once confirmed.

        The window is of the slot that this object started, opened or installed last. Where another process has put
        another one in its place since, nothing changes: that one has a window of its own to prove.
        """
        verdict, reason = health.judge()
        state = self.state
        name = self._opened or state.current
        if name is None or state.trust is Trust.CONFIRMED or verdict is Verdict.WAIT:
            return verdict
        if verdict is Verdict.BAD:
            self._left(name, reason)
        else:
            self._confirmed(name, reason)
        return verdict

    def confirm(self, reason: str = "by hand") -> None:
        """End the trial of the current slot."""
        self._confirmed(self.state.current, reason)

    def rollback(self, reason: str) -> Slot:
        """Run the previous slot again. The version floor stays, so that what was rolled back can't be replayed.

        Raises:
            ArtefactError: there is no previous slot, or it is damaged; the current one stays.

        """
        slot = self._left(self.state.current, reason, to_none=False)
        if slot is None:
            raise ArtefactError(f"{self.folder}: there is no slot to roll back to ({reason})")
        return slot

    def fall_back(self, slot: Slot, reason: str) -> Slot | None:
        """Roll back from `slot`, on a device that never had another model to none; what runs now.

        Nothing changes where it is no longer the current one.
        """
        return self._left(slot.folder.name, reason)

    # How an install goes.

    def _received(self, signed: SignedManifest, source: Source, *, repairs: bool) -> str:
        """The name of the slot that now holds the artefact, after all checks that come before the switch.

        The current version passes the floor only to take the place of its own damaged files.
        """
        manifest, state = signed.manifest, self.state
        # A device without a clock that runs on batteries knows the time from signed manifests at least.
        floor = state.floor - 1 if repairs else state.floor
        check_fresh(signed, max(self._clock(), state.time_s), floor=floor, serial=state.serial)
        self._after_step("manifest")
        from edge_runtime.deploy.trust.runtimes import wanted_model

        model, golden = wanted_model(manifest, self._suffixes), golden_of(manifest)
        self._check_room(sum(manifest.files[name].nbytes for name in (golden.file, model)))
        incoming = self.folder / "incoming"
        attempt("made", incoming, incoming.mkdir)
        for name, text in signed.texts.items():
            write_file(incoming / name, [text])
        for name in (golden.file, model):
            write_file(incoming / name, exact_chunks(source, name, manifest.files[name]))
            self._after_step(f"received {name}")
        trial = self._try(Slot(incoming, incoming / model, manifest))
        self._note("tried", version=manifest.version, difference=trial.difference, latency_s=trial.latency_s)
        self._after_step("tried")
        name = _slot_name(signed)
        while name in state.named:
            name += "+"
        place = self.folder / "slots" / name
        remove(place)  # of an install that ended between rename and switch
        attempt("synced", incoming, lambda: sync_folder(incoming))
        attempt("moved", incoming, lambda: incoming.rename(place))
        attempt("synced", place.parent, lambda: sync_folder(place.parent))
        self._after_step("placed")
        return name

    def _is_current(self, signed: SignedManifest) -> bool:
        """Whether the current slot was made from this very manifest, whatever became of its files."""
        state = self.state
        return (state.current or "").rstrip("+") == _slot_name(signed) and state.floor == signed.manifest.version

    def _whole(self) -> Slot | None:
        """The current slot, if its files are what was installed."""
        try:
            slot = self.current()
            if slot is not None:
                golden = golden_of(slot.manifest).file
                for path in (slot.model, slot.folder / golden):
                    verified_bytes(path, self._root_key)
        except ArtefactError:
            return None
        return slot

    def _self_test(self, slot: Slot) -> str:
        """Try the current slot where it stands: on trial from now on, or the reason why not."""
        try:
            verified_bytes(slot.model, self._root_key)
            self._try(slot)
        except ArtefactError as error:
            return f"self-test: {error}"
        with self._changing():
            state = self.state
            if state.current == slot.folder.name and state.trust is Trust.SWITCHED:
                self._write(replace(state, trust=Trust.ON_TRIAL))
        self._after_step("self-tested")
        return ""

    def _left(self, name: str | None, reason: str, *, to_none: bool = True) -> Slot | None:
        """Go from the slot `name` to the one before it; what runs now.

        Processes find out about a bad slot at the same time. The first one leaves it; whoever comes later finds
        another one current, and must not leave that as well.
        """
        with self._changing():
            state = self.state
            if state.current != name:
                return self._slot(state.current) if state.current else None
            if state.previous is None and not to_none:
                raise ArtefactError(f"{self.folder}: there is no previous slot to roll back to ({reason})")
            slot = self._slot(state.previous) if state.previous else None
            if slot is not None:
                verified_bytes(slot.model, self._root_key)
            self._write(replace(state, current=state.previous, previous=None, trust=Trust.CONFIRMED, starts=0))
        self._note("rolled back", to=slot.version if slot else None, reason=reason)
        if slot is not None:
            self._after_step("rolled back")
        return slot

    def _confirmed(self, name: str | None, reason: str) -> None:
        with self._changing():
            state = self.state
            if state.current != name:
                return
            self._write(replace(state, trust=Trust.CONFIRMED, starts=0))
        self._note("confirmed", reason=reason)

    def _try(self, slot: Slot) -> Trial:
        from edge_runtime.deploy.trust import sandbox

        golden = golden_of(slot.manifest)
        files, name = slot.manifest.files, slot.model.name
        return sandbox.try_model(
            slot.model,
            slot.folder / golden.file,
            sha256=(files[name].sha256, files[golden.file].sha256),
            tolerance=golden.tolerance[name],
            limits=self._limits,
        )

    def _check_room(self, nbytes: int) -> None:
        if nbytes > self._max_bytes:
            raise ArtefactError(f"{MANIFEST}: {nbytes} bytes; this device takes {self._max_bytes} at most")
        disk = os.statvfs(self.folder)
        free = disk.f_bavail * disk.f_frsize
        if free < nbytes + RESERVE_BYTES:
            raise ArtefactError(f"{self.folder}: {free} bytes are free; {nbytes + RESERVE_BYTES} are needed")

    @contextmanager
    def _refusing(self, **about: Any) -> Iterator[None]:
        """Whatever fails in here is written down, and leaves nothing behind."""
        try:
            yield
        except Exception as error:
            self._note("refused", reason=str(error), **about)
            raise
        finally:
            remove(self.folder / "incoming")

    def _sweep(self) -> None:
        """Remove what nothing names: half an artefact, and slots before the previous one."""
        remove(self.folder / "incoming")
        with self._changing():
            kept = self.state.named
            for path in (self.folder / "slots").iterdir():
                if path.name not in kept:
                    remove(path)
            for part in self.folder.glob(f".{STATE}.*.part"):
                part.unlink(missing_ok=True)

    def _slot(self, name: str) -> Slot:
        folder = self.folder / "slots" / name
        try:
            manifest = parse_manifest((folder / MANIFEST).read_bytes(), str(folder / MANIFEST))
        except OSError as error:
            raise ArtefactError(f"{folder}: cannot be read ({error.strerror})") from error
        held = [name for suffix in self._suffixes for name in manifest.models(suffix) if (folder / name).exists()]
        if not held:
            raise ArtefactError(f"{folder}: holds no model; roll back, or install again")
        return Slot(folder, folder / held[0], manifest)

    def _write(self, state: State) -> None:
        attempt("written", self.folder / STATE, lambda: write_state(self.folder / STATE, state))

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with locked(self.folder / "state.lock", wait=True):
            yield

    def _note(self, event: str, **about: Any) -> None:
        append_event(self.folder, self._clock(), event, **about)


def _slot_name(signed: SignedManifest) -> str:
    return f"{signed.manifest.version}-{sha256_hex(signed.texts[MANIFEST])[:32]}"


def golden_of(manifest: Manifest) -> Golden:
    """The manifest's golden vectors.

    Raises:
        ArtefactError: it has none, and so nothing would prove that this device runs the model right.

    """
    if manifest.golden is None:
        raise ArtefactError(f"{manifest.name} {manifest.version}: has no golden vectors; `hedgerow sign` makes them")
    return manifest.golden
