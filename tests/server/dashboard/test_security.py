"""Who is let in, what is refused before it is read, and what every answer forbids a browser."""

from __future__ import annotations

import http.client
import json
import socket
from contextlib import ExitStack, closing
from urllib.parse import urlsplit

import httpx
import pytest
from dashboards import files_of, serving

from edge_runtime.errors import ConfigError
from server import commands
from server.dashboard.access import Access
from server.dashboard.auth import Role, Sessions, Throttle, Tokens, new_token
from server.dashboard.guard import MOST_BODY
from server.run_store import RunStore

DATA = ["/api/runs", "/api/runs/plain", "/api/runs/plain/rounds", "/api/runs/plain/devices", "/api/runs/plain/privacy",
        "/api/runs/plain/models", "/api/runs/plain/events", "/api/runs/plain/files/run.json", "/api/stream?run=plain",
        "/metrics"]  # fmt: skip


@pytest.fixture
def login():
    """A function that logs in: a client with a session, and the session's CSRF token."""
    with ExitStack() as clients:

        def enter(address, token):
            client = clients.enter_context(httpx.Client(base_url=address))
            answer = client.post("/api/session", json={"token": token})
            assert answer.status_code == 200
            return client, answer.json()["csrf"]

        yield enter


@pytest.fixture(scope="module")
def closed(runs):
    """One for those who only guess, and soon are heard no more."""
    with serving(runs, Tokens.of(viewer="look")) as address:
        yield address


@pytest.mark.parametrize("path", DATA)
def test_nothing_is_shown_without_a_token(closed, path):
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Cookie": "hedgerow_80=wrong"},
        {"Authorization": "Basic look"},
    ):
        answer = httpx.get(closed + path, headers=headers)
        assert answer.status_code in (401, 429)
        assert answer.json().keys() == {"error"}


def test_every_path_of_the_api_asks_who_it_is(locked):
    """So that a request that is added later cannot be forgotten."""
    open_to_all = {"/api/session", "/healthz"}
    for path in httpx.get(f"{locked}/openapi.json").json()["paths"]:
        if path not in open_to_all:
            found = httpx.request("GET", locked + path.replace("{run}", "plain").replace("{name}", "run.json"))
            assert found.status_code in (401, 405), path


@pytest.mark.parametrize("path", ["/healthz", "/docs", "/openapi.json", "/api/session"])
def test_what_shows_no_run_needs_no_token(locked, path):
    assert httpx.get(locked + path).status_code == 200


def test_a_session_from_login_to_logout(locked, login):
    client, csrf = login(locked, "look")
    assert client.get("/api/session").json() == {"login_required": True, "role": "viewer", "csrf": csrf}
    assert client.get("/api/runs").status_code == 200
    cookies = dict(client.cookies)
    assert client.delete("/api/session").status_code == 403  # as another site would send it
    assert client.delete("/api/session", headers={"X-CSRF-Token": csrf}).status_code == 200
    assert httpx.get(f"{locked}/api/runs", cookies=cookies).status_code == 401


def test_the_cookie_is_out_of_scripts_and_other_sites_reach(locked):
    answer = httpx.post(f"{locked}/api/session", json={"token": "look"})
    words = {word.strip().lower() for word in answer.headers["set-cookie"].split(";")}
    assert {"httponly", "samesite=strict", "path=/"} <= words
    assert "look" not in answer.headers["set-cookie"]


def test_a_bearer_token_is_a_login_of_its_own(locked):
    assert httpx.get(f"{locked}/metrics", headers={"Authorization": "Bearer look"}).status_code == 200


def test_sessions_end_and_the_oldest_gives_way():
    now = [0.0]
    sessions = Sessions(lambda: now[0], most=2)
    first, second, third = (sessions.open(Role.VIEWER)[0] for _ in range(3))
    assert sessions.find(first) is None
    assert sessions.find(second)
    now[0] = 13 * 3600.0
    assert sessions.find(second) is None
    assert sessions.find(third) is None


def test_guesses_are_counted_by_address_and_forgotten():
    now = [0.0]
    throttle = Throttle(lambda: now[0], most=3, window_s=60, addresses=2)
    for _ in range(3):
        assert not throttle.wait_s("a")
        throttle.failed("a")
    assert throttle.wait_s("a") == 60
    assert not throttle.wait_s("b")
    now[0] = 61
    assert not throttle.wait_s("a")
    for address in "bcd":
        throttle.failed(address)
    assert len(throttle._failed) == 2


