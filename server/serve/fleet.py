"""The devices that the SuperLink lets in are those that the table has, and no others."""

from __future__ import annotations

from collections.abc import Callable

from server.serve.control import Control, ControlError
from server.serve.state import Device, State, Told


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
    told = []
    for pem, device in devices.items():
        found = nodes.get(pem)
        if device.revoked_s is not None:
            if not device.settled:
                told.append(Told(device.fingerprint, revoked=True))
        elif found is not None:
            now = Told(device.fingerprint, False, str(found.node), found.status, found.seen_s)
            if not device.settled or (now.status, now.seen_s) != (device.status, device.seen_s):
                told.append(now)
        elif not device.problem:
            told.append(_registered(control, device, tell))
    if told:
        state.devices_told(told)


def _registered(control: Control, device: Device, tell: Callable[[str], None]) -> Told:
    try:
        node = control.register(device.pem, device.name)
    except ControlError as error:
        if not error.told:
            raise
        tell(f"device {device.name} cannot be enrolled: {error.told}")
        return Told(device.fingerprint, False, problem=error.told)
    tell(f"device {device.name} is enrolled as node {node}")
    return Told(device.fingerprint, False, str(node), "registered")
