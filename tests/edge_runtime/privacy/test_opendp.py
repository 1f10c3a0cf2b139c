"""Discrete Gaussian tables against another library's exact sampler (OpenDP, which uses no table and no float)."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from edge_runtime.privacy import discrete_gaussian

dp = pytest.importorskip("opendp.prelude", reason="OpenDP has no wheel for every machine")
SAMPLES = 60_000


@pytest.mark.parametrize("sigma", ["1.5", "5", "50"])
def test_table_and_exact_sampler_draw_from_one_distribution(sigma: str) -> None:
    """Two-sample chi-square, its tails put together; p below 1e-6 would be a defect, not chance."""
    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="f64")
    theirs = np.array(dp.m.make_gaussian(*space, scale=float(sigma))([0] * SAMPLES))
    ours = discrete_gaussian(sigma, 4 * SAMPLES, bytes(range(32)))
    reach = round(3.2 * float(sigma))
    counts = [np.bincount(np.clip(found, -reach, reach) + reach, minlength=2 * reach + 1) for found in (theirs, ours)]
    assert stats.chi2_contingency(np.array(counts)).pvalue > 1e-6
    for found in (theirs, ours):  # a scale wrong by 5 % would pass neither
        assert np.std(found) == pytest.approx(float(sigma), rel=5 / np.sqrt(2 * SAMPLES))
