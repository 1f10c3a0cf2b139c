"""DP-FTRL by matrix factorisation: noise correlated over rounds, so that the running sum of updates carries little.

A strategy is a lower triangular Toeplitz matrix C. Of the rounds' sums G (whole numbers) the stream E = C G is encoded
in whole numbers, for C's coefficients are multiples of 2^-bits; released is E + Z, Z independent rounded Gaussian
noise: exactly the Gaussian mechanism, then rounding. Decoding C^-1 (E + Z) = G + C^-1 Z is post-processing, so in
floats. The prefix sums, which are what a model under SGD is, then carry A C^-1 Z, A being all ones up to the diagonal
(Denisov, McMahan, Rush, Smith, Thakurta 2022; it holds for sums that depend on earlier releases, too). No sampling of
clients is needed: only that one client's rounds are at least `separation` apart, and at most `participations` in number
(Choquette-Choo, McMahan, Rush, Thakurta 2023), which the run must enforce.

    independent   C = 1: fresh noise every round, the baseline
    prefix        C = A: the prefix sums themselves, fresh noise each; the other baseline
    banded        the first coefficients of A's square root (Kalinin, Lampert 2024)
    blt           a sum of decaying exponentials, fitted to the run, cut at some band or not (Dvijotham, McMahan,
                  Pillutla, Steinke, Thakurta 2024; McMahan, Xu, Zhang 2024)
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import ConfigError, MissingPackageError, NumericsError
from edge_runtime.privacy.noise import table

Sums = NDArray[np.int64]
Estimate = NDArray[np.float64]

BITS = 8  # of a coefficient: in runs of 200 to 5,000 rounds the error is within 0.3 % of that of exact ones
_LARGEST = 2**62  # of an encoded value, so that the noise, below 2^28, fits on top


@dataclass(frozen=True, slots=True)
class PrefixNoise:
    """Standard deviation of the noise in a run's prefix sums: over all rounds, and in the worst (the last)."""

    rms: float
    largest: float


@dataclass(frozen=True, slots=True)
class Strategy:
    """Row t < `rounds` of C has numerators[i] / 2^bits at column t - i; numerators never grow, and end above 0."""

    numerators: tuple[int, ...]
    rounds: int
    bits: int = 0

    def __post_init__(self) -> None:
        c = self.numerators
        if not 1 <= len(c) <= self.rounds or c[-1] < 1 or any(a < b for a, b in pairwise(c)):
            raise ConfigError(
                f"strategy of {len(c)} coefficients over {self.rounds} rounds: must be 1 to `rounds` whole numbers "
                "above 0 that never grow"
            )

    @property
    def bands(self) -> int:
        """Rounds whose sums a release mixes; one less are kept between releases."""
        return len(self.numerators)

    def sensitivity(self, separation: int, participations: int) -> float:
        """How far one client of L2 norm 1 can move C G over the whole run, in L2.

        The norm of C's columns 0, b, 2b, ... added up, for b = `separation` and at most `participations` columns: the
        worst pattern for coefficients that never grow (Kalinin, Lampert 2024, theorem 2), with the client's vectors all
        alike. Computed in whole numbers, rounded up.
        """
        if separation < 1 or participations < 1:
            raise ConfigError(f"separation {separation}, participations {participations}: must be 1 or more")
        column = [0] * self.rounds
        for start in range(0, min(self.rounds, separation * participations), separation):
            for i, n in enumerate(self.numerators[: self.rounds - start], start):
                column[i] += n
        return math.ldexp(math.sqrt(sum(n * n for n in column)) * (1 + 2.0**-50), -self.bits)

    def error(self, noise: float = 1.0) -> PrefixNoise:
        """Of prefix sums decoded under noise of standard deviation `noise` on C G: the rows of A C^-1, times `noise`.

        `noise` = `sensitivity(...)` gives it for a noise multiplier of 1, so strategies can be compared:

        >>> run = {"separation": 20, "participations": 10}
        >>> for plan in independent(200), banded(20, 200), blt(200, **run), blt(200, **run, bands=20):
        ...     print(round(plan.error(plan.sensitivity(**run)).rms, 1))
        31.7
        10.4
        10.6
        10.0
        """
        c = np.array(self.numerators, np.float64) / 2**self.bits
        return _error(np.append(c, np.zeros(self.rounds - c.size)), noise)

    def noise_sigma(self, noise_multiplier: float, l2: float) -> str:
        """`MatrixStream`'s sigma where a client's vectors, of whole numbers, are at most `l2` long.

        `noise_multiplier` * `l2` * 2^bits, rounded up. The `MatrixMechanism` event holds the same `noise_multiplier`,
        with `sensitivity(...)`.
        """
        return f"{noise_multiplier * l2 * 2**self.bits * (1 + 2.0**-36):.12e}"