def test_too_many_wrong_tokens_are_refused_unread(runs):
    with serving(runs, Tokens.of(viewer="look")) as address:
        statuses = [httpx.post(f"{address}/api/session", json={"token": f"{n}"}).status_code for n in range(12)]
        assert statuses == 10 * [401] + 2 * [429]
        refused = httpx.post(f"{address}/api/session", json={"token": "look"})
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) > 0


@pytest.mark.parametrize("token", ["", "\ud800", "x" * 513, "Look", "look "])
def test_odd_tokens_are_wrong_tokens(runs, token):
    with serving(runs, Tokens.of(viewer="look")) as address:
        body = json.dumps({"token": token}).encode()
        answer = httpx.post(f"{address}/api/session", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (401, 422)


def test_a_token_file_holds_no_token_and_is_private(tmp_path):
    path = tmp_path / "tokens"
    viewer, admin = new_token(path, Role.VIEWER), new_token(path, Role.ADMIN)
    tokens = Tokens.read(path)
    assert (tokens.role(viewer), tokens.role(admin), tokens.role("")) == (Role.VIEWER, Role.ADMIN, None)
    assert viewer not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        Tokens.read(path)


@pytest.mark.parametrize("content", ["", "admin x\n", "root " + 64 * "0", "viewer " + 63 * "0", "\x00"])
def test_another_file_is_no_token_file(tmp_path, content):
    path = tmp_path / "tokens"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="token-file"):
        Tokens.read(path)


def order(client, run, name="stop", **headers):
    return client.post(f"/api/runs/{run}/commands", json={"name": name}, headers=headers)


@pytest.fixture
def going(tmp_path):
    """A folder with a run that goes on: this process writes it."""
    store = RunStore(tmp_path / "going")
    store.append("run_started", {"server.rounds": 3})
    yield tmp_path
    store.close()


def test_only_an_admin_who_means_it_commands(going, login):
    with serving(going, Tokens.of(viewer="look", admin="rule")) as address:
        viewer, viewer_csrf = login(address, "look")
        admin, csrf = login(address, "rule")
        foreign = {"Origin": "http://evil.example"}
        assert httpx.post(f"{address}/api/runs/going/commands", json={"name": "stop"}).status_code == 401
        assert order(viewer, "going", **{"X-CSRF-Token": viewer_csrf}).status_code == 403
        assert order(admin, "going").status_code == 403
        assert order(admin, "going", **{"X-CSRF-Token": viewer_csrf}).status_code == 403
        assert order(admin, "going", **{"X-CSRF-Token": csrf}, **foreign).status_code == 403
        assert order(admin, "going", "explode", **{"X-CSRF-Token": csrf}).status_code == 422
        assert order(admin, "nobody", **{"X-CSRF-Token": csrf}).status_code == 404
        assert order(admin, "going", "rollout_halt", **{"X-CSRF-Token": csrf}).status_code == 409  # it has none
        assert commands.read(going / "going") == []
        taken = order(admin, "going", **{"X-CSRF-Token": csrf}, Origin=address)
        assert (taken.status_code, taken.json()) == (202, {"accepted": "stop"})
        [command] = commands.read(going / "going")
        assert command.name is commands.Name.STOP


def test_without_tokens_nobody_commands(going):
    with serving(going) as address, httpx.Client(base_url=address) as client:
        assert client.get("/api/runs/going").json()["state"] == "running"
        assert order(client, "going").status_code == 403
        assert client.post("/api/session", json={"token": "x"}).status_code == 403
        assert not (going / "going" / commands.CONTROL).exists()


