"""Devices: their keys, the table of who may take part, and a real SuperLink that is told of it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from serving import SuperLink, running_superlink

from edge_runtime.errors import ConfigError
from server.devices import DeviceKey, make_key, read_key
from server.serve.control import ControlError
from server.serve.fleet import reconcile
from server.serve.state import Device, State


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    opened = State(tmp_path / "state", create=True)
    yield opened
    opened.close()


def key(folder: Path, name: str) -> DeviceKey:
    return make_key(folder / f"{name}.key", name)


def test_a_made_key_is_what_flower_reads(tmp_path: Path) -> None:
    made = key(tmp_path, "pi")
    private = serialization.load_ssh_private_key((tmp_path / "pi.key").read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert private.curve.name == "secp384r1"
    assert public_key_to_bytes(private.public_key()) == made.pem
    assert read_key(tmp_path / "pi.key.pub") == made
    assert stat.S_IMODE((tmp_path / "pi.key").stat().st_mode) == 0o600


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="no ssh-keygen on this machine")
def test_a_fingerprint_is_what_ssh_keygen_says(tmp_path: Path) -> None:
    made = key(tmp_path, "pi")
    told = subprocess.run(["ssh-keygen", "-lf", tmp_path / "pi.key.pub"], capture_output=True, text=True, check=True)
    assert told.stdout.split()[1:3] == [made.fingerprint, "pi"]


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    key(tmp_path, "pi")
    before = (tmp_path / "pi.key").read_bytes()
    with pytest.raises(ConfigError, match="is there already"):
        key(tmp_path, "pi")
    (tmp_path / "pi.key.pub").rename(tmp_path / "other.key.pub")
    with pytest.raises(ConfigError, match="is there already"):
        key(tmp_path, "other")
    assert (tmp_path / "pi.key").read_bytes() == before


def test_what_is_no_device_key_is_refused(tmp_path: Path) -> None:
    key(tmp_path, "pi")
    with pytest.raises(ConfigError, match="private key, which stays on its device"):
        read_key(tmp_path / "pi.key")
    other = ed25519.Ed25519PrivateKey.generate().public_key()
    (tmp_path / "ed.pub").write_bytes(
        other.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    )
    with pytest.raises(ConfigError, match="elliptic-curve"):
        read_key(tmp_path / "ed.pub")
    for content in (b"", b"\x00" * 9000, b"ssh-rsa AAAA", b"-----BEGIN PUBLIC KEY-----\nxx\n-----END PUBLIC KEY-----"):
        (tmp_path / "bad.pub").write_bytes(content)
        with pytest.raises(ConfigError, match="no public key"):
            read_key(tmp_path / "bad.pub")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_key(tmp_path / "none.pub")


def test_names_and_keys_are_enrolled_once(state: State, tmp_path: Path) -> None:
    first, second = key(tmp_path, "first"), key(tmp_path, "second")
    state.enrol("pi", first)
    with pytest.raises(ConfigError, match="with another key"):
        state.enrol("pi", second)
    with pytest.raises(ConfigError, match="enrolled already, as pi"):
        state.enrol("pi2", first)
    for name in ("", "../pi", "-pi", "a b", "x" * 64, "pi\n"):
        with pytest.raises(ConfigError, match="device name"):
            state.enrol(name, second)
    assert [device.name for device in state.devices()] == ["pi"]


def test_a_revoked_key_stays_out_and_its_name_is_free(state: State, tmp_path: Path) -> None:
    first, second = key(tmp_path, "first"), key(tmp_path, "second")
    state.enrol("pi", first)
    state.revoke("pi")
    with pytest.raises(ConfigError, match="none of that name"):
        state.revoke("pi")
    with pytest.raises(ConfigError, match="was revoked as pi"):
        state.enrol("pi", first)
    state.enrol("pi", second)
    assert [device.revoked_s is None for device in state.devices()] == [False, True]


def test_the_table_outlives_its_process(state: State, tmp_path: Path) -> None:
    state.enrol("pi", key(tmp_path, "pi"))
    again = State(state.folder)
    assert again.devices() == state.devices()
    again.close()


def test_a_folder_in_which_others_write_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match="others may write here"):
        State(folder, create=True)


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLink]:
    with running_superlink(tmp_path_factory.mktemp("superlink")) as running:
        yield running


def by_name(state: State) -> dict[str, Device]:
    return {device.name: device for device in state.devices()}


def test_the_superlink_knows_whom_the_table_knows(superlink: SuperLink, state: State, tmp_path: Path) -> None:
    said: list[str] = []
    pi, pan, stranger = (key(tmp_path, name) for name in ("pi", "pan", "stranger"))
    superlink.control.register(stranger.pem, "nobody")  # a server before this one may have let it in
    state.enrol("pi", pi)
    state.enrol("pan", pan)
    assert not by_name(state)["pi"].settled

    reconcile(state, superlink.control, said.append)
    assert {node.pem for node in superlink.control.nodes()} == {pi.pem, pan.pem}
    enrolled = by_name(state)
    assert {device.shown_status for device in enrolled.values()} == {"registered"}
    assert {int(device.node or 0) for device in enrolled.values()} == {node.node for node in superlink.control.nodes()}
    assert len(said) == 3

    reconcile(state, superlink.control, said.append)  # nothing new, nothing done
    assert by_name(state) == enrolled
    assert len(said) == 3

    state.revoke("pan")
    assert by_name(state)["pan"].shown_status == "revoked when the server starts"
    reconcile(state, superlink.control, said.append)
    assert {node.pem for node in superlink.control.nodes()} == {pi.pem}
    assert by_name(state)["pan"].shown_status == "revoked"
    assert by_name(state)["pi"] == enrolled["pi"]


def test_revoked_before_the_superlink_ever_heard_of_it(superlink: SuperLink, state: State, tmp_path: Path) -> None:
    pi = key(tmp_path, "pi")
    state.enrol("pi", pi)
    state.revoke("pi")
    reconcile(state, superlink.control, lambda line: None)
    assert pi.pem not in {node.pem for node in superlink.control.nodes()}
    assert by_name(state)["pi"].shown_status == "revoked"


def test_a_key_that_the_superlink_will_not_have_costs_the_others_nothing(
    superlink: SuperLink, state: State, tmp_path: Path
) -> None:
    used, fresh = key(tmp_path, "used"), key(tmp_path, "fresh")
    superlink.control.unregister(superlink.control.register(used.pem, "used"))  # Flower takes no key twice
    state.enrol("used", used)
    state.enrol("fresh", fresh)
    said: list[str] = []
    reconcile(state, superlink.control, said.append)
    devices = by_name(state)
    assert devices["used"].shown_status == "refused"
    assert "already in use" in devices["used"].problem
    assert devices["fresh"].shown_status == "registered"
    reconcile(state, superlink.control, said.append)
    assert len([line for line in said if "cannot be enrolled" in line]) == 1


def test_without_a_superlink_nothing_is_settled(state: State, tmp_path: Path) -> None:
    from server.serve.control import Control

    state.enrol("pi", key(tmp_path, "pi"))
    control = Control("127.0.0.1:9", "no token")  # the discard port: nobody listens
    with pytest.raises(ControlError):
        reconcile(state, control, lambda line: None)
    control.close()
    assert not by_name(state)["pi"].settled


def test_a_key_is_written_into_no_file_that_another_user_has_put_there(tmp_path: Path) -> None:
    """As one could, by guessing the process's number, in a folder where others may write."""
    folder = tmp_path / "shared"
    folder.mkdir()
    for name in ("a.key", "b.key"):
        trap = folder / f".{name}.{os.getpid()}.part"
        if name == "a.key":
            trap.touch(0o666)
        else:
            trap.symlink_to(tmp_path / "elsewhere")
        opened = trap.open("rb") if name == "a.key" else None
        make_key(folder / name, "pi")
        assert (folder / name).stat().st_mode & 0o777 == 0o600
        assert not (folder / name).is_symlink()
        if opened:
            assert opened.read() == b""
            opened.close()
    assert not (tmp_path / "elsewhere").exists()
