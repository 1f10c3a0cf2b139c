"""Our apps as a Flower bundle, built from the installed packages: no checkout is needed where a server runs."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from flwr.cli.build import build_fab_from_files

import edge_runtime
from edge_runtime.config import Scalar, flatten
from edge_runtime.errors import RunError
from server.config import ServerConfig

# As in pyproject.toml: what neither app needs would only cost every node its bytes.
INCLUDED = ("server/*.py", "server/region/*.py", "clients/**/*.py")


def build() -> bytes:
    """The bundle; the same bytes for the same installed version, so that a device can know it by its hash."""
    files: dict[str, bytes | Path] = {"pyproject.toml": _project().encode()}
    for pattern in INCLUDED:
        room, _, inside = pattern.partition("/")
        spec = importlib.util.find_spec(room)
        if spec is None or spec.origin is None:
            raise RunError(f"the package {room} is not installed; pip install 'hedgerow[server]'")
        folder = Path(spec.origin).parent
        files |= {f"{room}/{path.relative_to(folder).as_posix()}": path for path in folder.glob(inside)}
    content, _ = build_fab_from_files(files)
    return content


def _project() -> str:
    """A pyproject.toml of the apps alone. Flower lets a run override the keys that stand here, and only those."""
    return f"""\
[project]
name = "hedgerow"
version = "{edge_runtime.__version__}"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "hedgerow"
fab-include = [{", ".join(f'"{pattern}"' for pattern in INCLUDED)}]

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "clients.app:app"

[tool.flwr.app.config]
{_lines(flatten(ServerConfig()))}
"""


def _lines(flat: Mapping[str, Scalar]) -> str:
    return "\n".join(f"{name} = {_toml(value)}" for name, value in flat.items())


def _toml(value: Scalar) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)
