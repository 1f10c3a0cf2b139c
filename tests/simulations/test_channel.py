"""Pickled objects over pipes: whole, in order, their large bytes sent once while the other end keeps them."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.channel import LARGE, PIPE_BYTES, Channel


def pair(remembered: int = 0) -> tuple[Channel, Channel]:
    (a_in, b_out), (b_in, a_out) = os.pipe(), os.pipe()
    return Channel(a_in, a_out, remembered=remembered), Channel(b_in, b_out, remembers=remembered)


def sent(channel: Channel, other: Channel, message: Any) -> tuple[Any, int]:
    """What arrives, and how many bytes that took."""
    written = 0
    real = os.write

    def counting(fd: int, data: Any) -> int:
        nonlocal written
        written += (count := real(fd, data))
        return count

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simulations.channel.os.write", counting)
        writer = threading.Thread(target=channel.send, args=[message])
        writer.start()
        got = other.receive()
        writer.join()
    return got, written


@given(st.lists(st.binary() | st.integers(LARGE - 2, LARGE + 2).map(os.urandom), max_size=4))
def test_what_is_sent_arrives(parts: list[bytes]) -> None:
    here, there = pair(remembered=2)
    for message in (parts, {"twice": [parts, parts]}, None):
        assert sent(here, there, message)[0] == message
        assert sent(there, here, message)[0] == message
    here.close()
    there.close()


def test_more_than_a_pipe_holds_arrives() -> None:
    here, there = pair()
    blob = os.urandom(3 * PIPE_BYTES + 17)
    assert sent(here, there, [blob, "end"])[0] == [blob, "end"]


def test_a_blob_that_the_other_end_has_is_not_sent_again() -> None:
    here, there = pair(remembered=2)
    model, program = os.urandom(LARGE), os.urandom(2 * LARGE)
    assert sent(here, there, (model, program))[1] > 3 * LARGE
    for client in range(3):
        got, written = sent(here, there, (client, model, program))
        assert got == (client, model, program)
        assert written < 1000
    newer = os.urandom(LARGE)
    got, written = sent(here, there, (newer, program))  # the least used one goes: the old model
    assert got == (newer, program)
    assert LARGE < written < 2 * LARGE
    assert sent(here, there, (newer, program))[1] < 1000
    assert sent(here, there, model)[1] > LARGE


def test_equal_bytes_of_another_object_are_sent() -> None:
    here, there = pair(remembered=2)
    blob = os.urandom(LARGE)
    sent(here, there, blob)
    got, written = sent(here, there, bytes(bytearray(blob)))
    assert got == blob
    assert written > LARGE


def test_an_end_that_is_gone_is_said() -> None:
    here, there = pair()
    there.close()
    with pytest.raises(OSError, match="pipe"):
        here.send(1)
    with pytest.raises(EOFError):
        here.receive()
