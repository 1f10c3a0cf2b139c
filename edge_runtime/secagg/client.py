"""The client of one round: one type per phase (`phases.py`), events in, messages out.

    Invited -> Advertised -> Shared -> Masked -> Confirmed -> Ended

A message that is malformed, of another round or out of place raises PeerError and changes nothing. One that is in place
and wrong ends the client's part of the round for good: its secrets are gone and it answers nothing more. It answers
the unmask request once, because answering leads to Ended, which takes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from edge_runtime.errors import ConfigError, NumericsError
from edge_runtime.secagg import messages as m
from edge_runtime.secagg import saved
from edge_runtime.secagg.config import NO_MODEL, RoundConfig
from edge_runtime.secagg.device import Device, Update
from edge_runtime.secagg.phases import Ended, Invited, Own, Phase
from edge_runtime.secagg.transitions import check_client


class Client:
    """One device's part in one round. Whoever owns the connection calls `receive` and sends what it returns.

    Args:
        device: what outlives the round.
        update: makes the input when it is due, from the round's settings; NumericsError or ConfigError = abstain.
        model_hash: of the model that the input was made from.
        random: a secure source of bytes.

    """

    __slots__ = ("_phase",)

    def __init__(
        self,
        device: Device,
        update: Update,
        model_hash: bytes = NO_MODEL,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._phase: Phase = Invited(Own(device, update, model_hash, random))

    def save(self) -> bytes:
        """All of its part so far, secrets included, but neither device nor input: for the owner's memory alone.

        Whoever restores it twice takes part twice; that a message is answered once is then the owner's to see to.
        """
        return saved.pack(self._phase)

    @classmethod
    def restore(
        cls,
        data: bytes,
        device: Device,
        update: Update,
        model_hash: bytes = NO_MODEL,
        random: Callable[[int], bytes] = os.urandom,
    ) -> Client:
        """The client that was saved, for the same device.

        Raises:
            PeerError: damaged, of another version, or of another device.

        """
        client = cls(device, update, model_hash, random)
        client._phase = saved.unpack(data, Own(device, update, model_hash, random))
        return client

    @property
    def agreed(self) -> RoundConfig | None:
        """The round that it is in."""
        return self._phase.agreed

    @property
    def phase(self) -> str:
        """The name of the phase it is in."""
        return type(self._phase).__name__

    def receive(self, data: bytes) -> list[bytes]:
        """What to send to the server in answer.

        Raises:
            PeerError: the message was refused. `phase` tells whether the client's part is over.

        """
        agreed = self._phase.agreed
        message: Any = m.decode(data, agreed)
        if isinstance(message, m.Abort):
            self.end(message.reason)
            return []
        after = check_client(self.phase, message)
        try:
            phase, answer = self._phase.receive(message)
        except (NumericsError, ConfigError) as error:  # our own trouble: the server need not wait for us
            self.end("abstains")
            return [m.encode(m.Abort(f"abstains: {type(error).__name__}"), agreed)]
        except BaseException:  # whatever it was: no secret outlives it
            self.end("refused what the server sent")
            raise
        if type(phase).__name__ not in after:
            raise AssertionError(f"{self.phase} led to {type(phase).__name__}; the table allows {after}")
        self._phase = phase
        return [m.encode(answer, agreed or phase.agreed)]

    def end(self, reason: str = "left") -> None:
        """Leave the round, at a deadline or on the way out. Its secrets go with it."""
        self._phase.wipe()
        self._phase = Ended(self._phase.agreed, reason)