def test_an_ended_run_takes_no_orders(locked, runs, login):
    admin, csrf = login(locked, "rule")
    assert order(admin, "plain", **{"X-CSRF-Token": csrf}).status_code == 409
    assert not (runs / "plain" / commands.CONTROL).exists()


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/api/runs",
        "/api/runs/x",
        "/docs",
        "/openapi.json",
        "/healthz",
        "/static/x",
        "/api/runs/plain/files/run.json",
    ],
)
def test_every_answer_forbids_what_the_page_does_not_need(address, path):
    headers = httpx.get(address + path).headers
    policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert {policy[kind] for kind in ("script-src", "style-src", "img-src", "connect-src")} == {"'self'"}
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == ("no-cache" if path.startswith("/static") else "no-store")
    assert "server" not in headers


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((host, 200) for host in ("127.0.0.1", "localhost:99", "[::1]:8080")),
        *((host, 421) for host in ("evil.example", "127.0.0.1.evil.example", "", "a@127.0.0.1")),
        *((host, 421) for host in ("localhost:port", "localhost:99999", "[::1")),
    ],
)
def test_only_our_own_names_are_answered(address, host, status):
    answer = httpx.get(f"{address}/api/runs", headers={"Host": host})
    assert answer.status_code == status


def raw(address, content):
    """The status of the answer to these bytes; None if the connection is closed without one."""
    host, port = urlsplit(address).netloc.split(":")
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.sendall(content)
        with closing(http.client.HTTPResponse(connection)) as answer:
            try:
                answer.begin()
            except (http.client.HTTPException, ConnectionError):
                return None
            return answer.status


CHUNK = b"4000\r\n" + 16384 * b" " + b"\r\n"
HEAD = b"POST /api/session HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
BAD = {
    "no http": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",
    "no host": b"GET /api/runs HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /api/runs HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    "long address": b"GET /" + 9000 * b"a" + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "endless address": b"GET /" + 200_000 * b"a",
    "long header": b"GET /api/runs HTTP/1.1\r\nHost: localhost\r\nX: " + 60_000 * b"a" + b"\r\n\r\n",
    "many headers": b"GET /api/runs HTTP/1.1\r\nHost: localhost\r\n" + 9000 * b"X: a\r\n" + b"\r\n",
    "length of a word": HEAD + b"Content-Length: many\r\n\r\n",
    "negative length": HEAD + b"Content-Length: -1\r\n\r\n",
    "announced too large": HEAD + b"Content-Length: 99999999999999999999\r\n\r\n",
    "too large in chunks": HEAD
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + 9 * (b"4000\r\n" + 16384 * b" " + b"\r\n")
    + b"0\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "smuggled": HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
    "no json": HEAD + b"Content-Length: 3\r\n\r\n{]}",
    "deep json": HEAD + b"Content-Length: 60000\r\n\r\n" + 60_000 * b"[",
    "no text": HEAD + b"Content-Length: 4\r\n\r\n\xff\xfe\xfd\xfc",
    "a list": HEAD + b"Content-Length: 2\r\n\r\n[]",
    "more than asked": HEAD + b"Content-Length: 27\r\n\r\n" + b'{"token": "x", "role": "a"}',
    "huge number": HEAD + b"Content-Length: 5013\r\n\r\n" + b'{"token": ' + 5000 * b"9" + b"  }",
    "bad escape": b"GET /api/runs/%ff%fe/rounds?after=%zz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "control": b"GET /api/runs/%00%0d%0a HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "method": b"BREW /api/runs HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "wrong content type": b"POST /api/session HTTP/1.1\r\nHost: localhost\r\nContent-Length: 15\r\n\r\n"
    + b'{"token": "a"}\n',
    "absolute address": b"GET http://evil.example/api/runs HTTP/1.1\r\nHost: evil.example\r\n\r\n",
}


@pytest.mark.parametrize("kind", BAD)
def test_malformed_requests_get_4xx_and_change_nothing(locked, runs, kind):
    before = files_of(runs)
    status = raw(locked, BAD[kind])
    assert status is not None
    assert 400 <= status < 500
    assert files_of(runs) == before
    assert httpx.get(f"{locked}/healthz").status_code == 200


def test_a_body_at_the_limit_is_read(locked):
    body = b'{"token": "' + b"x" * (MOST_BODY - 13) + b'"}'
    headers = {"Content-Type": "application/json"}
    assert len(body) == MOST_BODY
    assert httpx.post(f"{locked}/api/session", content=body, headers=headers).status_code == 422
    assert httpx.post(f"{locked}/api/session", content=body + b" ", headers=headers).status_code == 413


def test_hashes_alone_are_held():
    access = Access(Tokens.of(admin="a-very-plain-token"))
    assert "a-very-plain-token" not in repr(access.tokens)
