"""What holds for every request and every answer, before and after any of our code: sizes, hosts, headers.

Host      an address, localhost or a name that was allowed, else 421: a name that an attacker points at this machine
(DNS rebinding) is none of them
sizes     address 8 KiB (414), headers 32 KiB (431), body 64 KiB (413)
answers   a content security policy that lets the page load from here alone, and no storing of answers
"""

from __future__ import annotations

import ipaddress
import json
import logging
from collections.abc import Collection, Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_URL, MOST_HEADERS, MOST_BODY = 8 << 10, 32 << 10, 64 << 10
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; font-src 'self'; "
    "manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Mapping[str, str] = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_STORED = ("/static/",)  # these may be kept by a browser, which then asks whether they have changed
_log = logging.getLogger(__name__)


class _TooLargeError(Exception):
    """The body goes on past what is read."""


class Guard:
    """An ASGI application around another."""

    def __init__(self, app: ASGIApp, hosts: Collection[str] = ()) -> None:
        self._app, self._hosts = app, frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(scope["path"], send)
        if refusal := self._refusal(scope):
            await answer.refuse(*refusal)
            return
        try:
            await self._app(scope, _bounded(receive), answer.send)
        except _TooLargeError:
            await answer.refuse(413, f"body: at most {MOST_BODY} bytes are read")
        except Exception:  # whatever it is, no traceback goes out
            _log.exception("%s %s", scope["method"], scope["path"])
            await answer.refuse(500, "the dashboard failed here; its log says where")

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = scope["headers"]
        if len(scope.get("raw_path") or scope["path"].encode()) + len(scope["query_string"]) > MOST_URL:
            return 414, f"address: at most {MOST_URL} bytes are read"
        if sum(len(name) + len(value) for name, value in headers) > MOST_HEADERS:
            return 431, f"headers: at most {MOST_HEADERS} bytes are read"
        named = [value for name, value in headers if name == b"host"]
        if len(named) != 1 or not allowed_host(named[0].decode("latin-1"), self._hosts):
            return 421, "host: not a name of this dashboard; --allow-host NAME adds one"
        lengths = [value for name, value in headers if name == b"content-length"]
        if lengths and any(name == b"transfer-encoding" for name, _ in headers):
            return 400, "headers: a body has a length or comes in chunks"
        if lengths and (not lengths[0].isdigit() or int(lengths[0][:20]) > MOST_BODY):
            return 413, f"body: at most {MOST_BODY} bytes are read"
        return None


def allowed_host(host: str, names: Collection[str]) -> bool:
    """Whether a Host header names this machine in a way that no other site can make it be named.

    >>> [allowed_host(host, {"a.example"}) for host in ("127.0.0.1:8080", "localhost", "A.example:80", "b.example")]
    [True, True, True, False]
    """
    name = split_host(host)
    if name is None:
        return False
    if name == "localhost" or name in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def split_host(host: str) -> str | None:
    """The name in `name:port`, in lower case; None if it is no such thing."""
    if host.startswith("["):
        name, closed, rest = host[1:].partition("]")
        if not closed:
            return None
    else:
        name, colon, port = host.partition(":")
        rest = colon + port
    port = rest.removeprefix(":")
    if rest and not (rest.startswith(":") and port.isascii() and port.isdigit() and int(port[:6]) < 65536):
        return None
    return name.lower().rstrip(".") or None


def _bounded(receive: Receive) -> Receive:
    read = 0

    async def bounded() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > MOST_BODY:
            raise _TooLargeError
        return message

    return bounded


class _Answer:
    """Adds our headers; can still refuse while nothing has been sent."""

    def __init__(self, path: str, send: Send) -> None:
        self._send, self._begun = send, False
        self._cache = b"no-cache" if path.startswith(_STORED) else b"no-store"

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begun = True
            ours = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            ours.append((b"cache-control", self._cache))
            replaced = {name for name, _ in ours}
            kept = [(name, value) for name, value in message["headers"] if name.lower() not in replaced]
            message = {**message, "headers": [*kept, *ours]}
        await self._send(message)

    async def refuse(self, status: int, error: str) -> None:
        if self._begun:
            return
        body = json.dumps({"error": error}).encode()
        headers: list[Any] = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers.append((b"connection", b"close"))  # what is left of the request is not read
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})
