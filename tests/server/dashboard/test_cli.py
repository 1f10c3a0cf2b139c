"""`hedgerow dashboard`, as a process."""

from __future__ import annotations

import datetime as dt
import ipaddress
import socket
import ssl
import subprocess
from contextlib import contextmanager

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from dashboards import HEDGEROW, free_port, until_it_answers

from edge_runtime.cli import main


def hedgerow(*arguments):
    return subprocess.run([*HEDGEROW, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)


@contextmanager
def dashboard(port, *arguments):
    command = [*HEDGEROW, "dashboard", "--port", str(port), *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as child:
        try:
            yield child
        finally:
            child.terminate()
            child.wait(20)


def test_it_serves_a_folder_and_ends_when_asked_to(runs):
    port = free_port()
    with dashboard(port, runs) as child:
        address = f"http://127.0.0.1:{port}"
        assert len(until_it_answers(f"{address}/api/runs").json()["runs"]) == 3
        with httpx.stream("GET", f"{address}/api/stream?run=plain") as stream:  # even while somebody listens
            next(stream.iter_raw())
            child.terminate()
            assert child.wait(20) in (0, -15)


def test_tls_and_tokens_beyond_loopback(runs, tmp_path):
    tokens, cert, key = tmp_path / "tokens", tmp_path / "cert.pem", tmp_path / "key.pem"
    made = hedgerow("dashboard", "--new-token", "admin", "--token-file", tokens)
    token = made.stdout.strip()
    assert (made.returncode, len(token)) == (0, 43)
    self_signed(cert, key)
    port = free_port()
    options = ("--host", "0.0.0.0", "--token-file", tokens, "--cert", cert, "--key", key, "--allow-host", "a.example")
    with dashboard(port, runs, *options):
        address, trust = f"https://127.0.0.1:{port}", ssl.create_default_context(cafile=str(cert))
        assert until_it_answers(f"{address}/api/runs", verify=trust).status_code == 401
        login = {"json": {"token": token}, "headers": {"Host": "a.example"}}
        answer = httpx.post(f"{address}/api/session", verify=trust, **login)
        assert answer.json()["role"] == "admin"
        assert "secure" in answer.headers["set-cookie"].lower()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/nowhere"], "no such folder"),
        ([], "no such folder"),
        ([".", "--host", "0.0.0.0"], "--token-file"),
        ([".", "--host", "fleet.example"], "--token-file"),
        ([".", "--cert", "x"], "needs both"),
        ([".", "--cert", "x", "--key", "y"], "cannot be used"),
        ([".", "--port", "70000"], "0..65535"),
        ([".", "--token-file", "/nowhere"], "--new-token admin"),
        (["--new-token", "admin"], "--token-file FILE"),
    ],
)
def test_usage_errors_are_one_line(arguments, words, capsys):
    assert main(["dashboard", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_port_that_is_taken_is_one_line(runs, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["dashboard", str(runs), "--port", str(taken.getsockname()[1])]) == 2
    error = capsys.readouterr().err
    assert "in use" in error
    assert error.count("\n") == 1


def self_signed(cert, key):
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key.write_bytes(private.private_bytes(*pem))
