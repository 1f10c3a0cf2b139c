"""Replies of nodes, taken from Flower's SuperLink without waiting for, or falling over, a single one of them.

Flower's own grid waits for hours for objects that a node has announced and not sent, raises for a reply that is no
message, and believes what a reply says of itself about who sent it. So one node, hostile or gone down in mid-upload,
could hold or end the run. Here a reply comes when all of it has come; what is no message is that node's error; and a
reply is of the node, and to the message, that the SuperLink says. This touches flwr's private transport code.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import httpx
from flwr.app import Error, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    inflate_object_from_contents,
    pull_objects,
)
from flwr.supercore.run import Run
from flwr.superlink.grid.http_grid import HttpGrid

MAX_OBJECTS = 100_000  # of one reply
TIMES_MODEL, BESIDE_BYTES = 16, 64 << 20  # a reply has at most so many times the bytes sent, and so many beside


@dataclass(slots=True)
class _Arriving:
    """A reply whose objects are on their way. `missing` is one that had not come at the last look."""

    about: Metadata
    root: str
    objects: list[str]
    missing: str = ""


class _TooLargeError(Exception):
    """A reply has more bytes than any needs."""


class PullingGrid:
    """What a `Link` needs of a grid, over Flower's."""

    def __init__(self, grid: HttpGrid) -> None:
        self._grid = grid
        self._arriving: dict[str, _Arriving] = {}  # by the message that each replies to
        self._most_bytes = BESIDE_BYTES

    @property
    def run(self) -> Run:
        return self._grid.run

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        largest = max((_nbytes(message.content) for message in messages if message.has_content()), default=0)
        self._most_bytes = max(self._most_bytes, TIMES_MODEL * largest + BESIDE_BYTES)
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies to these that are there as a whole."""
        asked, now_s = list(message_ids), time.time()
        for name in [name for name, one in self._arriving.items() if one.about.created_at + one.about.ttl < now_s]:
            del self._arriving[name]  # nobody asks for it any more
        if unheard := [name for name in asked if name not in self._arriving]:  # the SuperLink names a reply once
            found = self._grid._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=unheard))
            for head, tree in zip(found.messages_list, found.message_object_trees, strict=True):
                about = metadata_from_proto(head.metadata)
                self._arriving[about.reply_to_message_id] = _Arriving(about, tree.object_id, _names(tree))
        replies = []
        for message_id in asked:
            if (one := self._arriving.get(message_id)) and (reply := self._arrived(one)) is not None:
                del self._arriving[message_id]
                replies.append(reply)
        return replies

    def _arrived(self, one: _Arriving) -> Message | None:
        """The reply, an error in its place, or None as long as some of it is missing."""
        if len(one.objects) > MAX_OBJECTS:
            return _error(one.about, f"a reply of more than {MAX_OBJECTS} objects")
        run_id, size = self.run.run_id, 0
        pull = make_pull_object_fn_protobuf(self._grid._runtime_client.PullObject, self._grid.node, run_id)

        def bounded(name: str) -> bytes:
            nonlocal size
            try:
                content = pull(name)
            except ObjectUnavailableError:
                one.missing = name
                raise
            size += len(content)
            if size > self._most_bytes:
                raise _TooLargeError
            return content

        try:
            if one.missing:  # one request, as long as it has not come
                bounded(one.missing)
                one.missing, size = "", 0
            contents = pull_objects(one.objects, bounded, max_tries_per_object=1)
        except ObjectUnavailableError:
            return None
        except ObjectPullError:
            return None if one.missing else _error(one.about, "the reply was not sent to its end")
        except _TooLargeError:
            return _error(one.about, f"a reply of more than {self._most_bytes} bytes")
        confirm = ConfirmMessageReceivedRequest(
            node=self._grid.node, run_id=run_id, message_object_id=one.about.message_id
        )
        self._grid._runtime_client.ConfirmMessageReceived(confirm)
        try:
            return _told(inflate_object_from_contents(one.root, contents), one.about)
        except (httpx.HTTPError, OSError):
            raise
        except Exception as error:  # a node's bytes: whatever Flower makes of them is that node's failure
            return _error(one.about, f"the reply is no message ({type(error).__name__})")


def pulling(grid: Grid) -> Grid:
    """Flower's grid over HTTP as a `PullingGrid`; any other, of a simulation or a test, as it is."""
    return PullingGrid(grid) if isinstance(grid, HttpGrid) else grid  # type: ignore[return-value]  # as far as it goes


def _told(reply: object, about: Metadata) -> Message:
    """The reply, with what the SuperLink says of it; ValueError if it is none."""
    if not isinstance(reply, Message) or not (reply.has_error() or isinstance(reply.content, RecordDict)):
        raise ValueError("neither content nor error")
    if reply.has_error():
        return make_message(about, error=reply.error)
    return make_message(about, reply.content)


def _error(about: Metadata, reason: str) -> Message:
    return make_message(about, error=Error(ErrorCode.MESSAGE_UNAVAILABLE, reason))


def _names(tree: ObjectTree) -> list[str]:
    """The distinct objects of a reply, at most one more than there may be."""
    names: dict[str, None] = {}
    level = [tree]
    while level and len(names) <= MAX_OBJECTS:
        names |= dict.fromkeys(one.object_id for one in level)
        level = [child for one in level for child in one.children]
    return list(names)


def _nbytes(content: RecordDict) -> int:
    return sum(len(array.data) for arrays in content.array_records.values() for array in arrays.values())
