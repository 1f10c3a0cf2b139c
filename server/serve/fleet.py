"""The devices that the SuperLink lets in are those that the table has, and no others."""

from __future__ import annotations

from collections.abc import Callable

from server.serve.control import Control, ControlError
from server.serve.state import Device, State


def reconcile(state: State, control: Control, tell: Callable[[str], None]) -> None:
    """Register whoever is enrolled, shut out whoever is not, and write down what is known of each.

    Raises:
        ControlError: the SuperLink is not there.

    """
    devices = {device.pem: device for device in state.devices()}
    nodes = {node.pem: node for node in control.nodes()}
    for pem, node in nodes.items():
        device = devices.get(pem)
        if device is None or device.revoked_s is not None:
            control.unregister(node.node)
            tell(f"device {device.name if device else node.node} is shut out")
    for pem, device in devices.items():
        found = nodes.get(pem)
        if device.revoked_s is not None:
            if not device.settled:
                state.device_told(device.fingerprint, node=None, status="", seen_s=None, revoked=True)
        elif found is not None:
            state.device_told(
                device.fingerprint, node=str(found.node), status=found.status, seen_s=found.seen_s, revoked=False
            )
        elif not device.problem:
            _register(state, control, device, tell)


def _register(state: State, control: Control, device: Device, tell: Callable[[str], None]) -> None:
    try:
        node = control.register(device.pem, device.name)
    except ControlError as error:
        if not error.told:
            raise
        tell(f"device {device.name} cannot be enrolled: {error.told}")
        state.device_told(device.fingerprint, node=None, status="", seen_s=None, revoked=False, problem=error.told)
        return
    tell(f"device {device.name} is enrolled as node {node}")
    state.device_told(device.fingerprint, node=str(node), status="registered", seen_s=None, revoked=False)
