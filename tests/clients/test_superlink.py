"""The adapter to flwr's private transport, held against a real SuperLink of the installed flwr."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from clients.agent import Agent
from clients.superlink import LinkDownError, SuperLink
from edge_runtime.cli import FLOWER_ENV

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


@dataclass
class Server:
    """A SuperLink on loopback that can be killed and started again; with a database it remembers its nodes."""

    folder: Path
    port: int
    database: bool
    process: psutil.Popen | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        programs = Path(sys.executable).parent
        command = [str(programs / "flower-superlink"), "--insecure", "--host", "127.0.0.1"]
        command += ["--port", str(self.port)]
        command += ["--database", str(self.folder / "state.db")] if self.database else []
        environment = {**os.environ, **FLOWER_ENV, "FLWR_HOME": str(self.folder)}
        environment["PATH"] = f"{programs}:{environment['PATH']}"  # it starts others by name
        with (self.folder / "superlink.log").open("a") as log:
            self.process = psutil.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        wait_for(self.listens)

    def listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "superlink.log").read_text()[-2000:]
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        if self.process is not None:
            family = [self.process, *self.process.children(recursive=True)]
            for one in family:
                one.kill()
            psutil.wait_procs(family, timeout=10)
            self.process.wait()
            self.process = None


@pytest.fixture(params=[True, False], ids=["database", "memory"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    running = Server(tmp_path, port, request.param)
    running.start()
    yield running
    running.kill()


@pytest.fixture
def link(server: Server) -> Iterator[Callable[..., SuperLink]]:
    """Lines to the server, which are closed in the end."""
    opened: list[SuperLink] = []

    def open_line(key: ec.EllipticCurvePrivateKey, **how: Any) -> SuperLink:
        opened.append(SuperLink(server.address, key, **{"ca": None, "insecure": True, **how}))
        return opened[-1]

    yield open_line
    for one in opened:
        one.close()


def test_a_device_keeps_its_id_through_crashes_of_either_side(server: Server, link) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    first = link(key)
    node = first.join()
    assert node != 0
    assert first.heartbeat()
    assert first.pull() is None
    first.close()  # without a word, as a crash is

    # Activation would be refused until the lease runs out; under its id the node goes on at once.
    second = link(key)
    with pytest.raises(LinkDownError, match="activat"):
        second.join()
    assert second.join(known=node) == node
    assert second.pull() is None

    server.kill()
    with pytest.raises(LinkDownError):
        second.pull()
    server.start()
    if server.database:
        assert second.pull() is None
        assert second.join(known=node) == node
    else:
        again = second.join(known=node)  # nobody remembers: it registers anew
        assert again not in (0, node)
    second.leave()
    assert link(key).join() == second.node_id


def test_an_agent_comes_back_by_itself(server: Server, link) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    joined: list[int] = []
    agent = Agent(link(key), _no_app, {}, known=0, remember=joined.append)
    thread = threading.Thread(target=agent.run)
    thread.start()
    try:
        wait_for(lambda: len(joined) == 1)
        server.kill()
        time.sleep(1.0)
        server.start()
        probe = link(key)
        if server.database:
            wait_for(lambda: probe.join(known=joined[0]) == joined[0])
        else:
            wait_for(lambda: len(joined) == 2)
            assert joined[0] != joined[1]
    finally:
        agent.stop()
        thread.join(timeout=30)
    assert not thread.is_alive()


def test_no_certificate_that_leads_to_the_authority_is_no_server(link, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    line = link(key, insecure=False)
    with pytest.raises(LinkDownError, match=r"SSL|ssl|certificate"):
        line.join()
    (tmp_path / "ca.crt").write_text("no certificate")
    with pytest.raises(LinkDownError):
        link(key, ca=tmp_path / "ca.crt", insecure=False)


def _no_app(message, context):
    raise AssertionError("there is no run, and so no message")


def wait_for(condition) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise TimeoutError
