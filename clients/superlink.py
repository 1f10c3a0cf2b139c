"""One device's line to a Flower SuperLink: the only module that touches flwr's private transport code.

What a stock `flower-supernode` does in three processes is six requests of the Fleet API here. The names below that are
not part of flwr's public API may move with any release; `tests/clients/test_superlink.py` speaks to the installed one.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, TIMESTAMP_HEADER
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree, push_objects
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient

from edge_runtime.errors import EdgeRuntimeError

HEARTBEAT_S = HEARTBEAT_DEFAULT_INTERVAL * 0.8  # twice the interval without one, and a node counts as gone
MAX_OBJECTS, MAX_DEPTH = 100_000, 16  # of one message: chunks of 5 MB, so some 500 GB
_REASON = 300
T = TypeVar("T")


class LinkDownError(EdgeRuntimeError):
    """The SuperLink can't be reached, or not now: to be tried again."""


class NotEnrolledError(EdgeRuntimeError):
    """The SuperLink does not know this device's key."""


class RunOverError(EdgeRuntimeError):
    """The run that a message belongs to has ended; there is nothing more to do for it."""


class SuperLink:
    """Requests of one device. `heartbeat` may be called from another thread; the rest from one at a time.

    `ca` is the file of certificates that the server's must lead to, None for those of the system; `insecure` asks for
    plain HTTP.
    """

    def __init__(self, address: str, key: EllipticCurvePrivateKey, *, ca: Path | None, insecure: bool = False) -> None:
        self._public = public_key_to_bytes(key.public_key())
        self._node = Node()
        interceptors = [_Signed(key, self._public)]
        try:
            root = None if ca is None else ca.read_bytes()
            self._client = FleetHttpClient.from_server_address(address, insecure, root, interceptors)
            # What is signed, and what was learned, is for this server: to no other does it send us.
            self._client._client.follow_redirects = False
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise LinkDownError(f"superlink {address}: {_line(error)}") from error
        self._address = address

    @property
    def node_id(self) -> int:
        """0 before `join`."""
        return int(self._node.node_id)

    def join(self, known: int = 0) -> int:
        """Come online; returns the node's id, the same for as long as the key is known there.

        `known` is the id of the last time, 0 for none: a device that went down without a word is still counted as
        online and could not be activated, but goes on under its id at once.

        Raises:
            NotEnrolledError: where only enrolled keys may join, and this one is not.

        """
        if known and self._alive(Node(node_id=known)):
            self._node = Node(node_id=known)
            return known
        with contextlib.suppress(_PreconditionError):  # it is registered, or must be by the operator: activation tells
            self._call(self._client.RegisterNode, RegisterNodeFleetRequest(public_key=self._public))
        request = ActivateNodeRequest(public_key=self._public, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        try:
            self._node = Node(node_id=self._call(self._client.ActivateNode, request).node_id)
        except _PreconditionError as error:
            raise LinkDownError(f"superlink {self._address}: {error}") from error
        return self.node_id

    def leave(self) -> None:
        """Go offline. The node stays registered."""
        self._call(self._client.DeactivateNode, DeactivateNodeRequest(node_id=self.node_id))

    def heartbeat(self) -> bool:
        """Say that this node is there; False if the SuperLink does not know it any more."""
        return self._alive(self._node)

    def pull(self) -> Message | None:
        """The next message for this node, whole; None if there is none.

        Raises:
            RunOverError: its run ended while it was pulled.

        """
        response = self._call(self._client.PullMessages, PullMessagesRequest(node=self._node))
        if not response.messages_list:
            return None
        tree = response.message_object_trees[0]
        _check_size(tree)
        run_id = message_from_proto(response.messages_list[0]).metadata.run_id
        message: Message = pull_and_inflate_object_from_tree(
            tree,
            make_pull_object_fn_protobuf(self._caller(self._client.PullObject), self._node, run_id),
            make_confirm_message_received_fn_protobuf(
                self._caller(self._client.ConfirmMessageReceived), self._node, run_id
            ),
            return_type=Message,
        )
        message.metadata.__dict__["_message_id"] = tree.object_id  # a message can't hold its own hash
        return message

    def assume(self, run_id: int) -> None:
        """Be this node in that run: building a reply needs it."""
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, self.node_id, 0

    def push(self, reply: Message, seconds: float) -> None:
        """Send a reply, and how long it took to make.

        Raises:
            RunOverError: the run has ended.

        """
        run_id = reply.metadata.run_id
        reply.metadata.__dict__["_message_id"] = reply.object_id
        with no_object_id_recompute():
            tree, objects = get_object_tree(reply), get_all_nested_objects(reply)
            head = remove_content_from_message(reply) if reply.has_content() else reply
            response = self._call(
                self._client.PushMessages,
                PushMessagesRequest(
                    node=self._node,
                    messages_list=[message_to_proto(head)],
                    message_object_trees=[tree],
                    clientapp_runtime_list=[seconds],
                ),
            )
            push_objects(
                objects,
                make_push_object_fn_protobuf(
                    self._caller(self._client.PushObject), self._node, run_id, response.session_id
                ),
                object_ids_to_push=set(response.objects_to_push),
            )

    def close(self) -> None:
        self._client.close()

    def _alive(self, node: Node) -> bool:
        request = SendNodeHeartbeatRequest(node=node, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        try:
            return bool(self._call(self._client.SendNodeHeartbeat, request).success)
        except (NotEnrolledError, _PreconditionError):
            return False

    def _caller(self, method: Callable[[Any], T]) -> Callable[[Any], T]:
        return lambda request: self._call(method, request)

    def _call(self, method: Callable[[Any], T], request: Any) -> T:
        """One request, with what can go wrong named."""
        try:
            return method(request)
        except httpx.HTTPStatusError as error:
            status, text = error.response.status_code, _line(error.response.text)
            if status == httpx.codes.UNAUTHORIZED:
                raise NotEnrolledError(f"superlink {self._address}: does not know this device's key") from error
            if status == httpx.codes.FORBIDDEN:
                raise RunOverError(f"superlink {self._address}: {text}") from error
            if status == httpx.codes.PRECONDITION_FAILED:
                raise _PreconditionError(text) from error
            raise LinkDownError(f"superlink {self._address}: answers {status} {text}") from error
        except (httpx.HTTPError, OSError) as error:
            raise LinkDownError(f"superlink {self._address}: {_line(error)}") from error


class _PreconditionError(EdgeRuntimeError):
    """What the SuperLink says is not as the request needs it."""


class _Signed:
    """Puts into every request whose it is: a signature over the time of day, by the device's key."""

    def __init__(self, key: EllipticCurvePrivateKey, public: bytes) -> None:
        self._key, self._public = key, base64.b64encode(public).decode("ascii")
        self._version = dict(RuntimeVersionMetadata.from_local_component("SuperNode").as_metadata())

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        stamp = now().isoformat()
        signature = sign_message(self._key, stamp.encode("ascii"))
        context.request.headers.update(
            {
                **self._version,
                FLEET_HTTP_PUBLIC_KEY_HEADER: self._public,
                TIMESTAMP_HEADER: stamp,
                FLEET_HTTP_SIGNATURE_HEADER: base64.b64encode(signature).decode("ascii"),
            }
        )
        return call_next(context)


def _check_size(tree: ObjectTree) -> None:
    """LinkDownError for a message of more objects than any has."""
    level: Sequence[ObjectTree] = [tree]
    count = depth = 0
    while level:
        count, depth = count + len(level), depth + 1
        if count > MAX_OBJECTS or depth > MAX_DEPTH:
            raise LinkDownError(f"a message of more than {MAX_OBJECTS} objects, or {MAX_DEPTH} levels of them")
        level = [child for one in level for child in one.children]


def _line(error: object) -> str:
    return " ".join(str(error).split())[:_REASON] or type(error).__name__
