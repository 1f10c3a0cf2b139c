"""A stranger at the port for devices can neither start a run nor enrol a device, nor take the server's tasks.

Asked of Flower's own SuperLink app behind our door, with every request that it knows.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
import warnings
from base64 import b64encode
from collections.abc import Callable
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Message, Metadata, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import SUPERLINK_NODE_ID, TIMESTAMP_HEADER
from flwr.common.serde import message_to_proto
from flwr.proto.control_pb2 import (
    ListRunsRequest,
    RegisterNodeRequest,
    RegisterNodeResponse,
    StartRunRequest,
    StartRunResponse,
)
from flwr.proto.fab_pb2 import Fab
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
)
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node as NodeProto
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.primitives.asymmetric import sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from serving import bundle

from server.devices import make_key
from server.serve.door import CONTROL, FLEET, HEALTH, RUNTIME, SMALL_BYTES, App, Door
from server.serve.fleet_rules import MAX_DEPTH, MAX_OBJECTS, PUSH, FleetRules
from server.serve.superlink import public_door, routes, superlink_app

TOKEN = secrets.token_urlsafe(32)
LIMIT = 1 << 20
VERSION = {
    "flwr-package-name": "flwr", "flwr-package-version": version("flwr"), "flwr-component-name": "SuperNode"
}  # fmt: skip
PROTOBUF = {"content-type": PROTOBUF_MEDIA_TYPE, "accept": PROTOBUF_MEDIA_TYPE}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> App:
    database = tmp_path_factory.mktemp("superlink") / "superlink.sqlite"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Flower's call of alembic
        return superlink_app(str(database), TOKEN, secrets.token_bytes(32), node_keys=True)


@pytest.fixture
def public(app: App) -> Callable[..., httpx.Response]:
    return lambda *args, **more: ask(public_door(app, LIMIT, node_keys=True), *args, **more)


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
        for content in (start_run(), PROTOBUF_REQUEST_TYPES[("POST", f"/v1/fleet/{path}")]().SerializeToString()):
            answer = public("POST", f"/v1/fleet/{path}", content, {"host": host, **VERSION})
            assert answer.status_code in (400, 401), (path, answer.text)


def test_the_fleet_api_asks_for_a_devices_signature(public: Callable[..., httpx.Response], tmp_path: Path) -> None:
    fleet = [route for route in PROTOBUF_REQUEST_TYPES if route[1].startswith(FLEET)]
    assert len(fleet) > 10
    for method, path in fleet:
        answer = public(method, path, PROTOBUF_REQUEST_TYPES[(method, path)]().SerializeToString())
        assert answer.status_code == (400 if path == PUSH else 401), path  # an empty push is nobody's reply
    assert public("GET", "/health").status_code == 200


class Node:
    """A device with a key of its own, that signs as devices do."""

    def __init__(self, folder: Path, name: str) -> None:
        self.pem = make_key(folder / f"{name}.key", name).pem
        self._private: Any = load_ssh_private_key((folder / f"{name}.key").read_bytes(), None)
        self.id = 0

    def signed(self, stamp: str = "") -> dict[str, str]:
        stamp = stamp or now().isoformat()
        return {
            FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(self.pem).decode(),
            FLEET_HTTP_SIGNATURE_HEADER: b64encode(sign_message(self._private, stamp.encode())).decode(),
            TIMESTAMP_HEADER: stamp,
            **VERSION,
        }

    def enrol(self, inner: Callable[..., httpx.Response]) -> httpx.Response:
        ours = {"authorization": f"Bearer {TOKEN}"}
        request = RegisterNodeRequest(public_key=self.pem).SerializeToString()
        answer = inner("POST", "/v1/control/register-node", request, ours)
        self.id = RegisterNodeResponse.FromString(answer.content).node_id
        return answer


def test_a_stranger_cannot_enrol_itself(
    public: Callable[..., httpx.Response], inner: Callable[..., httpx.Response], tmp_path: Path
) -> None:
    """With a key of its own, and signing with it as a device does: the SuperLink must have heard of that key before."""
    node = Node(tmp_path, "pi")
    request = RegisterNodeFleetRequest(public_key=node.pem).SerializeToString()
    told = public("POST", "/v1/fleet/register-node", request, node.signed())
    assert told.status_code == 412, told.text
    assert node.enrol(inner).status_code == 200
    # The same words from a device that is enrolled are understood: it is the key that made the difference.
    activate = ActivateNodeRequest(public_key=node.pem, heartbeat_interval=30).SerializeToString()
    assert public("POST", "/v1/fleet/activate-node", activate, node.signed()).status_code == 200


def order(src: int, dst: int, run: int, reply_to: str = "") -> Message:
    """A message as Flower writes it, in whoever's name."""
    made = make_message(Metadata(run, "", src, dst, reply_to, "1", time.time(), 60.0, "train"), RecordDict())
    made.metadata.__dict__["_message_id"] = made.object_id
    return made


