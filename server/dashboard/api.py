"""The API's requests: what is asked of it and what it answers."""

# Not `from __future__ import annotations`: FastAPI reads annotations, and some of these name local things.

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, HTTPException, Query, Request
from fastapi.responses import Response, StreamingResponse

from edge_runtime.errors import RunError
from server import commands
from server.dashboard import answers, prometheus
from server.dashboard.access import Access, Asker, cookie_name
from server.dashboard.auth import SESSION_S
from server.dashboard.stream import Feeds, FullError
from server.dashboard.watched import Watched, newest_first
from server.run_devices import SORTS
from server.run_reader import LIVE, RunReader

MOST_ROUNDS = 2000
MOST_EVENTS = 500
_ANY = (400, 413, 414, 421, 431)  # what is refused before it is known what it asks for
_CHUNK = 256 << 10  # of a download
_Number = Annotated[int, Query(ge=0, lt=2**53)]
_Sort = Annotated[str, Query(pattern=f"^({'|'.join(SORTS)})$")]


def session_router(access: Access) -> APIRouter:
    """Login and logout."""
    api = APIRouter(prefix="/api/session", tags=["session"], responses=_refusals(401, 403, 422, 429))

    @api.get("", response_model=answers.Session)
    def who(request: Request) -> Response:
        """Who is asking, and what to put into X-CSRF-Token."""
        return said(_session(access, access.asker(request)))

    @api.post("", response_model=answers.Session)
    def login(request: Request, body: answers.Login) -> Response:
        """Open a session with a token."""
        access.check_meant(request, Asker(None))
        if access.tokens is None:
            raise HTTPException(403, "no tokens are set: there is nothing to log in to")
        cookie, session = access.sessions.open(access.checked(request, body.token))
        answer = said(_session(access, Asker(session.role, session)))
        answer.set_cookie(
            cookie_name(request),
            cookie,
            max_age=int(SESSION_S),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    @api.delete("", response_model=answers.Session)
    def logout(request: Request) -> Response:
        """End the session."""
        access.check_meant(request, access.viewer(request))
        access.sessions.close(request.cookies.get(cookie_name(request), ""))
        answer = said(_session(access, Asker(None)))
        answer.delete_cookie(cookie_name(request), httponly=True, samesite="strict")
        return answer

    return api


def runs_router(watched: Watched, access: Access, feeds: Feeds) -> APIRouter:
    """Everything about runs."""
    api = APIRouter(
        prefix="/api",
        tags=["runs"],
        responses=_refusals(401, 404, 409, 422, 429),
        dependencies=[Depends(access.viewer)],
    )

    def one(run: str) -> RunReader:
        """That run; 404 if the folder has none of that name."""
        if (reader := watched.one(run)) is None:
            raise HTTPException(404, "no such run")
        return reader

    Run = Annotated[RunReader, Depends(one)]  # noqa: N806 - a type

    @api.get("/runs", response_model=answers.Runs)
    def runs() -> Response:
        """All runs, the newest first."""
        return said({"runs": watched.summaries()})

    @api.get("/runs/{run}", response_model=answers.Details)
    def details(reader: Run) -> Response:
        """One run."""
        return said(reader.details())

    @api.get("/runs/{run}/rounds", response_model=answers.Rounds)
    def rounds(reader: Run, after: _Number = 0, all: bool = False) -> Response:  # noqa: A002
        """Closed rounds after that one; with `all` the first of them, to be asked for page by page."""
        rows = reader.rounds(after)
        return said({"rounds": rows[:MOST_ROUNDS] if all else thinned(rows, MOST_ROUNDS)})

    @api.get("/runs/{run}/devices", response_model=answers.Devices)
    def devices(
        reader: Run,
        page: Annotated[int, Query(ge=0, lt=1_000_000)] = 0,
        sort: _Sort = "node",
        order: Literal["asc", "desc"] = "asc",
        filter: Annotated[str, Query(max_length=200)] = "",  # noqa: A002
    ) -> Response:
        """Devices, 100 a page from page 0.

        Each word of `filter` must be part of a device's node, name, version or reason, or be one of is:online,
        is:offline, is:eligible, is:ineligible and is:throttled.
        """
        return said(reader.devices(page, sort, filter, descending=order == "desc"))

    @api.get("/runs/{run}/privacy", response_model=answers.Privacy, response_model_exclude_unset=True)
    def privacy(reader: Run) -> Response:
        """What was spent of the privacy budget."""
        return said(reader.privacy())

    @api.get("/runs/{run}/models", response_model=answers.Models)
    def models(reader: Run) -> Response:
        """Versions of the model, exported files and their roll-out."""
        return said(reader.models())

    @api.get(
        "/runs/{run}/files/{name:path}",
        response_class=Response,
        responses={200: {"content": {"application/octet-stream": {}}}},
    )
    def file(reader: Run, name: str) -> Response:
        """A file that the run lists among its `downloads`."""
        descriptor = reader.open_file(name)
        if descriptor is None:
            raise HTTPException(404, "no such file")
        return download(descriptor, name.rpartition("/")[2])

    @api.get("/runs/{run}/events", response_model=answers.Events)
    def events(
        reader: Run,
        before: Annotated[int | None, Query(ge=0, lt=2**53)] = None,
        kind: Annotated[str, Query(max_length=64)] = "",
        limit: Annotated[int, Query(ge=1, le=MOST_EVENTS)] = 100,
    ) -> Response:
        """The log, from its end or from before an event."""
        return said({"events": reader.events(before, kind, limit)})

    @api.get(
        "/stream",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}}},
    )
    async def stream(request: Request, reader: Run, last_event_id: Annotated[str | None, Header()] = None) -> Response:
        """Server-sent events of a run: summary, round, event, and reset when too much was missed."""
        try:
            feeds.refuse_if_full()
        except FullError as error:
            raise HTTPException(429, str(error), {"Retry-After": "10"}) from None
        parts = feeds.listen(reader, event_number(last_event_id), access.still(request))
        return StreamingResponse(parts, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    @api.post("/runs/{run}/commands", status_code=202, response_model=answers.Taken, responses=_refusals(403))
    def order(reader: Run, body: answers.Order, asker: Annotated[Asker, Depends(access.admin)]) -> Response:
        """Ask a run that goes on to stop, or to go on with its roll-out or take it back; for admins."""
        details = reader.details()
        if details["state"] not in LIVE:
            raise HTTPException(409, f"the run is {details['state']}; only one that goes on takes orders")
        if body.name is not commands.Name.STOP and not details["config"].get("rollout.enabled"):
            raise HTTPException(409, "the run has no roll-out: rollout.enabled is false")
        commands.send(reader.directory, body.name, f"dashboard, {'token' if asker.bearer else 'login'}")
        return said({"accepted": body.name.value}, 202)

    return api


def metrics_router(watched: Watched, access: Access) -> APIRouter:
    """For Prometheus, which sends a token as `Authorization: Bearer TOKEN`."""
    api = APIRouter(tags=["monitoring"], responses=_refusals(401, 429), dependencies=[Depends(access.viewer)])

    @api.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def metrics() -> Response:
        """Every run's figures in Prometheus' text format."""
        runs = newest_first([reader.details() | {"devices": _counts(reader)} for reader in watched.all()])
        return Response(prometheus.write(runs), media_type=prometheus.MEDIA_TYPE)

    return api


def thinned(rows: list[Any], most: int) -> list[Any]:
    """At most that many of the rows, evenly spread, the first and the last among them."""
    if len(rows) <= most:
        return rows
    return [rows[at * (len(rows) - 1) // (most - 1)] for at in range(most)]


def said(content: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer that was put together here, so that it needs no second look; tests hold it against its type."""
    body = json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
    return Response(body, status, headers, media_type="application/json")


def download(descriptor: int, name: str) -> Response:
    """The rest of an open file, which is closed after."""
    size = os.fstat(descriptor).st_size

    def chunks() -> Iterator[bytes]:
        with os.fdopen(descriptor, "rb") as file:
            left = size  # it may grow: no more is sent than was announced
            while left and (chunk := file.read(min(left, _CHUNK))):
                left -= len(chunk)
                yield chunk

    headers = {"content-disposition": f'attachment; filename="{name}"', "content-length": str(size)}
    return StreamingResponse(chunks(), media_type="application/octet-stream", headers=headers)


def event_number(text: str | None) -> int | None:
    """What a Last-Event-ID says; None if it is none of ours."""
    return int(text) if text and re.fullmatch(r"[0-9]{1,15}", text, re.ASCII) else None


def _counts(reader: RunReader) -> dict[str, Any] | None:
    """One damaged run must not cost the others their metrics."""
    with contextlib.suppress(RunError):
        return reader.device_counts()
    return None


def _session(access: Access, asker: Asker) -> dict[str, Any]:
    csrf = asker.session.csrf if asker.session else None
    return {"login_required": access.tokens is not None, "role": asker.role, "csrf": csrf}


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": answers.Failure} for status in (*_ANY, *statuses)}
