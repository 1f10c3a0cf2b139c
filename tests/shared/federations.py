"""A SuperLink with nodes on loopback, behind a proxy that counts bytes, as real processes."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from edge_runtime.cli import FLOWER_ENV

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

# What Flower adds, both nodes together: a run's bundle of some 600 kB to each, per message some ten requests with their
# headers, records and object trees, and polls and heartbeats all the time.
BUNDLE_BYTES, MESSAGE_BYTES, IDLE_BYTES_PER_S = 1_300_000, 15_000, 3_000


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass
class CountingProxy:
    """Passes TCP connections on to `target` and counts the bytes of each direction; runs until the process ends."""

    target: tuple[str, int]
    up: int = 0
    down: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        # Closing alone would not wake the thread that waits on it.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        """Until either side ends the connection, or the SuperLink is not there."""
        with client, contextlib.suppress(OSError), socket.create_connection(self.target) as server:
            sinks = {client: server, server: client}
            while True:
                for source in select.select([client, server], [], [])[0]:
                    if not (data := source.recv(1 << 16)):
                        return
                    with self._lock:
                        self.up += len(data) if source is client else 0
                        self.down += len(data) if source is server else 0
                    sinks[source].sendall(data)


@dataclass(frozen=True)
class Federation:
    """A SuperLink with SuperNodes behind a proxy."""

    home: Path
    environment: dict[str, str]
    proxy: CountingProxy
    nodes: tuple[psutil.Popen, ...]

    def run(self, out: Path, settings: dict[str, Any]) -> Run:
        overrides = " ".join(words({**settings, "run.out": str(out)}))
        command = [str(BIN / "flwr"), "run", str(ROOT), "test", "--stream", "-c", overrides]
        up, down, started_s = self.proxy.up, self.proxy.down, time.monotonic()
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=280, check=False)
        passed = self.proxy.up - up, self.proxy.down - down
        log = done.stdout + done.stderr + (self.home / "flower.log").read_text()
        assert (out / "run.json").exists(), log[-3000:]
        record = json.loads((out / "run.json").read_text())
        assert record["error"] is None, record["error"]
        return Run(record, log, *passed, time.monotonic() - started_s)

    def run_whole(self, out: Path, settings: dict[str, Any]) -> Run:
        """A run of which no client may be missing."""
        run = self.run(out, settings)
        record = run.record
        assert all((row["clients"], row["dropped"]) == (2, 0) for row in record["rounds"]), record["rounds"]
        return run


@dataclass(frozen=True)
class Run:
    """What a run left, and what passed the proxy while it went on."""

    record: dict[str, Any]
    log: str
    up: int
    down: int
    seconds: float

    @property
    def payload_up(self) -> int:
        return int(self.record["final"]["uplink_bytes"])

    @property
    def payload_down(self) -> int:
        return int(self.record["final"]["downlink_bytes"])

    @property
    def flowers_share(self) -> float:
        """The most that Flower may add in one direction."""
        messages = 2 * len(self.record["rounds"])
        return BUNDLE_BYTES + messages * MESSAGE_BYTES + self.seconds * IDLE_BYTES_PER_S


@contextlib.contextmanager
def started(
    folder: Path,
    nodes: int,
    *,
    warm: int = 0,
    keep_state: bool = False,
    root_key: Path | None = None,
    settings: Sequence[dict[str, Any]] = (),
) -> Iterator[Federation]:
    """That many SuperNodes, each with a state path if it is to keep state, and with slots where there is a root key.

    The first `warm` of them are `hedgerow join`, of whose state folders each is the node's number. `settings` are the
    nodes' own; by default each is a partition of as many. All processes are ended by id afterwards.
    """
    home = folder / "flwr"
    home.mkdir(parents=True)
    environment = {**os.environ, **FLOWER_ENV, "FLWR_HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}"}
    address = f"127.0.0.1:{free_port()}"
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "test"\n[superlink.test]\naddress = "{address}"\ninsecure = true\n'
    )
    log = (folder / "flower.log").open("w")

    def start(program: str, *arguments: str) -> psutil.Popen:
        command = [str(BIN / program), *arguments]
        return psutil.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)

    host, _, port = address.rpartition(":")
    roots = [
        start("flower-superlink", "--insecure", "--host", host, "--port", port, "--database", str(folder / "state.db"))
    ]
    proxy = CountingProxy((host, int(port)))
    try:
        wait_until_listening(host, int(port))
        for node in range(nodes):
            config = dict(settings[node]) if settings else {"partition-id": node, "num-partitions": nodes}
            if keep_state:
                config["state-path"] = str(folder / str(node))
            if root_key:
                config["artefact-root-key"] = str(root_key)
                config["artefact-path"] = str(root_key.parent / "slots" / str(node))
            link = ["--insecure", "--superlink", proxy.address]
            if node < warm:
                sets = [part for word in words(config) for part in ("--set", word)]
                roots.append(start("hedgerow", "join", *link, "--state", str(folder / str(node)), *sets))
            else:
                own = ["--port", str(free_port()), "--node-config", " ".join(words(config))]
                roots.append(start("flower-supernode", *link, *own))
        yield Federation(folder, environment, proxy, tuple(roots[1:]))
    finally:
        end(roots)
        proxy.close()
        log.close()


def words(settings: dict[str, Any]) -> list[str]:
    """As TOML, which both command lines read."""
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def wait_until_listening(host: str, port: int) -> None:
    def listens() -> bool:
        with socket.socket() as sock:
            return sock.connect_ex((host, port)) == 0

    wait_until(listens, 60)


def wait_until(true: Callable[[], object], seconds: float) -> None:
    """TimeoutError if it has not come true by then."""
    until_s = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until_s:
            raise TimeoutError(f"not so within {seconds:g} s: {true}")
        time.sleep(0.1)


def end(roots: list[psutil.Popen]) -> None:
    """End the processes and everything that they started; nothing may be left."""
    family = [member for root in roots for member in [root, *root.children(recursive=True)]]
    for process in family:
        if process.is_running():
            process.terminate()
    _, alive = psutil.wait_procs(family, timeout=15)
    for process in alive:
        process.kill()
    _, alive = psutil.wait_procs(alive, timeout=5)
    assert not alive