def pushed(node: Node, *messages: Message) -> bytes:
    return PushMessagesRequest(
        node=NodeProto(node_id=node.id),
        messages_list=[message_to_proto(remove_content_from_message(one)) for one in messages],
        message_object_trees=[get_object_tree(one) for one in messages],
    ).SerializeToString()


def test_a_device_speaks_for_itself_alone(
    app: App, public: Callable[..., httpx.Response], inner: Callable[..., httpx.Response], tmp_path: Path
) -> None:
    """Flower by itself hands a node's message to another node, as an order of the server's."""
    hostile, victim = Node(tmp_path, "hostile"), Node(tmp_path, "victim")
    for node in (hostile, victim):
        assert node.enrol(inner).status_code == 200
        activate = ActivateNodeRequest(public_key=node.pem, heartbeat_interval=30).SerializeToString()
        assert public("POST", "/v1/fleet/activate-node", activate, node.signed()).status_code == 200
    answer = inner("POST", "/v1/control/start-run", start_run(), {"authorization": f"Bearer {TOKEN}"})
    run = StartRunResponse.FromString(answer.content).run_id
    state = app.state.linkstate_factory.state()  # type: ignore[attr-defined]
    for task in state.get_tasks(run_ids=[run]):  # as when the server app has taken it up
        assert state.claim_task(task.task_id)
        assert state.activate_task(task.task_id)

    path = "/v1/fleet/push-messages"
    as_server = pushed(hostile, order(SUPERLINK_NODE_ID, victim.id, run))
    unguarded = ask(Door(app, routes(FLEET), LIMIT), "POST", path, as_server, hostile.signed())
    assert unguarded.status_code == 200  # so this is what the door must not let through
    pull = PullMessagesRequest(node=NodeProto(node_id=victim.id)).SerializeToString()
    taken = PullMessagesResponse.FromString(public("POST", "/v1/fleet/pull-messages", pull, victim.signed()).content)
    assert len(taken.messages_list) == 1

    for hostile_body in (
        pushed(hostile, order(SUPERLINK_NODE_ID, victim.id, run)),
        pushed(hostile, order(victim.id, SUPERLINK_NODE_ID, run, "ab" * 32)),
        pushed(hostile, order(hostile.id, victim.id, run, "ab" * 32)),
        pushed(hostile, order(hostile.id, SUPERLINK_NODE_ID, run)),
        pushed(hostile, *[order(hostile.id, SUPERLINK_NODE_ID, run, "ab" * 32)] * 2),
        pushed(hostile),
        b"\xff" * 100,
    ):
        refused = public("POST", path, hostile_body, hostile.signed())
        assert (refused.status_code, refused.text[:14]) == (400, "push-messages:"), refused.text
    own = public("POST", path, pushed(hostile, order(hostile.id, SUPERLINK_NODE_ID, run, "ab" * 32)), hostile.signed())
    assert own.status_code == 200  # Flower's own answer: nobody asked for it, so it is not stored
    again = public("POST", "/v1/fleet/pull-messages", pull, victim.signed())
    assert not PullMessagesResponse.FromString(again.content).messages_list