class MatrixStream:
    """One run's releases. `sigma` is the noise's, in whole numbers of C G * 2^bits, as exact decimal text.

    Between releases it holds the true sums and the estimates of the last `bands` - 1 rounds (4 or 8, and 8 bytes a
    value): true sums are as secret as the updates, and so is `state()`.
    """

    def __init__(self, strategy: Strategy, dimension: int, sigma: str) -> None:
        self.strategy, self.dimension = strategy, dimension
        self._noise = table("rounded_gaussian", sigma)
        self._round = 0
        self._sums: deque[NDArray[np.signedinteger[Any]]] = deque(maxlen=strategy.bands - 1)  # newest first
        self._estimates: deque[Estimate] = deque(maxlen=strategy.bands - 1)

    @property
    def round(self) -> int:
        """Releases so far."""
        return self._round

    @property
    def sample_variation(self) -> float:
        """For the ledger's event."""
        return self._noise.total_variation

    def encode(self, sums: Sums) -> Sums:
        """The next round's E * 2^bits, without noise: whole numbers, exact. NumericsError if they leave int64."""
        rounds = [sums, *self._sums]
        numerators = self.strategy.numerators[: len(rounds)]
        if sum(n * _peak(old) for n, old in zip(numerators, rounds, strict=True)) > _LARGEST:
            raise NumericsError(f"round {self._round}: encoded sums could pass 2^62; lower the encoder's scale")
        encoded = np.zeros(self.dimension, np.int64)
        for n, old in zip(numerators, rounds, strict=True):
            encoded += np.multiply(old, n, dtype=np.int64)
        return encoded

    def release(self, sums: Sums, noise_key: bytes) -> Estimate:
        """The round's sum with correlated noise; `sums` is the true one, of shape (dimension,), int64.

        Once a round: what is asked for a second time, with another key, is a second release, which no event covers. So
        store `state()` and the estimate before the estimate is used, and after a restart go on from what is stored.
        """
        if sums.shape != (self.dimension,) or sums.dtype != np.int64:
            raise ConfigError(f"sums of {sums.dtype} {sums.shape}: must be int64 ({self.dimension},)")
        if self._round == self.strategy.rounds:
            raise ConfigError(f"round {self._round}: the strategy was planned for {self.strategy.rounds} rounds")
        encoded = self.encode(sums)
        encoded += self._noise.sample(self.dimension, noise_key)
        estimate = encoded.astype(np.float64)
        first, *others = self.strategy.numerators
        for n, old in zip(others, self._estimates, strict=False):
            estimate -= n * old
        estimate /= first
        self._round += 1
        self._sums.appendleft(_narrow(sums))
        self._estimates.appendleft(estimate)
        return estimate.copy()

    def state(self) -> dict[str, NDArray[Any]]:
        """All that `restore` needs, as arrays, newest round first. Secret: it holds true sums."""
        shape = (len(self._sums), self.dimension)
        return {
            "round": np.array(self._round),
            "sums": np.array(list(self._sums), np.int64).reshape(shape),
            "estimates": np.array(list(self._estimates), np.float64).reshape(shape),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on as the stream, of the same strategy, dimension and sigma, that gave `state`."""
        done = int(state["round"])
        shape = (min(done, self.strategy.bands - 1), self.dimension)
        if not 0 <= done <= self.strategy.rounds or {state["sums"].shape, state["estimates"].shape} != {shape}:
            raise ConfigError(f"matrix stream: the state is of another run, not of round {done} with {shape} sums")
        self._round = done
        self._sums.clear()
        self._sums.extend(_narrow(row) for row in state["sums"].astype(np.int64))
        self._estimates.clear()
        self._estimates.extend(state["estimates"].astype(np.float64))


def independent(rounds: int) -> Strategy:
    return Strategy((1,), rounds)


def prefix(rounds: int) -> Strategy:
    return Strategy((1,) * rounds, rounds)


def banded(bands: int, rounds: int, bits: int = BITS) -> Strategy:
    """The first `bands` coefficients binom(2i, i) / 4^i of the square root of A; `bands` <= separation is usual."""
    if not 1 <= bands <= rounds:
        raise ConfigError(f"bands = {bands}: must be 1 to the number of rounds, {rounds}")
    i = np.arange(1, bands)
    return _quantised(np.cumprod(np.append(1.0, (2 * i - 1) / (2 * i))), rounds, bits)


def blt(
    rounds: int, separation: int, participations: int, bands: int = 0, buffers: int = 2, bits: int = BITS
) -> Strategy:
    """A buffered linear Toeplitz strategy: c_0 = 1, c_i = sum over j of w_j h_j^(i-1), w_j > 0, 0 < h_j < 1.

    `w` and `h` minimise the rms error times the sensitivity of the stated run, found numerically. With `bands`, c_i is
    0 from there on: `bands` = `separation` comes within 0.1 % of the best banded strategy there is, and is usually the
    better one. Without, a `MatrixStream` of it keeps every round whose c_i is not below 2^-(bits + 1), so up to all
    of the run: up to 16 bytes a value and round.

    Raises:
        MissingPackageError: scipy is not installed; planning is the server's.

    """
    if min(rounds, separation, participations, buffers) < 1 or not 0 <= bands <= rounds:
        raise ConfigError(
            f"blt of {rounds} rounds, separation {separation}, participations {participations}, {buffers} buffers, "
            f"{bands} bands: all but bands must be 1 or more, and bands at most the rounds"
        )

    def coefficients(x: Estimate) -> Estimate:
        odds = np.exp(np.clip(x[:buffers], -30.0, 30.0))
        weights = odds / (1 + odds.sum())  # their sum is c_1, so below c_0
        decays = 1 / (1 + np.exp(-np.clip(x[buffers:], -30.0, 30.0)))
        c = np.append(1.0, (decays ** np.arange(rounds - 1)[:, np.newaxis]) @ weights)
        c[bands or rounds :] = 0
        return c

    def cost(x: Estimate) -> float:
        c = coefficients(x)
        return math.log(_error(c, 1.0).rms * _column_norm(c, separation, participations))

    spread = np.geomspace(2.0, max(4.0, separation), buffers)
    start = np.concatenate([-np.log(spread) / 2, np.log(spread)])
    return _quantised(coefficients(_scipy_optimize().minimize(cost, start, method="L-BFGS-B").x), rounds, bits)


def _scipy_optimize() -> Any:
    try:
        from scipy import optimize
    except ImportError as error:
        raise MissingPackageError(
            "fitting a BLT needs scipy, which a server has; pip install 'hedgerow[server]'"
        ) from error
    return optimize


def _quantised(c: Estimate, rounds: int, bits: int) -> Strategy:
    numerators = [int(n) for n in np.rint(c * 2**bits)]
    return Strategy(tuple(n for n in numerators if n > 0), rounds, bits)


def _column_norm(c: Estimate, separation: int, participations: int) -> float:
    column = np.zeros(c.size)
    for start in range(0, min(c.size, separation * participations), separation):
        column[start:] += c[: c.size - start]
    return float(np.linalg.norm(column))


def _error(c: Estimate, noise: float) -> PrefixNoise:
    """Row t of A C^-1 is b_t, ..., b_0, with b the running sums of C^-1's first column."""
    inverse = np.zeros(c.size)
    inverse[0] = 1 / c[0]
    for t in range(1, c.size):
        inverse[t] = -np.dot(c[1 : t + 1], inverse[t - 1 :: -1]) / c[0]
    rows = np.cumsum(np.cumsum(inverse) ** 2)
    return PrefixNoise(noise * math.sqrt(float(rows.mean())), noise * math.sqrt(float(rows[-1])))


def _peak(values: NDArray[np.signedinteger[Any]]) -> int:
    return max(int(values.max(initial=0)), -int(values.min(initial=0)))


def _narrow(sums: Sums) -> NDArray[np.signedinteger[Any]]:
    """A copy, int32 where that holds it."""
    return sums.astype(np.int32 if _peak(sums) < 2**31 else np.int64)
