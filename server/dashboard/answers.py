"""What the API answers, as types: OpenAPI is made from these, and tests hold every answer against them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

State = Literal["running", "paused", "finished", "failed", "interrupted", "unreadable"]


class Failure(BaseModel):
    """What every answer of 4xx holds."""

    error: str


class Session(BaseModel):
    """Who is asking. `csrf` goes into the header X-CSRF-Token of what changes anything."""

    login_required: bool
    role: Literal["viewer", "admin"] | None
    csrf: str | None


class Summary(BaseModel):
    """A run in figures. Times are Unix seconds; bytes are payload bytes over all closed rounds."""

    id: str
    name: str
    state: State
    model: str
    data: str
    strategy: str
    mode: str
    round: int
    rounds: int
    started_s: float | None
    updated_s: float | None
    seconds: float | None
    accuracy: float | None
    loss: float | None
    epsilon: float | None
    epsilon_limit: float | None
    delta: float | None
    protection: str
    uplink_bytes: int
    downlink_bytes: int
    error: str


class Runs(BaseModel):
    """Newest first."""

    runs: list[Summary]


class Now(BaseModel):
    """The round in progress: of `asked` clients, `goal` updates are wanted."""

    round: int | None
    asked: int
    goal: int
    received: int
    late: int
    dropped: int
    declined: int
    deadline_s: float | None
    mode: str


class Details(Summary):
    """A run's summary, its settings and what it said at its beginning and its end."""

    config: dict[str, Any]
    parameters: int | None
    warnings: list[str]
    eta_s: float | None
    now: Now | None
    final: dict[str, Any] | None


class Round(BaseModel):
    """A closed round: its row in run.json without the clients' names."""

    model_config = ConfigDict(extra="allow")
    round: int


class Rounds(BaseModel):
    """Ascending. Evenly thinned where there are more than fit; the last one is always there."""

    rounds: list[Round]
