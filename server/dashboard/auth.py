"""Who may see runs, and who may command them: tokens, the sessions they open, and how often one may guess.

A token is 256 random bits, so its SHA-256 is as good as a password hash and far cheaper. The token file and this
process hold these hashes alone; a token is seen once, when it is made.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from edge_runtime.errors import ConfigError, RunError

_LINE = re.compile(r"(viewer|admin)\s+([0-9a-f]{64})(\s+#.*)?")
_MOST_TOKENS = 1000
SESSION_S = 12 * 3600.0


class Role(StrEnum):
    """A viewer sees everything, an admin may command as well."""

    VIEWER = "viewer"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens that are let in, as the SHA-256 of each."""

    roles: Mapping[bytes, Role]

    @classmethod
    def of(cls, **tokens: str) -> Tokens:
        """From plain tokens by role.

        >>> Tokens.of(viewer="a", admin="b").role("b")
        <Role.ADMIN: 'admin'>
        """
        return cls({_digest(token): Role(role) for role, token in tokens.items()})

    @classmethod
    def read(cls, path: Path) -> Tokens:
        """A token file: lines `ROLE SHA256`, empty ones and comments (#).

        Raises:
            ConfigError: it can't be read, others may read it, or it holds something else or no token.

        """
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                mode = os.fstat(file.fileno()).st_mode
                lines = file.read(1 << 20).splitlines()
        except OSError as error:
            raise ConfigError(
                f"--token-file {path}: cannot be read ({error.strerror}); `hedgerow dashboard --new-token admin "
                f"--token-file {path}` makes one"
            ) from error
        if stat.S_IMODE(mode) & 0o077:
            raise ConfigError(f"--token-file {path}: other users may read it; chmod 600 {path}")
        roles: dict[bytes, Role] = {}
        for at, line in enumerate(map(str.strip, lines), 1):
            if not line or line.startswith("#"):
                continue
            found = _LINE.fullmatch(line)
            if found is None or len(roles) >= _MOST_TOKENS:
                raise ConfigError(f"--token-file {path}, line {at}: must be `viewer` or `admin` and a SHA-256 in hex")
            roles[bytes.fromhex(found[2])] = Role(found[1])
        if not roles:
            raise ConfigError(f"--token-file {path}: holds no token")
        return cls(roles)

    def role(self, token: str) -> Role | None:
        """What that token allows; takes as long whichever it is."""
        digest, found = _digest(token), None
        for known, role in self.roles.items():
            if hmac.compare_digest(known, digest):
                found = role
        return found


def new_token(path: Path, role: Role) -> str:
    """Add a new token to the file, which nobody but its owner may read, and return it.

    Raises:
        RunError: the file can't be written.

    """
    token = secrets.token_urlsafe(32)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "a") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(f"{role.value} {_digest(token).hex()}\n")
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror})") from error
    return token


@dataclass(frozen=True, slots=True)
class Session:
    """A login. `csrf` is told to the page, which other sites can't read, and comes back in a header."""

    role: Role
    csrf: str
    until_s: float


class Sessions:
    """The logins that hold, by the SHA-256 of their cookie; with too many the oldest end."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, most: int = 1000) -> None:
        self._clock, self._most = clock, most
        self._open: OrderedDict[bytes, Session] = OrderedDict()
        self._guard = threading.Lock()

    def open(self, role: Role) -> tuple[str, Session]:
        """A new login and its cookie."""
        cookie = secrets.token_urlsafe(32)
        session = Session(role, secrets.token_urlsafe(32), self._clock() + SESSION_S)
        with self._guard:
            self._open[_digest(cookie)] = session
            while len(self._open) > self._most:
                self._open.popitem(last=False)
        return cookie, session

    def find(self, cookie: str) -> Session | None:
        """The login of that cookie, while it holds."""
        with self._guard:
            session = self._open.get(_digest(cookie))
        return session if session and self._clock() < session.until_s else None

    def close(self, cookie: str) -> None:
        with self._guard:
            self._open.pop(_digest(cookie), None)


class Throttle:
    """Lets an address fail `most` times in `window_s` seconds. Remembers a bounded number of addresses."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        most: int = 10,
        window_s: float = 60.0,
        addresses: int = 4096,
    ) -> None:
        self._clock, self._most, self._window_s, self._addresses = clock, most, window_s, addresses
        self._failed: OrderedDict[str, deque[float]] = OrderedDict()
        self._guard = threading.Lock()

    def wait_s(self, address: str) -> float:
        """Seconds until that address may try again; 0 if it may now."""
        with self._guard:
            failed = self._failed.get(address)
            if failed is None or len(failed) < self._most:
                return 0.0
            return max(0.0, failed[0] + self._window_s - self._clock())

    def failed(self, address: str) -> None:
        with self._guard:
            self._failed.setdefault(address, deque(maxlen=self._most)).append(self._clock())
            self._failed.move_to_end(address)
            while len(self._failed) > self._addresses:
                self._failed.popitem(last=False)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
