"""The dashboard's web application over a run directory, or a folder of them.

It reads run directories and writes one thing: an admin's order, into a file that only orders stand in. Nothing is asked
of any other machine. See docs/dashboard.md.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException as StarletteHTTPException

import edge_runtime
from edge_runtime.errors import EdgeRuntimeError
from server.dashboard import answers
from server.dashboard.access import Access
from server.dashboard.api import metrics_router, runs_router, said, session_router
from server.dashboard.auth import Tokens
from server.dashboard.docs_page import STYLE, docs_page
from server.dashboard.guard import Guard
from server.dashboard.stream import Feeds
from server.dashboard.watched import Watched

STATIC = Path(__file__).parent / "static"


def make_app(
    runs: Path,
    *,
    tokens: Tokens | None,
    static: Path = STATIC,
    hosts: Collection[str] = (),
    access: Access | None = None,
    feeds: Feeds | None = None,
) -> FastAPI:
    """The application; `runs` is a run directory or a folder of run directories, `static` the page's files.

    Without tokens everybody who reaches it may look and nobody may command. `hosts` are names under which it is
    reached, beside localhost and addresses.
    """
    watched, access = Watched(runs), access or Access(tokens)
    app = FastAPI(
        title="Hedgerow dashboard",
        version=edge_runtime.__version__,
        description="What federated runs do and did.",
        docs_url=None,
        redoc_url=None,
    )
    app.include_router(session_router(access))
    app.include_router(runs_router(watched, access, feeds or Feeds()))
    app.include_router(metrics_router(watched, access))
    _add_errors(app)
    _add_pages(app, static)
    app.add_middleware(Guard, hosts=hosts)
    return app


def _add_errors(app: FastAPI) -> None:
    """Every error is {"error": one line}."""

    @app.exception_handler(StarletteHTTPException)
    def refused(_: Request, error: StarletteHTTPException) -> Response:
        return said({"error": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    def malformed(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return said({"error": f"{where}: {first['msg']}"[:300]}, 422)

    @app.exception_handler(EdgeRuntimeError)
    def unreadable(_: Request, error: EdgeRuntimeError) -> Response:
        return said({"error": str(error)}, 409)


def _add_pages(app: FastAPI, static: Path) -> None:
    @app.get("/healthz", response_model=answers.Health, tags=["monitoring"])
    def healthz() -> Response:
        """Whether this process answers."""
        return said({"status": "ok"})

    @app.get("/docs", include_in_schema=False)
    def docs() -> Response:
        return HTMLResponse(docs_page(app.openapi(), "/docs.css"))

    @app.get("/docs.css", include_in_schema=False)
    def style() -> Response:
        return Response(STYLE, media_type="text/css")

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        if not (static / "index.html").is_file():
            raise HTTPException(404, "the page is not built; the API is described at /docs")
        return FileResponse(static / "index.html")

    app.mount("/static", StaticFiles(directory=static, check_dir=False), name="static")
