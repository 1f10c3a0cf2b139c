"""Named things found among the installed packages' entry points: data sets, models, commands.

A name that comes from a peer is only ever looked up here, among what the owner of the machine installed.
`package.module:function` texts are for local configuration.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from edge_runtime.errors import ConfigError, MissingPackageError


@cache
def _group(group: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=group)}


def names(group: str) -> list[str]:
    """All names registered in an entry-point group, sorted."""
    return sorted(_group(group))


def load(group: str, name: str) -> Any:
    """The object registered as `name` in `group`, or ConfigError with the names there are."""
    entry = _group(group).get(name)
    if entry is None:
        raise ConfigError(f"no {name!r} among the installed {group}: {', '.join(names(group)) or 'none'}")
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        raise MissingPackageError(f"{name!r} of {group} cannot be loaded from {entry.value}: {error}") from error


def load_entry(entry: str) -> Any:
    """The object at `package.module:name`. For local configuration only, never for a peer's words."""
    module_name, colon, attribute = entry.partition(":")
    if not (colon and all(map(str.isidentifier, [*module_name.split("."), attribute]))):
        raise ConfigError(f"entry = {entry!r}: must be text of the form package.module:function")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"entry {entry!r}: {error}; is it installed, or on PYTHONPATH?") from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise ConfigError(f"entry {entry!r}: module {module_name} has no {attribute}") from None
