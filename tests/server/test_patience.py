"""A connection at the devices' door costs little, and not for long; against uvicorn itself, on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn

from server.serve import patience
from server.serve.patience import HEAD_BYTES, PatientProtocol

pytestmark = pytest.mark.timeout(60)
REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.sleep(0.4)  # longer than anybody waits for a request
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@contextlib.asynccontextmanager
async def served(connections: int) -> AsyncIterator[int]:
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        h11_max_incomplete_event_size=HEAD_BYTES,
        limit_concurrency=connections,
        lifespan="off",
        ws="none",
        log_config=None,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as door:
        serving = asyncio.create_task(server._serve([door]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        try:
            yield door.getsockname()[1]
        finally:
            server.should_exit = True
            await serving


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "HEAD_S", 0.2)


async def said(reader: asyncio.StreamReader) -> bytes:
    """All until the other side hangs up; empty where it broke off."""
    with contextlib.suppress(ConnectionError):
        return await asyncio.wait_for(reader.read(), 10)
    return b""


@pytest.mark.parametrize("first", [b"", b"GET / HT", REQUEST])
def test_who_asks_for_nothing_is_hung_up_on(first: bytes) -> None:
    """Byte by byte, too, and after a request that was answered."""

    async def idle() -> bytes:
        async with served(10) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(first)
            answer = b""
            if first == REQUEST:
                answer = await reader.readuntil(b"ok")
            with contextlib.suppress(ConnectionError):
                for _ in range(100):  # 5 s of it, were it let
                    writer.write(b"G" if not first.startswith(b"GET / HT") or first == REQUEST else b"T")
                    await writer.drain()
                    await asyncio.sleep(0.05)
                    if reader.at_eof():
                        break
                else:
                    raise AssertionError("nobody hung up")
            writer.close()
            return answer

    assert asyncio.run(idle()).startswith(b"HTTP/1.1 200" if first == REQUEST else b"")


def test_a_request_takes_what_time_it_takes() -> None:
    async def ask() -> bytes:
        async with served(10) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(REQUEST)
            answer = await reader.readuntil(b"ok")
            writer.write(REQUEST.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
            answer += await said(reader)
            writer.close()
            return answer

    assert asyncio.run(ask()).count(b"200 OK") == 2


def test_more_connections_than_there_may_be_are_cut_off() -> None:
    async def crowd() -> tuple[int, bytes]:
        async with served(3) as port:
            pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
            await asyncio.sleep(0.1)
            cut = sum(reader.at_eof() or reader.exception() is not None for reader, _ in pairs)
            await asyncio.sleep(0.3)  # the others asked for nothing
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(REQUEST)
            answer = await reader.readuntil(b"ok")
            for _, other in [*pairs, (reader, writer)]:
                other.close()
            return cut, answer

    cut, answer = asyncio.run(crowd())
    assert cut == 17
    assert answer.startswith(b"HTTP/1.1 200")


def test_headers_without_end_are_refused() -> None:
    async def send() -> bytes:
        async with served(10) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\nx: " + b"a" * (2 * HEAD_BYTES))
            answer = await said(reader)
            writer.close()
            return answer

    assert asyncio.run(send())[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 431", b"")
