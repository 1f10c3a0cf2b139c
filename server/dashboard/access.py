"""Who asks: from a session's cookie, a bearer token, or nobody where no tokens are set."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from fastapi import HTTPException, Request

from server.dashboard.auth import Role, Session, Sessions, Throttle, Tokens
from server.dashboard.guard import split_host

CSRF = "x-csrf-token"


@dataclass(frozen=True, slots=True)
class Asker:
    """`role` is None where a login is needed; `session` is None without one."""

    role: Role | None
    session: Session | None = None
    bearer: bool = False


class Access:
    """With tokens everything needs one. Without, everybody is a viewer and nobody an admin."""

    def __init__(
        self, tokens: Tokens | None, sessions: Sessions | None = None, throttle: Throttle | None = None
    ) -> None:
        self.tokens = tokens
        self.sessions, self.throttle = sessions or Sessions(), throttle or Throttle()

    def asker(self, request: Request) -> Asker:
        """Who it is; 401 for a wrong bearer token, 429 for one too many."""
        if self.tokens is None:
            return Asker(Role.VIEWER)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return Asker(self.checked(request, token.strip()), bearer=True)
        session = self.sessions.find(request.cookies.get(cookie_name(request), ""))
        return Asker(session.role if session else None, session)

    def checked(self, request: Request, token: str) -> Role:
        """What that token allows; 401 if nothing, 429 after too many wrong ones from there."""
        address = request.client.host if request.client else ""
        if wait_s := self.throttle.wait_s(address):
            seconds = str(int(wait_s) + 1)
            raise HTTPException(429, f"too many wrong tokens; wait {seconds} s", {"Retry-After": seconds})
        role = self.tokens.role(token) if self.tokens else None
        if role is None:
            self.throttle.failed(address)
            raise HTTPException(401, "no such token")
        return role

    def viewer(self, request: Request) -> Asker:
        """A FastAPI dependency: whoever may see runs."""
        asker = self.asker(request)
        if asker.role is None:
            raise HTTPException(401, "log in with a token")
        return asker

    def admin(self, request: Request) -> Asker:
        """A FastAPI dependency: who may command runs, and wants to."""
        asker = self.viewer(request)
        if asker.role is not Role.ADMIN:
            hint = "" if self.tokens else "; without tokens the dashboard only shows: start it with --token-file"
            raise HTTPException(403, f"this needs an admin token{hint}")
        self.check_meant(request, asker)
        return asker

    def check_meant(self, request: Request, asker: Asker) -> None:
        """403 unless our own page sent this: a browser adds the cookie to whatever another site makes it send."""
        check_origin(request)
        if asker.bearer or asker.session is None:
            return
        sent = request.headers.get(CSRF, "")
        if not hmac.compare_digest(sent.encode("utf-8", "replace"), asker.session.csrf.encode()):
            raise HTTPException(403, f"the header {CSRF} must hold the `csrf` of GET /api/session")

    def still(self, request: Request) -> Callable[[], bool]:
        """Whether who has asked would be let in again, asked anew at each call; for answers that take long."""
        cookie = request.cookies.get(cookie_name(request), "")
        asker = self.viewer(request)
        return lambda: asker.session is None or self.sessions.find(cookie) is not None


def cookie_name(request: Request) -> str:
    """Browsers keep cookies by host, not by port: two dashboards on one machine must not log each other out."""
    _, port = request.scope.get("server") or ("", 0)
    return f"hedgerow_{port or 0}"


def check_origin(request: Request) -> None:
    """403 for what another site has sent."""
    origin = request.headers.get("origin")
    if origin is None:
        return
    try:
        theirs = urlsplit(origin).netloc
    except ValueError:
        theirs = ""
    ours = request.headers.get("host", "")
    if split_host(theirs) is None or theirs.lower() != ours.lower():
        raise HTTPException(403, "origin: another site's")
