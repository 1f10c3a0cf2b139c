"""What a device may send to the SuperLink, beyond what Flower itself asks of it.

Flower checks that a request comes from the node that it names. What a node pushes it believes: a message that names
the SuperLink as its sender is handed to the node that it is for, as an order of the server's; a reply in another
node's name counts as that node's. So a node's own replies are let through here, and nothing else.
"""

from __future__ import annotations

import binascii
import datetime as dt
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence

from cryptography.exceptions import UnsupportedAlgorithm
from flwr.common.constant import SUPERLINK_NODE_ID, SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it has no types
from starlette.concurrency import run_in_threadpool

PUSH = "/v1/fleet/push-messages"
MAX_HEAD = 1 << 20  # of a reply without what it holds, and the names of that
MAX_OBJECTS, MAX_DEPTH = 2000, 16  # that a reply holds: of 5 MB each at most, 10 GB


class FleetRules:
    """`known` tells whether a node with that public key (PEM) is registered; None where devices have no keys."""

    def __init__(self, known: Callable[[bytes], bool] | None) -> None:
        self._known = known

    async def is_known(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a registered node has signed the time in them, which is all that Flower has nodes sign."""
        return self._known is None or await run_in_threadpool(self._is_signed, headers)

    def refusal(self, path: str, body: bytes) -> str:
        """Why a node may not send that; empty if it may."""
        return _push_refusal(body) if path == PUSH else ""

    def _is_signed(self, headers: Mapping[bytes, bytes]) -> bool:
        try:
            public = b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER.lower().encode()], validate=True)
            signature = b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER.lower().encode()], validate=True)
            stamp = headers[TIMESTAMP_HEADER.lower().encode()].decode("ascii")
            age_s = (now() - dt.datetime.fromisoformat(stamp)).total_seconds()
            if not -SYSTEM_TIME_TOLERANCE < age_s < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE:
                return False
            if not verify_signature(bytes_to_public_key(public), stamp.encode("ascii"), signature):
                return False
        except (KeyError, ValueError, TypeError, AttributeError, binascii.Error, UnsupportedAlgorithm):
            return False
        return self._known is not None and self._known(public)


def _push_refusal(body: bytes) -> str:
    if len(body) > MAX_HEAD:
        return f"push-messages: more than {MAX_HEAD} bytes"
    try:
        request = PushMessagesRequest.FromString(body)
    except DecodeError:
        return "push-messages: malformed"
    if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
        return "push-messages: must be one message and its objects"
    about, tree = request.messages_list[0].metadata, request.message_object_trees[0]
    if about.src_node_id != request.node.node_id:
        return "push-messages: a node answers for itself alone"
    if not about.reply_to_message_id or about.dst_node_id != SUPERLINK_NODE_ID:
        return "push-messages: a node replies to the server, and sends nothing else"
    if about.message_id != tree.object_id or _is_large(tree):
        return f"push-messages: must be the message's own objects, at most {MAX_OBJECTS} in {MAX_DEPTH} levels"
    return ""


def _is_large(tree: ObjectTree) -> bool:
    level: Sequence[ObjectTree] = [tree]
    count = depth = 0
    while level:
        count, depth = count + len(level), depth + 1
        if count > MAX_OBJECTS or depth > MAX_DEPTH:
            return True
        level = [child for one in level for child in one.children]
    return False
