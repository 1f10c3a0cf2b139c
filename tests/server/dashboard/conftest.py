"""Run directories that tiny, real simulations left, and real dashboards over them."""

from __future__ import annotations

import httpx
import pytest
from dashboards import serving

from server.dashboard.auth import Tokens
from simulations.runner import simulate
from simulations.scenario import load_scenario

SMALL = ["data.clients=5", "server.rounds=3", "server.cohort=4", "server.min_updates=2", "train.epochs=1"]
RUNS = {
    "plain": ["deploy.formats=onnx", "faults.error=0.2"],
    "private": ["deploy.formats=", "privacy.mechanism=local", "privacy.noise_multiplier=1.0", "privacy.clip=1.0"],
    "secure": ["deploy.formats=", "secure.enabled=true", "privacy.clip=1.0", "faults.dropout=0.2"],
}


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A folder with three finished runs."""
    folder = tmp_path_factory.mktemp("dashboard") / "runs"
    for name, settings in RUNS.items():
        simulate(load_scenario("digits", [*SMALL, *settings], out=str(folder / name)))
    return folder


@pytest.fixture(scope="session")
def address(runs):
    """A dashboard without tokens."""
    with serving(runs) as address:
        yield address


@pytest.fixture(scope="session")
def locked(runs):
    """A dashboard with the tokens "look" for viewers and "rule" for admins."""
    with serving(runs, Tokens.of(viewer="look", admin="rule")) as address:
        yield address


@pytest.fixture
def client(address):
    with httpx.Client(base_url=address) as client:
        yield client
