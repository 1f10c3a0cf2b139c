"""The native core of another machine, emulated or real, behind this one's tests: a pytest plugin.

    python -m pytest -p remote_core --core 'qemu-aarch64 -cpu cortex-a72 -L SYSROOT core_server' tests/...

`--core` is a command that starts core_server.cc there (`ssh pi ./core_server` does too); given several times, each op
runs on all of them and must leave the same bits. The tests stay as they are, with PyTorch as their oracle on this
machine: only `native.NativeProgram` runs elsewhere. The ISAs are those of the remote cores, so `[neon-...]` in a test's
name is the proof that it ran there.
"""

from __future__ import annotations

import os
import shlex
import struct
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from edge_runtime.errors import EdgeRuntimeError, ProgramError
from edge_runtime.kernels import native

ISA, SELECT, CODE, CREATE, RUN = range(5)
Payload = bytes | memoryview


class RemoteCore:
    """One core: a process that answers requests (core_server.cc has the format)."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)
        self._process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, kind: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0, payload: Payload = b"") -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(struct.pack("6q", kind, a, b, c, d, len(payload)))
            self._process.stdin.write(payload)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._gone() from None

    def answer(self) -> tuple[int, int, bytes]:
        assert self._process.stdout
        head = self._process.stdout.read(24)
        if len(head) < 24:
            raise self._gone()
        x, y, nbytes = struct.unpack("3q", head)
        return x, y, self._process.stdout.read(nbytes)

    def call(self, kind: int, a: int = 0, b: int = 0, payload: Payload = b"") -> tuple[int, int, bytes]:
        self.ask(kind, a, b, payload=payload)
        return self.answer()

    def isas(self) -> Iterator[str]:
        index = 0
        while (reply := self.call(ISA, index))[0] == 0:
            yield reply[2].decode()
            index += 1

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(10)

    def _gone(self) -> EdgeRuntimeError:
        return EdgeRuntimeError(f"{shlex.join(self.command)} ended with {self._process.wait(10)}")


class RemoteCores:
    """Several cores that must agree, as one; stands in for the functions of `native` that reach the library."""

    def __init__(self, commands: Sequence[str]) -> None:
        self.cores = [RemoteCore(shlex.split(command)) for command in commands]
        self._names = {core: list(core.isas()) for core in self.cores}
        self._selected = ""
        self.select_isa(self.isas()[0])

    def isas(self) -> list[str]:
        """The longest list is that of the CPU that can do most; the others' are parts of it."""
        return max(self._names.values(), key=len)

    def selected_isa(self) -> str:
        return self._selected

    def select_isa(self, name: str) -> None:
        self.active = [core for core in self.cores if name in self._names[core]]
        if not self.active:
            raise ValueError(f"no ISA {name!r} there; there are {', '.join(self.isas())}")
        for core in self.active:
            assert core.call(SELECT, payload=name.encode())[0] == 0
        self._selected = name

    def op_code(self, name: str) -> int:
        code = self.cores[0].call(CODE, payload=name.encode())[0]
        if code < 0:
            raise ProgramError(f"the native core has no op {name!r}")
        return code

    def close(self) -> None:
        for core in self.cores:
            core.close()


def remote_program(cores: RemoteCores) -> type:
    """A class to stand for `native.NativeProgram`."""

    class RemoteProgram:
        def __init__(self, ops: np.ndarray[Any, Any], arena_bytes: int) -> None:
            records = np.ascontiguousarray(ops).tobytes()
            self._arena_bytes, self._sessions = arena_bytes, {}
            for core in cores.cores:
                session, bad, why = core.call(CREATE, len(ops), arena_bytes, payload=records)
                if session < 0:
                    raise ProgramError(f"op {bad}: {why.decode()}" if bad >= 0 else f"op table: {why.decode()}")
                self._sessions[core] = session

        def run(
            self, arena: np.ndarray[Any, Any], first: int, count: int, team: native.Team | None = None
        ) -> tuple[int, int]:
            mine, threads = arena[: self._arena_bytes], team.threads if team else 1
            for core in cores.active:
                core.ask(RUN, self._sessions[core], first, count, threads, mine.data)
            answers = [core.answer() for core in cores.active]
            for core, answer in zip(cores.active, answers, strict=True):
                assert answer == answers[0], f"{core.command} and {cores.active[0].command} differ"
            status, bad, after = answers[0]
            mine[:] = np.frombuffer(after, np.uint8)
            return status, bad

    return RemoteProgram


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--core", action="append", default=[], help="a command that starts core_server on some machine")


def pytest_configure(config: pytest.Config) -> None:
    """Before any test module, or the engine, has taken its names from `native`."""
    commands = config.getoption("--core")
    if not commands:
        raise pytest.UsageError("-p remote_core needs at least one --core")
    os.environ["OMP_NUM_THREADS"] = "1"  # the other CPUs are the emulators'
    cores = RemoteCores(commands)
    config.add_cleanup(cores.close)
    for name in ("isas", "selected_isa", "select_isa", "op_code"):
        setattr(native, name, getattr(cores, name))
    native.NativeProgram = remote_program(cores)  # type: ignore[misc]
