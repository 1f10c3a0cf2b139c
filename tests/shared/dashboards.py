"""Dashboards on loopback, and what they must leave alone."""

from __future__ import annotations

import socket
import sys
import threading
import time
from contextlib import contextmanager

import httpx

from server.dashboard.serving import Listen, make_server

HEDGEROW = [sys.executable, "-c", "import sys; from edge_runtime.cli import main; sys.exit(main())"]


@contextmanager
def serving(folder, tokens=None):
    """A dashboard on loopback, in a thread; gives its address."""
    server = make_server(folder, Listen(port=0), tokens)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def files_of(folder):
    """Every file in it with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def until_it_answers(url, **options):
    """The first answer from a process that has just been started."""
    for _ in range(600):
        try:
            return httpx.get(url, **options)
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(f"{url} does not answer")
