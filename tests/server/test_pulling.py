"""A node's reply can neither hold a run nor end it, nor pass for another node's; against a real SuperLink."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import Metadata as MetadataProto
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_id, get_object_tree
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid.http_grid import HttpGrid
from serving import bundle, running_superlink

from clients.superlink import SuperLink
from server.link import Answer, Link
from server.pulling import BESIDE_BYTES, pulling

pytestmark = pytest.mark.timeout(120)
ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
CONTENT = RecordDict({"model": ArrayRecord({"weights": Array("uint8", (3,), "raw", b"abc")})})


class Federation:
    """A server app's link, and two devices that send what they like."""

    def __init__(self, state: Path) -> None:
        self._state = state

    def open(self, running: Any) -> None:
        self.nodes = [
            SuperLink(running.public, ec.generate_private_key(ec.SECP384R1()), ca=None, insecure=True) for _ in range(2)
        ]
        for node in self.nodes:
            node.join()
        self.run = running.control.start_run(bundle(), {})
        secret = (self._state / "superexec.secret").read_bytes()
        version = RuntimeVersionHttpInterceptor(component_name="superexec")
        client = RuntimeHttpClient.from_server_address(
            running.inner,
            True,
            None,
            [version, SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=[ACQUIRE])],
        )
        token = client.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-serverapp"])).token
        client.close()
        app = RuntimeHttpClient.from_server_address(
            running.inner, True, None, [version, RuntimeTokenHttpInterceptor(token=token)]
        )
        app.PullTaskInput(PullTaskInputRequest())
        app.close()
        self.grid = HttpGrid(running.inner, True, None, token=token)
        self.grid.set_run(Run.create_empty(self.run))
        self.link = Link(pulling(self.grid))

    def asked(self) -> dict[int, str]:
        """Both nodes are asked; the ids of the messages, which each has pulled."""
        self.be_server()
        self.outstanding = self.link.send({node.node_id: CONTENT for node in self.nodes}, 1, 30.0)
        for node in self.nodes:
            assert node.pull() is not None
        return {node: message for message, node in self.outstanding.items()}

    def be_server(self) -> None:
        """Flower's messages are of whom the process is."""
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = self.run, SUPERLINK_NODE_ID, 0

    def answers(self, seconds: float = 3.0) -> list[Answer]:
        end, found = time.monotonic() + seconds, []
        while (answer := self.link.next_answer(self.outstanding, end)) is not None:
            found.append(answer)
        return found

    def reply(self, node: int, message_id: str, content: RecordDict) -> Message:
        about = Metadata(self.run, "", node, SUPERLINK_NODE_ID, message_id, "1", time.time(), 20.0, "train")
        return make_message(about, content)

    def push(self, node: SuperLink, head: Any, tree: ObjectTree, objects: dict[str, bytes]) -> None:
        """As a device does, but for what it sends."""
        told = node._client.PushMessages(
            PushMessagesRequest(node=node._node, messages_list=[head], message_object_trees=[tree])
        )
        assert set(told.objects_to_push) >= set(objects)
        for name, content in objects.items():
            request = PushObjectRequest(
                node=node._node, run_id=self.run, object_id=name, object_content=content, session_id=told.session_id
            )
            assert node._client.PushObject(request).stored

    def head(self, node: int, message_id: str, root: str) -> MessageProto:
        about = MetadataProto(
            run_id=self.run, message_id=root, src_node_id=node, dst_node_id=SUPERLINK_NODE_ID,
            reply_to_message_id=message_id, group_id="1", ttl=20.0, message_type="train", created_at=time.time(),
        )  # fmt: skip
        return MessageProto(metadata=about, content={})


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    state = tmp_path_factory.mktemp("state")
    with running_superlink(state) as running:
        made = Federation(state)
        made.open(running)
        yield made
        for node in made.nodes:
            node.close()
        made.grid.close()


