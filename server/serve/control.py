"""What we ask of the SuperLink, over its Control API. The only file that knows that API."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from flwr.common.constant import HEARTBEAT_PATIENCE, Status
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext

from edge_runtime.errors import RunError

_TIMEOUT_S = 10.0


class ControlError(RunError):
    """The SuperLink is not there, or refused; `told` is its own word on the matter."""

    def __init__(self, asked: str, error: Exception) -> None:
        self.told = ""
        if isinstance(error, httpx.HTTPStatusError):
            self.told = " ".join(error.response.text.split())[:500]
        super().__init__(f"SuperLink: {asked}: {self.told or f'{type(error).__name__}: {error}'}")


@dataclass(frozen=True, slots=True)
class Node:
    """A device as the SuperLink knows it; `seen_s` is when it last gave a sign of life (Unix seconds)."""

    node: int
    pem: bytes
    status: str
    seen_s: float | None


@dataclass(frozen=True, slots=True)
class Run:
    """`outcome` is "" until it is over, then "completed", "failed" or "stopped"; `details` say why."""

    pending: bool
    outcome: str
    details: str


@dataclass(frozen=True, slots=True)
class _Bearer:
    token: str

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        context.request.headers["authorization"] = f"Bearer {self.token}"
        return call_next(context)


class Control:
    """A SuperLink's Control API at `address` (host:port, loopback). Every call may raise ControlError."""

    def __init__(self, address: str, token: str) -> None:
        self._address = address
        self._client = ControlHttpClient(f"http://{address}", interceptors=[_Bearer(token)], timeout=_TIMEOUT_S)

    def healthy(self) -> bool:
        try:
            return httpx.get(f"http://{self._address}/health", timeout=1.0).status_code == 200
        except httpx.HTTPError:
            return False

    def start_run(self, bundle: bytes, config: Mapping[str, Any]) -> int:
        """Start a run of the apps in `bundle`; `config` are settings over those that it carries."""
        fab = Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})
        request = StartRunRequest(fab=fab_to_proto(fab), override_config=user_config_to_proto(dict(config)))
        try:
            answer = self._client.StartRun(request)
        except (httpx.HTTPError, ValueError) as error:
            raise ControlError("start-run", error) from error
        if not answer.HasField("run_id"):
            raise ControlError("start-run", ValueError(answer.note or "refused without a reason"))
        return answer.run_id

    def stop_run(self, run: int) -> None:
        """Let devices know that it is over; nothing if it was already."""
        try:
            self._client.StopRun(StopRunRequest(run_id=run))
        except httpx.HTTPStatusError:
            return
        except (httpx.HTTPError, ValueError) as error:
            raise ControlError("stop-run", error) from error

    def stop_all_runs(self) -> None:
        """Those that a SuperLink before this one left behind: nobody plays them any more."""
        try:
            found = self._client.ListRuns(ListRunsRequest()).run_dict
        except (httpx.HTTPError, ValueError) as error:
            raise ControlError("list-runs", error) from error
        for number, run in found.items():
            if run.status.status != Status.FINISHED:
                self.stop_run(number)

    def run(self, run: int) -> Run:
        try:
            found = self._client.ListRuns(ListRunsRequest(run_id=run)).run_dict[run]
        except (httpx.HTTPError, ValueError) as error:
            raise ControlError("list-runs", error) from error
        over = found.status.status == Status.FINISHED
        return Run(found.status.status == Status.PENDING, found.status.sub_status if over else "", found.status.details)

    def register(self, pem: bytes, name: str) -> int:
        """Let the device with this key in; its node id."""
        try:
            return self._client.RegisterNode(RegisterNodeRequest(public_key=pem, name=name)).node_id
        except (httpx.HTTPError, ValueError) as error:
            raise ControlError(f"register {name}", error) from error

    def unregister(self, node: int) -> None:
        """Shut a device out, for good."""
        try:
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node))
        except (httpx.HTTPError, ValueError) as error:
            raise ControlError(f"unregister {node}", error) from error

    def nodes(self) -> list[Node]:
        """All that are registered now."""
        try:
            found = self._client.ListNodes(ListNodesRequest()).nodes_info
        except (httpx.HTTPError, ValueError) as error:
            raise ControlError("list-nodes", error) from error
        return [
            Node(
                info.node_id,
                info.public_key,
                info.status,
                # A sign of life puts this so far ahead.
                min(info.online_until - HEARTBEAT_PATIENCE * info.heartbeat_interval, time.time())
                if info.HasField("online_until")
                else None,
            )
            for info in found
            if not info.unregistered_at
        ]

    def close(self) -> None:
        self._client.close()
