"""Both roles' phases as tables: what may arrive in which phase, and where it leads. All else is refused.

The words by which a transport tells its receiver what a message is about stand here too, for both its ends.

A phase is named after its class in `client.py` and `server.py`. `PHASES` are the steps of a round as a user names
them, each with the message in which a client takes its part.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from edge_runtime.errors import PeerError
from edge_runtime.secagg import messages as m

PHASES = MappingProxyType(
    {
        "advertise": m.Advertise,
        "share_keys": m.Shares,
        "masked_input": m.MaskedInput,
        "consistency": m.Confirm,
        "unmask": m.Unmask,
    }
)

FIRST, LAST = next(iter(PHASES)), next(reversed(PHASES))
RECORD = "secagg"  # the part of a transport's message that is secure aggregation's
HELLO = "hello"  # before the first phase of a client's first round: who it is

# (the client's phase, what the server sends) -> the phase it may lead to. Anything may also lead to Ended.
CLIENT: MappingProxyType[tuple[str, type], tuple[str, ...]] = MappingProxyType(
    {
        ("Invited", m.Setup): ("Advertised",),
        ("Advertised", m.Roster): ("Shared",),
        ("Shared", m.Routed): ("Masked",),
        ("Masked", m.Survivors): ("Confirmed", "Ended"),  # Ended: it unmasked at once, a round without consistency
        ("Confirmed", m.Quorum): ("Ended",),
    }
)

# The server's phase -> the one kind of message it takes, and the phase that comes once it has them all or its deadline.
SERVER: MappingProxyType[str, tuple[type, tuple[str, ...]]] = MappingProxyType(
    {
        "Advertising": (m.Advertise, ("Sharing",)),
        "Sharing": (m.Shares, ("Masking",)),
        "Masking": (m.MaskedInput, ("Confirming", "Unmasking")),
        "Confirming": (m.Confirm, ("Unmasking",)),
        "Unmasking": (m.Unmask, ("Ended",)),
    }
)


def check_client(phase: str, message: Any) -> tuple[str, ...]:
    """The phases this message may lead a client to.

    Raises:
        PeerError: it has no place in this phase.

    """
    after = CLIENT.get((phase, type(message)))
    if after is None:
        raise PeerError(
            f"{type(message).__name__} has no place while the client is {phase}; expected {_awaited(phase)}"
        )
    return after


def check_server(phase: str, message: Any) -> None:
    """Whether the server takes this message now.

    Raises:
        PeerError: it does not.

    """
    if phase not in SERVER or SERVER[phase][0] is not type(message):
        awaited = SERVER[phase][0].__name__ if phase in SERVER else "nothing more"
        raise PeerError(f"{type(message).__name__} has no place while the server is {phase}; expected {awaited}")


def _awaited(phase: str) -> str:
    return next((kind.__name__ for name, kind in CLIENT if name == phase), "nothing more")