def honest(federation: Federation, ids: dict[int, str]) -> None:
    """The second device answers as it should."""
    node = federation.nodes[1]
    said = RecordDict({"said": ConfigRecord({"word": "well"})})
    node.assume(federation.run)
    node.push(federation.reply(node.node_id, ids[node.node_id], said), 0.1)
    federation.be_server()


def word(answer: Answer) -> str:
    assert answer.content is not None
    return str(answer.content["said"]["word"])


def test_a_reply_is_of_the_node_that_was_asked_whatever_it_says(federation: Federation) -> None:
    ids = federation.asked()
    hostile, victim = (node.node_id for node in federation.nodes)
    # The head, which the SuperLink checks, is the device's own; the message inside is in the other's name.
    forged = federation.reply(victim, ids[victim], RecordDict({"said": ConfigRecord({"word": "forged"})}))
    objects = {name: one.deflate() for name, one in get_all_nested_objects(forged).items()}
    tree = get_object_tree(forged)
    federation.push(federation.nodes[0], federation.head(hostile, ids[hostile], tree.object_id), tree, objects)
    honest(federation, ids)
    assert {answer.node: word(answer) for answer in federation.answers()} == {hostile: "forged", victim: "well"}


@pytest.mark.parametrize("kind", ["Message", "RecordDict", "Array", "ArrayRecord", "ConfigRecord"])
def test_a_reply_that_is_no_message_is_its_nodes_failure(federation: Federation, kind: str) -> None:
    ids = federation.asked()
    hostile, well = (node.node_id for node in federation.nodes)
    body = b"\xff" * 9
    content = f"{kind}  {len(body)}".encode() + b"\x00" + body
    root = get_object_id(content)
    tree = ObjectTree(object_id=root)
    federation.push(federation.nodes[0], federation.head(hostile, ids[hostile], root), tree, {root: content})
    honest(federation, ids)
    found = {answer.node: answer for answer in federation.answers()}
    assert found[hostile].content is None
    assert found[hostile].error.startswith("the reply is no message")
    assert word(found[well]) == "well"


def test_nobody_waits_for_a_reply_that_was_announced_and_not_sent(federation: Federation) -> None:
    """It comes when it has come, in its round."""
    ids = federation.asked()
    slow, well = federation.nodes
    reply = federation.reply(slow.node_id, ids[slow.node_id], RecordDict({"said": ConfigRecord({"word": "late"})}))
    tree = get_object_tree(reply)
    objects = {name: one.deflate() for name, one in get_all_nested_objects(reply).items()}
    told = slow._client.PushMessages(
        PushMessagesRequest(
            node=slow._node,
            messages_list=[federation.head(slow.node_id, ids[slow.node_id], tree.object_id)],
            message_object_trees=[tree],
        )
    )
    honest(federation, ids)
    began = time.monotonic()
    assert [(answer.node, answer.error) for answer in federation.answers(2.0)] == [(well.node_id, "")]
    assert time.monotonic() - began < 30  # and not the minutes until the SuperLink gives the upload up
    for name, content in objects.items():
        request = PushObjectRequest(
            node=slow._node, run_id=federation.run, object_id=name, object_content=content, session_id=told.session_id
        )
        assert slow._client.PushObject(request).stored
    assert [word(answer) for answer in federation.answers()] == ["late"]


def test_a_reply_of_too_many_bytes_is_its_nodes_failure(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.pulling.BESIDE_BYTES", 1000)
    assert BESIDE_BYTES > 1000
    grid: Any = pulling(federation.grid)
    federation.link = Link(grid)
    ids = federation.asked()
    node = federation.nodes[0]
    large = RecordDict({"u": ArrayRecord({"delta": Array("uint8", (5000,), "raw", bytes(range(250)) * 20)})})
    node.assume(federation.run)
    node.push(federation.reply(node.node_id, ids[node.node_id], large), 0.1)
    federation.be_server()
    honest(federation, ids)
    found = {answer.node: answer for answer in federation.answers()}
    assert found[node.node_id].error == "a reply of more than 1048 bytes"
    assert word(found[federation.nodes[1].node_id]) == "well"
