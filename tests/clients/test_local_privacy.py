"""What a client does to its own update: bounded whatever it is, under its own noise, and nothing told beside it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.local_privacy import randomised
from clients.round import LocalUpdate
from edge_runtime.config import flatten, from_flat
from edge_runtime.errors import ConfigError, NumericsError
from edge_runtime.privacy import l2_bound
from edge_runtime.train.config import LocalPrivacy, RoundTask

SIZE = 20_000
LOCAL = LocalPrivacy(clip=0.5, scale=4096.0, noise="5000.5")


def update(values: np.ndarray) -> LocalUpdate:
    return LocalUpdate(values.astype(np.float32), 123, 4.5)


def test_a_silent_client_sends_the_noise_it_was_told_and_fresh_every_time():
    first, second = (randomised(update(np.zeros(SIZE)), LOCAL).delta for _ in range(2))
    std = 5000.5 / 4096
    for noise in (first, second):
        assert abs(np.square(noise / std).sum() - SIZE) < 5 * math.sqrt(2 * SIZE)
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(SIZE)


def test_nothing_else_is_told():
    told = randomised(update(np.ones(SIZE)), LOCAL)
    assert (told.examples, told.loss) == (1, 0.0)


@given(st.sampled_from([0.0, 1e-9, 1.0, -1e30]), st.integers(0, 5))
def test_before_its_noise_an_update_is_within_the_bound(value, at):
    """With noise of sigma 1 in 12 values, 8 times its norm is never seen: what is left is the bound."""
    tiny = LocalPrivacy(clip=0.5, scale=4096.0, noise="1")
    x = np.zeros(12)
    x[at] = value
    sent = randomised(update(x), tiny).delta.astype(np.float64) * 4096
    assert np.linalg.norm(sent) <= l2_bound(4096.0, 0.5, 12) + 8 * math.sqrt(12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_not_sent(bad):
    with pytest.raises(NumericsError):
        randomised(update(np.array([1.0, bad])), LOCAL)


def test_a_task_brings_it_whole_or_not_at_all():
    task = RoundTask(local=LOCAL)
    assert from_flat(RoundTask, flatten(task)).local == LOCAL
    assert RoundTask().local.clip == 0
    for values in ({"noise": ""}, {"noise": "0.5"}, {"scale": 0.0}, {"scale": 1e17}):
        with pytest.raises(ConfigError):
            from_flat(RoundTask, flatten(task) | {f"local.{name}": value for name, value in values.items()})
