"""A certificate authority of one's own, and the server certificate that it signs: what TLS needs in a closed fleet.

    ca.key        the authority's private key: needed to renew, by nobody else; may be kept offline
    ca.crt        what every device gets, and all that it gets
    server.key    the server's private key
    server.crt    the server's certificate, for the names and addresses by which devices reach it

Keys are EC P-256 (RFC 5480), certificates X.509 v3 (RFC 5280). A device believes ca.crt and nothing else, so that no
public authority can vouch for another server.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edge_runtime.errors import ConfigError
from edge_runtime.files import write_atomically

CA_KEY, CA, SERVER_KEY, SERVER = "ca.key", "ca.crt", "server.key", "server.crt"
CA_DAYS = 3650
SERVER_DAYS = 365
MAX_DAYS = 36_500
# Devices without a battery clock start in the past; some slack spares them a failure in the first minutes.
_SLACK = timedelta(hours=1)
_HOST_NAME = re.compile(r"(\*\.)?([a-z0-9_]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.I)
# The server's own processes and tests on its machine come by these.
_ALWAYS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Made:
    """A server certificate: where it is, for whom, until when."""

    path: Path
    hosts: tuple[str, ...]
    until: datetime


def new(folder: Path, hosts: Sequence[str], *, days: int, now: datetime) -> Made:
    """An authority and a server certificate in `folder`.

    Raises:
        ConfigError: no host, one that is neither a name nor an address, days out of range, or the folder has an
            authority already.

    """
    names = _alternative_names(hosts)
    _check_days(days)
    if (folder / CA_KEY).exists() or (folder / CA).exists():
        raise ConfigError(
            f"{folder / CA}: there is an authority already, which devices may believe; "
            f"`hedgerow certs renew {folder}` makes another server certificate, or choose another folder"
        )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Hedgerow authority {now:%Y-%m-%d %H:%M}")])
    certificate = (
        _builder(subject, subject, key.public_key(), now, max(CA_DAYS, days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write_key(folder / CA_KEY, key)
    _write(folder / CA, certificate)
    return _issue(folder, key, certificate, names, days, now)


def renew(folder: Path, hosts: Sequence[str] = (), *, days: int, now: datetime) -> Made:
    """Another server certificate and key by the same authority; devices need nothing new.

    Without hosts, for those of the certificate there is.

    Raises:
        ConfigError: no authority there, it has run out, or its key is not its certificate's.

    """
    _check_days(days)
    authority = read(folder / CA)
    key = _read_key(folder / CA_KEY)
    if key.public_key() != authority.public_key():
        raise ConfigError(f"{folder / CA_KEY}: is not the key of {folder / CA}")
    if authority.not_valid_after_utc <= now:
        raise ConfigError(f"{folder / CA}: ran out on {authority.not_valid_after_utc:%Y-%m-%d}; make a new authority")
    return _issue(folder, key, authority, _alternative_names(hosts or hosts_of(read(folder / SERVER))), days, now)


def read(path: Path) -> x509.Certificate:
    """The first certificate of a PEM file; ConfigError if it can't be read."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise ConfigError(f"{path}: is no certificate in PEM") from error


def hosts_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """The names and addresses that a certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(name.value) for name in names)


def _issue(
    folder: Path,
    authority_key: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate,
    names: Sequence[x509.GeneralName],
    days: int,
    now: datetime,
) -> Made:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Hedgerow server")])
    public = authority_key.public_key()
    certificate = (
        _builder(subject, authority.subject, key.public_key(), now, days, authority.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    _write_key(folder / SERVER_KEY, key)
    _write(folder / SERVER, certificate)
    return Made(folder / SERVER, hosts_of(certificate), certificate.not_valid_after_utc)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
    days: int,
    at_most: datetime | None = None,
) -> x509.CertificateBuilder:
    until = now + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SLACK)
        .not_valid_after(min(until, at_most) if at_most else until)
    )


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    if not hosts:
        raise ConfigError("--host: give the names or addresses by which devices reach this server")
    return [_general_name(host) for host in dict.fromkeys([*hosts, *_ALWAYS])]


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    # A name of digits and dots alone is a mistyped address.
    if len(host) > 253 or not _HOST_NAME.fullmatch(host) or not re.search(r"[a-zA-Z]", host):
        raise ConfigError(f"--host {host!r}: must be a host name or an IP address, without a port")
    return x509.DNSName(host)


def _check_days(days: int) -> None:
    if not 1 <= days <= MAX_DAYS:
        raise ConfigError(f"--days {days}: must be from 1 to {MAX_DAYS}")


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: is no private key in PEM without a password") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path}: is no elliptic-curve key")
    return key


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    content = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_atomically(path, [content], mode=0o600)


def _write(path: Path, certificate: x509.Certificate) -> None:
    write_atomically(path, [certificate.public_bytes(serialization.Encoding.PEM)], mode=0o644)


def now_utc() -> datetime:
    return datetime.now(UTC)
