"""Pruning between rounds: as many zeros as asked, the right ones, and they stay through whatever clients send."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.config import from_flat
from edge_runtime.errors import ConfigError
from edge_runtime.updates.delta import TensorLayout
from server.compress import CompressConfig, Pruning
from server.config import ServerConfig
from server.model import GlobalModel
from simulations.runner import simulate
from simulations.scenario import load_scenario

LAYOUT = TensorLayout((("a.weight", (4, 5)), ("a.bias", (4,)), ("b.weight", (2, 4)), ("b.bias", (2,))))
MATRICES = np.r_[0:20, 24:32]


def vectors(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=LAYOUT.size).astype(np.float32), rng.normal(size=LAYOUT.size)


@settings(deadline=None)
@given(fraction=st.floats(0, 0.99), lever=st.sampled_from(["magnitude", "importance"]), seed=st.integers(0, 99))
def test_the_least_of_the_matrices_go_and_nothing_else_moves(fraction: float, lever: str, seed: int):
    moved, delta = vectors(seed)
    pruned = Pruning(CompressConfig(lever, fraction), LAYOUT).apply(moved, delta)
    scores = np.abs(moved) if lever == "magnitude" else np.abs(moved * delta)
    gone = pruned != moved
    assert gone[MATRICES].sum() == gone.sum() == round(fraction * len(MATRICES))
    assert not pruned[gone].any()
    left = np.setdiff1d(MATRICES, np.flatnonzero(gone))
    assert scores[gone].max(initial=0) <= scores[left].min(initial=np.inf)


def test_zeros_stay_between_choices_and_move_at_the_next():
    pruning = Pruning(CompressConfig("magnitude", 0.5, every=3, start=2), LAYOUT)
    rounds = [pruning.apply(*vectors(seed)) == 0 for seed in range(6)]
    assert not rounds[0].any()
    assert rounds[1].sum() == 14
    assert np.array_equal(rounds[1], rounds[2])
    assert np.array_equal(rounds[1], rounds[3])
    assert not np.array_equal(rounds[3], rounds[4])


def test_importance_remembers_earlier_rounds():
    """A weight whose updates were large once outlives one that hardly moved, though this round says otherwise."""
    ones = np.ones(LAYOUT.size, np.float32)
    first, second = np.full(LAYOUT.size, 0.1), np.full(LAYOUT.size, 0.1)
    first[0], second[0] = 10.0, 0.0
    pruning = Pruning(CompressConfig("importance", 1 / 28), LAYOUT)
    assert pruning.apply(ones, first)[0] == 1
    assert pruning.apply(ones, second)[0] == 1


def test_adapters_are_not_pruned():
    with pytest.raises(ConfigError, match=r"must be empty with a train\.lora_rank"):
        from_flat(ServerConfig, {"compress.lever": "magnitude", "train.lora_rank": 2})


def test_the_global_model_keeps_its_zeros():
    values = {
        "model.name": "digits_cnn",
        "model.input": "1x8x8",
        "compress.lever": "magnitude",
        "compress.fraction": 0.9,
    }
    model = GlobalModel(from_flat(ServerConfig, values))
    assert model.apply(np.full(model.moving.size, 0.01))
    weights = [w for w in model.state_dict().values() if w.ndim >= 2]
    assert sum(int((w == 0).sum()) for w in weights) == pytest.approx(0.9 * sum(w.size for w in weights), abs=1)


@pytest.mark.e2e
def test_a_federation_learns_a_sparse_model(tmp_path):
    from safetensors.numpy import load_file

    rounds = "data.clients=4 data.partition=iid server.rounds=6 server.cohort=4 server.min_updates=2 server.workers=1"
    settings = (
        f"{rounds} train.epochs=3 deploy.formats= compress.lever=importance compress.fraction=0.8 compress.start=2"
    )
    finished = simulate(load_scenario("digits", [*settings.split(), f"run.out={tmp_path / 'run'}"]))
    state = load_file(tmp_path / "run" / "model.safetensors")
    weights = [w for w in state.values() if w.ndim >= 2]
    assert sum(int((w == 0).sum()) for w in weights) >= 0.79 * sum(w.size for w in weights)
    assert finished.final["accuracy"] > 0.8
