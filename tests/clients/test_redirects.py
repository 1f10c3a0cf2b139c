"""A server can't send a device, and what it has signed, to another one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from clients.superlink import LinkDownError, SuperLink


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[str]]]:
    """A server that sends everybody on to another, and what that one was asked."""
    asked: list[str] = []

    class Other(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    class First(Other):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(307)
            self.send_header("location", f"http://127.0.0.1:{other.server_port}{self.path}")
            self.send_header("content-length", "0")
            self.end_headers()

    first, other = (ThreadingHTTPServer(("127.0.0.1", 0), kind) for kind in (First, Other))
    threads = [threading.Thread(target=one.serve_forever) for one in (first, other)]
    for thread in threads:
        thread.start()
    yield f"127.0.0.1:{first.server_port}", asked
    for one, thread in zip((first, other), threads, strict=True):
        one.shutdown()
        thread.join()
        one.server_close()


def test_a_redirect_is_not_followed(elsewhere: tuple[str, list[str]]) -> None:
    address, asked = elsewhere
    link = SuperLink(address, ec.generate_private_key(ec.SECP384R1()), ca=None, insecure=True)
    with pytest.raises(LinkDownError, match="answers 307"):
        link.join()
    link.close()
    assert asked == []
