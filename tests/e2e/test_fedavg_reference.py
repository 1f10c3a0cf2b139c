"""The whole path against a FedAvg loop written out in plain PyTorch: same seeds, same batches, same weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch.nn import functional

from edge_runtime import plugins
from server.rounds import choose_cohort
from simulations.models import DigitsCNN
from simulations.runner import simulate
from simulations.scenario import Scenario, load_scenario

pytestmark = pytest.mark.e2e
BASE = [
    "server.rounds=3",
    'deploy.formats=""',
    "server.workers=2",
    "data.clients=8",
    "server.cohort=5",
    "server.min_updates=2",
]


def scenario(out: Path, *overrides: str) -> Scenario:
    return load_scenario("digits", [*BASE, *overrides, f'run.out="{out}"'])


def run(out: Path, *overrides: str) -> dict[str, np.ndarray]:
    simulate(scenario(out, *overrides))
    return load_file(out / "model.safetensors")


def sha256(out: Path) -> str:
    return json.loads((out / "run.json").read_text())["final"]["model_sha256"]


def plain_fedavg(settings: Scenario, mu: float = 0.0) -> dict[str, np.ndarray]:
    """McMahan et al. 2017, algorithm 1 (with FedProx's term for mu > 0), in tensors and loops."""
    source = plugins.load("hedgerow.datasets", settings.data.name)
    torch.manual_seed(settings.seed)
    weights = DigitsCNN().state_dict()
    for number in range(1, settings.server.rounds + 1):
        cohort = choose_cohort(range(settings.data.clients), settings.server.cohort, settings.seed, number)
        total = {name: torch.zeros_like(value) for name, value in weights.items()}
        count = 0
        for client in cohort:
            examples = source.client_split(settings.data, settings.seed, client)
            module = DigitsCNN()
            module.load_state_dict(weights)
            train_plainly(module, examples, settings, number, client, mu)
            for name, value in module.state_dict().items():
                total[name] += len(examples) * value
            count += len(examples)
        weights = {name: value / count for name, value in total.items()}
    return {name: value.numpy() for name, value in weights.items()}


def train_plainly(module: torch.nn.Module, examples, settings: Scenario, number: int, client: int, mu: float) -> None:
    start = copy.deepcopy(module).requires_grad_(False)
    options = settings.train.optimizer
    sgd = torch.optim.SGD(module.parameters(), lr=options.lr, momentum=options.momentum)
    rng = np.random.default_rng(np.random.SeedSequence([settings.seed, number, client]).spawn(1)[0])
    for _ in range(settings.train.epochs):
        order = rng.permutation(len(examples))
        for at in range(0, len(order), settings.train.batch_size):
            rows = order[at : at + settings.train.batch_size]
            sgd.zero_grad()
            loss = functional.cross_entropy(
                module(torch.from_numpy(examples.x[rows])), torch.from_numpy(examples.y[rows])
            )
            distance = sum(((p - q) ** 2).sum() for p, q in zip(module.parameters(), start.parameters(), strict=True))
            (loss + mu / 2 * distance).backward()
            sgd.step()


def assert_close(ours: dict[str, np.ndarray], plain: dict[str, np.ndarray]) -> None:
    assert ours.keys() == plain.keys()
    for name, value in plain.items():
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("trainer", ["engine", "torch"])
def test_three_rounds_equal_plain_pytorch_fedavg(tmp_path, trainer):
    assert_close(run(tmp_path / "run", f"train.trainer={trainer}"), plain_fedavg(scenario(tmp_path)))


@pytest.mark.parametrize("trainer", ["engine", "torch"])
def test_fedprox_equals_plain_pytorch_with_the_proximal_term(tmp_path, trainer):
    ours = run(tmp_path / "run", "server.strategy=fedprox", "server.proximal_mu=0.5", f"train.trainer={trainer}")
    assert_close(ours, plain_fedavg(scenario(tmp_path), mu=0.5))
    with pytest.raises(AssertionError):
        assert_close(ours, plain_fedavg(scenario(tmp_path), mu=0.0))


def test_same_model_with_one_worker_with_two_again_and_as_fedprox_without_mu(tmp_path):
    variants = {
        "one": ["server.workers=1"],
        "two": ["server.workers=2"],
        "again": ["server.workers=2"],
        "prox": ["server.strategy=fedprox", "server.proximal_mu=0.0"],
    }
    for name, overrides in variants.items():
        run(tmp_path / name, *overrides)
    assert len({sha256(tmp_path / name) for name in variants}) == 1


def test_another_seed_is_another_model(tmp_path):
    run(tmp_path / "one", "server.rounds=1")
    run(tmp_path / "other", "server.rounds=1", "seed=2")
    assert sha256(tmp_path / "one") != sha256(tmp_path / "other")
