"""A stranger at the port for devices can neither start a run nor enrol a device, nor take the server's tasks.

Asked of Flower's own SuperLink app behind our door, with every request that it knows.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.proto.control_pb2 import ListRunsRequest, RegisterNodeRequest, StartRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.fleet_pb2 import RegisterNodeFleetRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from serving import bundle

from server.devices import make_key
from server.serve.door import CONTROL, FLEET, HEALTH, RUNTIME, App, Door
from server.serve.superlink import routes, superlink_app

TOKEN = secrets.token_urlsafe(32)
LIMIT = 1 << 20
PROTOBUF = {"content-type": PROTOBUF_MEDIA_TYPE, "accept": PROTOBUF_MEDIA_TYPE}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> App:
    database = tmp_path_factory.mktemp("superlink") / "superlink.sqlite"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Flower's call of alembic
        return superlink_app(str(database), TOKEN, secrets.token_bytes(32), node_keys=True)


@pytest.fixture
def public(app: App) -> Callable[..., httpx.Response]:
    return lambda *args, **more: ask(Door(app, routes(FLEET), LIMIT), *args, **more)


@pytest.fixture
def inner(app: App) -> Callable[..., httpx.Response]:
    return lambda *args, **more: ask(Door(app, routes(CONTROL, RUNTIME), 1 << 30), *args, **more)


def ask(
    door: Door, method: str, path: str | httpx.URL, content: bytes = b"", headers: dict[str, str] | None = None
) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(door, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="https://garden.example") as client:
            return await client.request(method, path, content=content, headers={**PROTOBUF, **(headers or {})})

    return asyncio.run(send())


def start_run() -> bytes:
    return StartRunRequest(fab=Fab(content=bundle())).SerializeToString()


def test_everything_but_the_fleet_api_is_not_here(public: Callable[..., httpx.Response]) -> None:
    others = [route for route in PROTOBUF_REQUEST_TYPES if not route[1].startswith(FLEET)]
    assert len(others) > 40
    others += [("GET", "/docs"), ("GET", "/openapi.json"), ("POST", "/v1/runtime/responses"), ("GET", "/")]
    token = {"authorization": f"Bearer {TOKEN}"}  # even with the right one
    for method, path in others:
        answer = public(
            method, path, PROTOBUF_REQUEST_TYPES.get((method, path), ListRunsRequest)().SerializeToString(), token
        )
        assert (answer.status_code, answer.content) == (404, b"not here"), (method, path)


@pytest.mark.parametrize(
    "path",
    [
        "//v1/control/start-run",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/..%2fcontrol/start-run",
        "/v1%2fcontrol%2fstart-run",
        "/v1/control/start-run/",
        "/V1/control/start-run",
        "/v1/fleet/",
        "/v1/fleet/get-run/../../control/start-run",
        "/v1/fleet/register-node;/v1/control/start-run",
        "/health/../v1/control/start-run",
    ],
)
def test_no_spelling_of_a_path_leads_past_the_door(public: Callable[..., httpx.Response], path: str) -> None:
    url = httpx.URL("https://garden.example", raw_path=path.encode())
    assert public("POST", url, start_run()).status_code == 404


@pytest.mark.parametrize(
    "host", ["x/v1/control/start-run?", "x/v1/runtime/push-object?", "x#", "x/v1/control/list-runs#"]
)
def test_no_host_header_turns_one_request_into_another(public: Callable[..., httpx.Response], host: str) -> None:
    """Whoever compares paths must compare the same ones; a device's request stays one that needs a device's key."""
    for path in ("push-object", "pull-object", "get-fab", "register-node"):
        answer = public("POST", f"/v1/fleet/{path}", start_run(), {"host": host})
        assert answer.status_code in (400, 401), (path, answer.text)


def test_the_fleet_api_asks_for_a_devices_signature(public: Callable[..., httpx.Response], tmp_path: Path) -> None:
    fleet = [route for route in PROTOBUF_REQUEST_TYPES if route[1].startswith(FLEET)]
    assert len(fleet) > 10
    for method, path in fleet:
        answer = public(method, path, PROTOBUF_REQUEST_TYPES[(method, path)]().SerializeToString())
        assert answer.status_code == 401, path
    assert public("GET", "/health").status_code == 200


def test_a_stranger_cannot_enrol_itself(
    public: Callable[..., httpx.Response], inner: Callable[..., httpx.Response], tmp_path: Path
) -> None:
    """With a key of its own, and signing with it as a device does: the SuperLink must have heard of that key before."""
    from base64 import b64encode

    from cryptography.hazmat.primitives.serialization import load_ssh_private_key
    from flwr.common.constant import TIMESTAMP_HEADER
    from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
    from flwr.supercore.date import now
    from flwr.supercore.primitives.asymmetric import sign_message

    key = make_key(tmp_path / "pi.key", "pi")
    private: Any = load_ssh_private_key((tmp_path / "pi.key").read_bytes(), None)

    def signed() -> dict[str, str]:
        stamp = now().isoformat()
        return {
            FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(key.pem).decode(),
            FLEET_HTTP_SIGNATURE_HEADER: b64encode(sign_message(private, stamp.encode())).decode(),
            TIMESTAMP_HEADER: stamp,
            "flwr-package-name": "flwr",
            "flwr-package-version": "1.41.0",
            "flwr-component-name": "SuperNode",
        }

    request = RegisterNodeFleetRequest(public_key=key.pem).SerializeToString()
    told = public("POST", "/v1/fleet/register-node", request, signed())
    assert told.status_code == 412, told.text
    ours = {"authorization": f"Bearer {TOKEN}"}
    enrolled = inner(
        "POST", "/v1/control/register-node", RegisterNodeRequest(public_key=key.pem).SerializeToString(), ours
    )
    assert enrolled.status_code == 200
    # The same words from a device that is enrolled are understood: it is the key that made the difference.
    activate = PROTOBUF_REQUEST_TYPES[("POST", "/v1/fleet/activate-node")](public_key=key.pem, heartbeat_interval=30)
    assert public("POST", "/v1/fleet/activate-node", activate.SerializeToString(), signed()).status_code == 200


def test_the_inner_door_asks_for_the_token_and_the_superexecs_secret(inner: Callable[..., httpx.Response]) -> None:
    control = "/v1/control/start-run"
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {TOKEN}"}):
        assert inner("POST", control, start_run(), headers).status_code == 401
    started = inner("POST", control, start_run(), {"authorization": f"Bearer {TOKEN}"})
    assert started.status_code == 200, started.text
    task = AcquireTaskRequest(supported_task_types=["flwr-serverapp"]).SerializeToString()
    assert inner("POST", "/v1/runtime/acquire-task", task).status_code == 401
    assert inner("POST", "/v1/fleet/pull-messages").status_code == 404


def test_a_large_request_is_refused_before_it_is_read(public: Callable[..., httpx.Response]) -> None:
    path = "/v1/fleet/push-object"
    assert public("POST", path, b"x" * LIMIT).status_code != 413
    assert public("POST", path, b"x" * (LIMIT + 1)).status_code == 413
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        while True:
            sent += 1 << 16
            yield os.urandom(1 << 16)

    async def trickle(app: App) -> int:
        """By its bytes, where it does not say how many there will be."""
        parts = endless()
        answers: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": await anext(parts), "more_body": True}

        async def send(message: Any) -> None:
            answers.append(message)

        scope = {"type": "http", "method": "POST", "path": path, "headers": []}
        await Door(app, routes(FLEET), LIMIT)(scope, receive, send)
        return int(answers[0]["status"])

    async def never(*_: Any) -> None:
        raise AssertionError("the app was asked")

    assert asyncio.run(trickle(never)) == 413
    assert sent <= LIMIT + (1 << 16)


def test_a_door_has_the_routes_of_its_api_alone() -> None:
    assert {path.rpartition("/")[0] + "/" for _, path in routes(FLEET) - HEALTH} == {FLEET}
    assert {path.rpartition("/")[0] + "/" for _, path in routes(CONTROL, RUNTIME) - HEALTH} == {CONTROL, RUNTIME}
