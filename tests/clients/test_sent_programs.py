"""Bytes in a Program's place.

The invariant: for any bytes at all, `unpack_program` returns a Program or raises PeerError, and the memory that it
takes is bounded whatever the bytes inflate to.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_runtime.errors import PeerError
from edge_runtime.program.container import PRELUDE
from edge_runtime.program.program import Program
from edge_runtime.program.program_file import MAGIC
from edge_runtime.train.config import ModelConfig, TrainConfig
from edge_runtime.train.factory import example_of, make_program, pack_program, unpack_program

MODEL = ModelConfig(name="digits_cnn", input="1x8x8")
PROGRAM = make_program(MODEL, TrainConfig(batch_size=4), example_of(MODEL))
SENT = pack_program(PROGRAM)
MEMORY_LIMIT = 640 << 20  # of address space, on top of what the process has when it starts


def accepted(data: bytes) -> Program | None:
    """The Program, or None where it is refused; whatever breaks the invariant fails the test."""
    try:
        return unpack_program(data)
    except PeerError as error:
        text = str(error)
    assert text.isprintable()
    assert len(text) < 400
    return None


def test_what_is_sent_has_no_weights_and_is_small() -> None:
    received = unpack_program(SENT)
    assert received.to_bytes() == PROGRAM.without_weights().to_bytes()
    assert not received.initial
    assert len(SENT) < PROGRAM.parameters


@given(st.binary(max_size=300))
@example(b"")
def test_any_bytes(data: bytes) -> None:
    assert accepted(data) is None


@given(st.binary(max_size=300))
def test_any_bytes_inside(data: bytes) -> None:
    assert accepted(zlib.compress(data)) is None
    assert accepted(zlib.compress(MAGIC + data)) is None


def test_every_truncation_is_refused() -> None:
    for length in range(len(SENT)):
        assert accepted(SENT[:length]) is None, length


@settings(deadline=None)
@given(st.integers(0, 8 * len(SENT) - 1))
def test_a_flipped_bit_is_refused_or_without_effect(bit: int) -> None:
    flipped = bytearray(SENT)
    flipped[bit // 8] ^= 1 << bit % 8
    program = accepted(bytes(flipped))
    assert program is None or program.to_bytes() == PROGRAM.without_weights().to_bytes()


def bomb_of_zeros() -> bytes:
    """4 MiB that inflate to 4 GiB: one compressed mebibyte of zeros, again and again."""
    compressor, zeros = zlib.compressobj(9), bytes(1 << 20)
    first, block = (compressor.compress(zeros) + compressor.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return first + 4095 * block


def bomb_of_lists() -> bytes:
    """60 kB that inflate to a sound prelude and 60 MiB of JSON, which are 20 million lists."""
    text = b'{"version":1,"lists":[' + b"[]," * (20 << 20) + b"[]]}"
    body = text + bytes(-len(text) % 64)
    prelude = MAGIC + len(text).to_bytes(8, "little") + zlib.crc32(body).to_bytes(4, "little")
    return zlib.compress(prelude.ljust(PRELUDE, b"\0") + body, 9)


@pytest.mark.parametrize("bomb", [bomb_of_zeros, bomb_of_lists])
def test_a_bomb_is_refused_in_bounded_memory(tmp_path: Path, bomb: Callable[[], bytes]) -> None:
    path = tmp_path / "bomb"
    path.write_bytes(bomb())
    assert path.stat().st_size < 5 << 20
    # In a process of its own, whose memory the kernel limits: a MemoryError would not be the refusal.
    program = f"""
import resource, sys
from pathlib import Path
from edge_runtime.errors import PeerError
from edge_runtime.train.factory import unpack_program
data = Path(sys.argv[1]).read_bytes()
used = int(Path("/proc/self/statm").read_text().split()[0]) * {resource.getpagesize()}
resource.setrlimit(resource.RLIMIT_AS, (used + {MEMORY_LIMIT}, -1))
try:
    unpack_program(data)
except PeerError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("the message's Program"), done.stderr[-500:]
