"""What the owners of simulated devices set up for a roll-out: keys that sign, and a folder for each device's models."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edge_runtime.deploy.trust.keys import RELEASE
from edge_runtime.deploy.trust.publish import RELEASE_KEY, ROOT_KEY, make_release_key, make_root_key
from edge_runtime.errors import ConfigError
from server.run_store import run_directory
from simulations.scenario import Scenario

FOLDER = "fleet"  # in the run directory: `keys`, if none was given, and `devices`
KEY_DAYS = 365


@dataclass(frozen=True, slots=True)
class Owners:
    """What goes into the clients' node configs."""

    node_config: Mapping[str, str] = field(default_factory=dict)
    own_folders: Mapping[str, Path] = field(default_factory=dict)


def with_owners(scenario: Scenario) -> tuple[Scenario, Owners]:
    """The scenario with a key that signs, and devices that know its root key; as it is where nothing is rolled out.

    Raises:
        ConfigError: `rollout.key` is given, and no root key stands beside it.

    """
    if not scenario.rollout.enabled:
        return scenario, Owners()
    directory = run_directory(scenario.run.out)
    scenario = replace(scenario, run=replace(scenario.run, out=str(directory)))
    if not scenario.rollout.key:
        keys = directory / FOLDER / "keys"
        key = keys / RELEASE_KEY
        if not scenario.run.resume:
            make_root_key(keys)
            key, _ = make_release_key(keys, days=KEY_DAYS, now_s=time.time())
        scenario = replace(scenario, rollout=replace(scenario.rollout, key=str(key)))
    root = Path(scenario.rollout.key).with_name(f"{ROOT_KEY}.pub").absolute()
    if not root.exists():
        raise ConfigError(f"rollout.key = {scenario.rollout.key!r}: {root.name} and {RELEASE} must stand beside it")
    devices = (directory / FOLDER / "devices").absolute()
    return scenario, Owners({"artefact-root-key": str(root)}, {"artefact-path": devices})
