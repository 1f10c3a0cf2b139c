"""The dashboard's web application over a run directory, or a folder of them."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException as StarletteHTTPException

import edge_runtime
from server.dashboard import answers
from server.run_reader import RunReader, find_runs

STATIC = Path(__file__).parent / "static"
MOST_ROUNDS = 2000


class Watched:
    """The runs in a folder, each with one reader for all who ask."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._readers: dict[str, RunReader] = {}
        self._guard = threading.Lock()

    def all(self) -> list[RunReader]:
        found = find_runs(self._place)
        with self._guard:
            self._readers = {
                name: self._readers.get(name) or RunReader(name, directory) for name, directory in found.items()
            }
            return list(self._readers.values())

    def one(self, name: str) -> RunReader:
        """That run; 404 if the folder has none of that name."""
        for reader in self.all():
            if reader.name == name:
                return reader
        raise HTTPException(404, "no such run")


def make_app(runs: Path, *, tokens: None = None, static: Path = STATIC) -> FastAPI:
    """The application; `runs` is a run directory or a folder of run directories."""
    watched = Watched(runs)
    app = FastAPI(title="Hedgerow", version=edge_runtime.__version__, docs_url=None, redoc_url=None)
    app.include_router(_api(watched))
    _add_errors(app)
    _add_page(app, static)
    return app


def _api(watched: Watched) -> APIRouter:
    api = APIRouter(prefix="/api", responses={"4XX": {"model": answers.Failure}})

    @api.get("/session", response_model=answers.Session)
    def session() -> Response:
        return said({"login_required": False, "role": "viewer", "csrf": None})

    @api.get("/runs", response_model=answers.Runs)
    def runs() -> Response:
        rows = [reader.summary() for reader in watched.all()]
        return said({"runs": sorted(rows, key=lambda row: (row["started_s"] or 0, row["id"]), reverse=True)})

    @api.get("/runs/{run}", response_model=answers.Details)
    def run(run: str) -> Response:
        return said(watched.one(run).details())

    @api.get("/runs/{run}/rounds", response_model=answers.Rounds)
    def rounds(run: str, after: Annotated[int, Query(ge=0, lt=2**53)] = 0, all: bool = False) -> Response:  # noqa: A002
        rows = watched.one(run).rounds(after)
        return said({"rounds": rows[:MOST_ROUNDS] if all else thinned(rows, MOST_ROUNDS)})

    return api


def thinned(rows: list[Any], most: int) -> list[Any]:
    """At most that many of the rows, evenly spread, the first and the last among them."""
    if len(rows) <= most:
        return rows
    return [rows[at * (len(rows) - 1) // (most - 1)] for at in range(most)]


def said(content: Mapping[str, Any], status: int = 200) -> Response:
    """An answer that was put together here, so that it needs no second look; tests hold it against its type."""
    body = json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
    return Response(body, status, media_type="application/json")


def _add_errors(app: FastAPI) -> None:
    """Every error is {"error": one line}."""

    @app.exception_handler(StarletteHTTPException)
    def refused(_: Request, error: StarletteHTTPException) -> Response:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    def malformed(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return JSONResponse({"error": f"{where}: {first['msg']}"}, 422)


def _add_page(app: FastAPI, static: Path) -> None:
    @app.get("/", include_in_schema=False)
    def page() -> Response:
        if not (static / "index.html").is_file():
            raise HTTPException(404, "the page is not built")
        return FileResponse(static / "index.html")

    app.mount("/static", StaticFiles(directory=static, check_dir=False), name="static")