@pytest.mark.parametrize("deep", [False, True])
def test_a_reply_of_too_many_objects_is_refused(deep: bool, tmp_path: Path) -> None:
    sender = Node(tmp_path, "sender")
    sender.id = 7
    message = order(sender.id, SUPERLINK_NODE_ID, 1, "ab" * 32)
    request = PushMessagesRequest.FromString(pushed(sender, message))
    assert FleetRules(None).refusal(PUSH, request.SerializeToString()) == ""
    tree = request.message_object_trees[0]
    if deep:
        for _ in range(MAX_DEPTH):
            tree = tree.children.add(object_id="ab" * 32)
    else:
        tree.children.extend([ObjectTree(object_id="ab" * 32)] * MAX_OBJECTS)
    assert "own objects" in FleetRules(None).refusal(PUSH, request.SerializeToString())


def test_a_large_body_is_read_of_known_devices_alone(
    app: App, public: Callable[..., httpx.Response], inner: Callable[..., httpx.Response], tmp_path: Path
) -> None:
    """A stranger's would be held in memory until its signature is looked at."""
    path, body = "/v1/fleet/push-object", b"x" * (SMALL_BYTES + 1)
    stranger, node = Node(tmp_path, "stranger"), Node(tmp_path, "node")
    node.enrol(inner)
    long_ago = (now() - timedelta(seconds=600)).isoformat()
    forged = {**node.signed(), FLEET_HTTP_SIGNATURE_HEADER: stranger.signed()[FLEET_HTTP_SIGNATURE_HEADER]}
    garbage = {**node.signed(), FLEET_HTTP_PUBLIC_KEY_HEADER: "%%%", TIMESTAMP_HEADER: "yesterday"}
    for headers in ({}, stranger.signed(), node.signed(long_ago), forged, garbage):
        refused = public("POST", path, body, headers)
        assert (refused.status_code, refused.content) == (401, b"no device that is known here")
    assert public("POST", path, body, node.signed()).status_code == 400  # read, and found to be no request


def test_bodies_wait_for_room_and_not_for_ever_for_their_end() -> None:
    """One that is taken up is within the limit; one that does not go on gives its room back."""
    held = most = 0

    class Everybody:
        async def is_known(self, headers: Any) -> bool:
            return True

        def refusal(self, path: str, body: bytes) -> str:
            return ""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal held
        held -= len((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    size = 2 * SMALL_BYTES
    door = Door(app, {("POST", "/")}, size, Everybody(), held_bytes=2 * size, patience_s=0.05)

    async def bring(stalls: bool) -> int:
        nonlocal held, most
        answers: list[Any] = []
        taken = False

        async def receive() -> Any:
            nonlocal held, most, taken
            if taken and stalls:
                await asyncio.sleep(3600)
            if not taken:
                held += 0 if stalls else size
                most = max(most, held)
                taken = True
                await asyncio.sleep(0)
            return {"type": "http.request", "body": b"x" * (1 if stalls else size), "more_body": stalls}

        async def send(message: Any) -> None:
            answers.append(message)

        scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-length", str(size).encode())]}
        await door(scope, receive, send)
        return int(answers[0]["status"])

    async def all_at_once() -> list[int]:
        return await asyncio.gather(*(bring(stalls) for stalls in [True] * 4 + [False] * 10))

    assert asyncio.run(all_at_once()) == [408] * 4 + [200] * 10
    assert held == 0
    assert most == 2 * size


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

        scope = {"type": "http", "method": "POST", "path": path, "headers": [(b"transfer-encoding", b"chunked")]}
        await Door(app, routes(FLEET), LIMIT)(scope, receive, send)
        return int(answers[0]["status"])

    async def never(*_: Any) -> None:
        raise AssertionError("the app was asked")

    assert asyncio.run(trickle(never)) == 413
    assert sent <= LIMIT + (1 << 16)


def test_a_door_has_the_routes_of_its_api_alone() -> None:
    assert {path.rpartition("/")[0] + "/" for _, path in routes(FLEET) - HEALTH} == {FLEET}
    assert {path.rpartition("/")[0] + "/" for _, path in routes(CONTROL, RUNTIME) - HEALTH} == {CONTROL, RUNTIME}
