"""What the API answers, as types: OpenAPI is made from these, and tests hold every answer against them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from server.commands import Name

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


class Report(BaseModel):
    """What a device says of itself; null or "" is unknown. Sizes are bytes, temperature is in degrees Celsius."""

    name: str
    version: str
    arch: str
    isa: str
    power: str
    why_not: str
    memory_budget: int | None
    memory_available: int | None
    rss: int | None
    rss_peak: int | None
    temperature_c: float | None
    retry_s: float | None
    throttled: bool | None
    under_voltage: bool | None
    metered: bool | None
    eligible: bool | None


class Device(BaseModel):
    """What the server knows of a device. `seconds` is null where nothing is told of one client alone."""

    node: str
    seen_s: float
    report: Report
    eligible: bool
    why_not: str
    retry_s: float | None
    rounds: int
    dropped: int
    late: int
    declined: int
    last_reason: str
    dropped_in: dict[str, int]
    running: int | None
    seconds: float | None


class DeviceCounts(BaseModel):
    """Of all devices. `eligible` are online too; `running_versions` counts them by the artefact that they run."""

    online: int
    eligible: int
    running_versions: dict[str, int]


class Devices(BaseModel):
    """A page of 100. `total` passed the filter."""

    total: int
    counts: DeviceCounts
    devices: list[Device]


class Spent(BaseModel):
    """Epsilon of everything up to this round."""

    round: int
    epsilon: float


class Privacy(BaseModel):
    """`mechanism` "none" has nothing else."""

    mechanism: str
    epsilon: float | None = None
    limit: float | None = None
    delta: float | None = None
    noise_multiplier: float | None = None
    clip: float | None = None
    events: list[Spent] | None = None


class ModelVersion(BaseModel):
    """A kept version of the model; the newest is `current`."""

    sha256: str
    round: int
    bytes: int
    current: bool
    accuracy: float | None
    loss: float | None


class Artefact(BaseModel):
    """An exported file and how it held; `refused` is why it was not released."""

    file: str
    format: str
    precision: str
    accuracy: float | None
    agreement: float | None
    latency_us: float | None
    bytes: int | None
    peak_rss_bytes: int | None
    refused: str | None


class Rollout(BaseModel):
    """As run.json's final.rollout."""

    model_config = ConfigDict(extra="allow")
    state: Literal["running", "waiting", "halted", "finished", "failed"]


class Models(BaseModel):
    """Newest first. `downloads` are names for /files/."""

    versions: list[ModelVersion]
    artefacts: list[Artefact]
    rollout: Rollout | None
    downloads: list[str]


class Event(BaseModel):
    """One event of the log. `lost`: of an attempt that was broken off, and counts for nothing."""

    id: int
    unix_s: float
    kind: str
    round: int | None
    data: dict[str, Any]
    lost: bool


class Events(BaseModel):
    """Newest first."""

    events: list[Event]


class Login(BaseModel):
    """A token, as `hedgerow dashboard --new-token` printed it."""

    model_config = ConfigDict(extra="forbid")
    token: str = Field(min_length=1, max_length=512)


class Order(BaseModel):
    """What is asked of a run; see server/commands.py."""

    model_config = ConfigDict(extra="forbid")
    name: Name


class Taken(BaseModel):
    """The order is written down; the run reads it before its next step."""

    accepted: Name


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"]
