"""Who may ask what of the SuperLink: one app, two doors.

Flower serves three APIs on one port. The Fleet API is for devices, and each of its requests is signed with a device's
key. The Control API starts runs, that is, runs code on the server, and enrols devices; in the open package whoever
reaches the port may use it. The Runtime API hands out the server's own tasks. So the door that faces the network lets
the Fleet API through and nothing else, by exact method and path, and the other two have a door on loopback, where
they ask for secrets besides.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Route = tuple[str, str]

HEALTH: frozenset[Route] = frozenset({("GET", "/health"), ("HEAD", "/health")})
FLEET, CONTROL, RUNTIME = "/v1/fleet/", "/v1/control/", "/v1/runtime/"
SMALL_BYTES = 64 << 10  # of a body that is read before it is known who sends it
HELD_BYTES = 1 << 30  # of larger bodies at a time, over all requests; what is more waits, and so does its sender
PATIENCE_S = 30.0  # for the next piece of a body


class Rules(Protocol):
    """What else a door asks of those who come by it."""

    async def is_known(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a request with these headers may bring a large body."""

    def refusal(self, path: str, body: bytes) -> str:
        """Why that is not let through; empty if it is."""


class Door:
    """An ASGI app that passes a request on if its (method, path) is among `routes`, and answers 404 otherwise.

    A body larger than `max_bytes` is answered with 413 before the app sees any of it, one larger than SMALL_BYTES with
    401 before it is read, unless the rules know its sender.
    """

    def __init__(
        self,
        app: App,
        routes: Collection[Route],
        max_bytes: int,
        rules: Rules | None = None,
        *,
        held_bytes: int = HELD_BYTES,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._app, self._routes, self._max_bytes, self._rules = app, frozenset(routes), max_bytes, rules
        self._room, self._patience_s = _Room(max(held_bytes, max_bytes)), patience_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            return
        # Compared as the router will compare it: the decoded path, as it stands, with nothing resolved in it.
        elif (scope["method"], scope["path"]) not in self._routes:
            await _refuse(send, 404, b"not here")
        elif (most := self._most(headers := dict(scope["headers"]))) > self._max_bytes:
            await _refuse(send, 413, b"request too large")
        elif most <= SMALL_BYTES or self._rules is None:
            await self._pass(scope, receive, send, most)
        elif not await self._rules.is_known(headers):
            await _refuse(send, 401, b"no device that is known here")
        else:
            async with self._room.taken(most):
                await self._pass(scope, receive, send, most)

    def _most(self, headers: Mapping[bytes, bytes]) -> int:
        """Bytes that the body can have, by its own word; what will be read of it where it does not say."""
        announced = headers.get(b"content-length")
        if announced is None:
            return self._max_bytes if b"transfer-encoding" in headers else 0
        return int(announced) if announced.isdigit() and len(announced) < 16 else self._max_bytes + 1

    async def _pass(self, scope: Scope, receive: Receive, send: Send, most: int) -> None:
        try:
            body = await self._body(receive, most)
        except TimeoutError:
            await _refuse(send, 408, b"the request does not go on")
            return
        if body is None:
            await _refuse(send, 413, b"request too large")
        elif self._rules and (why := self._rules.refusal(scope["path"], body)):
            await _refuse(send, 400, why.encode())
        else:
            await self._app(scope, _replay(body, receive), send)

    async def _body(self, receive: Receive, most: int) -> bytes | None:
        """The whole body; None if it is larger than that. TimeoutError if no more of it comes."""
        parts, size = [], 0
        while True:
            async with asyncio.timeout(self._patience_s):
                message = await receive()
            if message["type"] != "http.request":
                return b""  # it hung up; the app will hear of that, too
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > most:
                return None
            if not message.get("more_body", False):
                return b"".join(parts)


class _Room:
    """So many bytes, of which parts are taken; who finds none left waits until there are."""

    def __init__(self, nbytes: int) -> None:
        self._left = nbytes
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def taken(self, nbytes: int) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: self._left >= nbytes)
            self._left -= nbytes
        try:
            yield
        finally:
            self._left += nbytes
            async with self._changed:
                self._changed.notify_all()


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body in one message, then whatever else comes (that the client hung up)."""
    told = False

    async def again() -> MutableMapping[str, Any]:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _refuse(send: Send, status: int, text: bytes) -> None:
    headers = [
        (b"content-type", b"text/plain"),
        (b"content-length", str(len(text)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})
