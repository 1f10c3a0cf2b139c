"""Who may ask what of the SuperLink: one app, two doors.

Flower serves three APIs on one port. The Fleet API is for devices, and each of its requests is signed with a device's
key. The Control API starts runs, that is, runs code on the server, and enrols devices; in the open package whoever
reaches the port may use it. The Runtime API hands out the server's own tasks. So the door that faces the network lets
the Fleet API through and nothing else, by exact method and path, and the other two have a door on loopback, where
they ask for secrets besides.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Route = tuple[str, str]

HEALTH: frozenset[Route] = frozenset({("GET", "/health"), ("HEAD", "/health")})
FLEET, CONTROL, RUNTIME = "/v1/fleet/", "/v1/control/", "/v1/runtime/"


class Door:
    """An ASGI app that passes a request on if its (method, path) is among `routes`, and answers 404 otherwise.

    A body larger than `max_bytes` is answered with 413 before the app sees any of it.
    """

    def __init__(self, app: App, routes: Collection[Route], max_bytes: int) -> None:
        self._app, self._routes, self._max_bytes = app, frozenset(routes), max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            return
        # Compared as the router will compare it: the decoded path, as it stands, with nothing resolved in it.
        elif (scope["method"], scope["path"]) not in self._routes:
            await _refuse(send, 404, b"not here")
        elif (body := await self._body(scope, receive)) is None:
            await _refuse(send, 413, b"request too large")
        else:
            await self._app(scope, _replay(body, receive), send)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None if it is too large, be that by its own word or by its bytes."""
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self._max_bytes:
            return None
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return b""  # it hung up; the app will hear of that, too
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._max_bytes:
                return None
            if not message.get("more_body", False):
                return b"".join(parts)


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
