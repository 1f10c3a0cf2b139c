"""What systemd wants to know of a service with Type=notify: sd_notify(3), one datagram a message."""

from __future__ import annotations

import os
import socket


def notify(message: str) -> None:
    """Send `READY=1`, `STATUS=...` or `STOPPING=1`; nothing where nobody asked to be told."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    name = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as link:
            link.sendto(message.encode(), name)
    except OSError:
        return  # that nobody listens is no reason to stop serving
