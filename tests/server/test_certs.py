"""Certificates are judged by those who will have to believe them: a TLS client, and cryptography's path validation."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from edge_runtime.errors import ConfigError
from server import certs

NOW = datetime.now(UTC).replace(microsecond=0)


def made(folder: Path, *hosts: str, days: int = 365, now: datetime = NOW) -> Path:
    certs.new(folder, hosts or ("garden.example",), days=days, now=now)
    return folder


def shake_hands(folder: Path, host: str, *, ca: Path | None = None) -> str:
    """The TLS version that a client which trusts `ca` alone agrees on with a server of these files."""
    ours, theirs = socket.socketpair()
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(folder / certs.SERVER, folder / certs.SERVER_KEY)

    def answer() -> None:
        try:
            with serving.wrap_socket(theirs, server_side=True) as link:
                link.recv(1)
        except (ssl.SSLError, OSError):
            theirs.close()

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trusting.load_verify_locations(ca or folder / certs.CA)
        with trusting.wrap_socket(ours, server_hostname=host) as link:
            return str(link.version())
    finally:
        ours.close()
        thread.join(5)


@pytest.mark.parametrize("host", ["garden.example", "192.0.2.7", "localhost", "127.0.0.1"])
def test_a_client_with_the_authority_alone_believes_the_server(tmp_path: Path, host: str) -> None:
    assert shake_hands(made(tmp_path, "garden.example", "192.0.2.7"), host).startswith("TLSv1.")


def test_a_client_refuses_another_host_and_another_authority(tmp_path: Path) -> None:
    ours, theirs = made(tmp_path / "ours"), made(tmp_path / "theirs")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(ours, "elsewhere.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(ours, "garden.example", ca=theirs / certs.CA)


def verify(folder: Path, name: str, at: datetime) -> None:
    subject: x509.general_name.GeneralName = x509.DNSName(name)
    with contextlib.suppress(ValueError):
        subject = x509.IPAddress(ipaddress.ip_address(name))
    store = Store([certs.read(folder / certs.CA)])
    verifier = PolicyBuilder().store(store).time(at).build_server_verifier(subject)
    verifier.verify(certs.read(folder / certs.SERVER), [])


def test_the_chain_holds_by_the_rules_of_the_web(tmp_path: Path) -> None:
    folder = made(tmp_path, "garden.example", "192.0.2.7", "2001:db8::7", days=30)
    for name in ("garden.example", "192.0.2.7", "2001:db8::7"):
        verify(folder, name, NOW)
        verify(folder, name, NOW + timedelta(days=29))
        for wrong in (NOW - timedelta(days=1), NOW + timedelta(days=31)):
            with pytest.raises(VerificationError):
                verify(folder, name, wrong)
    with pytest.raises(VerificationError):
        verify(folder, "elsewhere.example", NOW)


def test_a_server_certificate_signs_nothing(tmp_path: Path) -> None:
    folder = made(tmp_path)
    server, authority = certs.read(folder / certs.SERVER), certs.read(folder / certs.CA)
    for certificate, ca in ((server, False), (authority, True)):
        assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is ca
        assert certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign is ca


def test_renewed_by_the_same_authority_for_the_same_hosts(tmp_path: Path) -> None:
    folder = made(tmp_path, "garden.example", days=10)
    authority, before = (folder / certs.CA).read_bytes(), certs.read(folder / certs.SERVER)
    later = NOW + timedelta(days=9)
    again = certs.renew(folder, days=20, now=later)
    after = certs.read(folder / certs.SERVER)
    assert (folder / certs.CA).read_bytes() == authority
    assert after.public_key() != before.public_key()
    assert after.serial_number != before.serial_number
    assert again.hosts == certs.hosts_of(before)
    verify(folder, "garden.example", later + timedelta(days=19))

    assert certs.renew(folder, ["shed.example"], days=20, now=later).hosts[0] == "shed.example"
    verify(folder, "shed.example", later)
    with pytest.raises(VerificationError):
        verify(folder, "garden.example", later)


def test_no_certificate_outlives_its_authority(tmp_path: Path) -> None:
    folder = made(tmp_path)
    end = certs.read(folder / certs.CA).not_valid_after_utc
    assert certs.renew(folder, days=1000, now=end - timedelta(days=10)).until == end
    with pytest.raises(ConfigError, match="ran out"):
        certs.renew(folder, days=10, now=end)


def test_keys_are_for_their_owner_alone(tmp_path: Path) -> None:
    folder = made(tmp_path / "certs")
    certs.renew(folder, days=10, now=NOW)
    for name in (certs.CA_KEY, certs.SERVER_KEY):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_an_authority_that_devices_believe_is_not_overwritten(tmp_path: Path) -> None:
    folder = made(tmp_path)
    before = (folder / certs.CA).read_bytes()
    with pytest.raises(ConfigError, match="certs renew"):
        made(folder)
    assert (folder / certs.CA).read_bytes() == before


@pytest.mark.parametrize(
    "host", ["", "a b", "x:8443", "https://x", "1.2.3", "300.1.1.1", "-x", "x..y", "ä.example", "a" * 64]
)
def test_what_is_no_host_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="host"):
        made(tmp_path / "certs", host)
    assert not (tmp_path / "certs").exists()


@pytest.mark.parametrize("days", [0, -1, certs.MAX_DAYS + 1])
def test_days_are_bounded(tmp_path: Path, days: int) -> None:
    with pytest.raises(ConfigError, match="days"):
        made(tmp_path, "x.example", days=days)


def test_without_an_authority_or_with_anothers_key_nothing_is_renewed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        certs.renew(tmp_path, ["x.example"], days=1, now=NOW)
    ours, theirs = made(tmp_path / "ours"), made(tmp_path / "theirs")
    (ours / certs.CA_KEY).write_bytes((theirs / certs.CA_KEY).read_bytes())
    with pytest.raises(ConfigError, match="is not the key"):
        certs.renew(ours, days=1, now=NOW)
    (ours / certs.CA_KEY).write_text("no key")
    with pytest.raises(ConfigError, match="no private key"):
        certs.renew(ours, days=1, now=NOW)
