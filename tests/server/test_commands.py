"""What an operator asks of a run: in a file of its own, which two processes use at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_runtime.errors import ConfigError, RunError
from server import commands
from server.orders import Orders
from server.run_store import RunStore


def test_each_command_is_read_in_order_and_logged_once(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "run")
    assert commands.read(store.directory) == []
    orders = Orders(store)
    assert orders.why_stop() is None
    commands.send(store.directory, commands.Name.ROLLOUT_HALT, "ada")
    commands.send(store.directory, commands.Name.STOP, "bob")
    assert orders.why_stop() == "stopped by bob"
    assert orders.newest == 2
    assert Orders(store).why_stop() == "stopped by bob"  # a run that is resumed hears it again
    assert [data["name"] for _, data in store.events("command")] == ["rollout_halt", "stop"]
    store.close()


def test_a_file_that_somebody_is_about_to_write_into_asks_for_nothing(tmp_path: Path) -> None:
    """SQLite makes the file before there is a table in it; the run that looks at that moment goes on."""
    (tmp_path / commands.CONTROL).touch()
    assert commands.read(tmp_path) == []
    commands.send(tmp_path, commands.Name.STOP, "ada")
    assert [command.name for command in commands.read(tmp_path)] == [commands.Name.STOP]


def test_what_cannot_be_asked_or_read_is_said_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such run"):
        commands.send(tmp_path / "none", commands.Name.STOP, "ada")
    (tmp_path / commands.CONTROL).write_bytes(b"this is no database " * 100)
    with pytest.raises(RunError, match=r"control\.sqlite: ") as caught:
        commands.read(tmp_path)
    assert "\n" not in str(caught.value)
