"""The `[secure]`, `[privacy]` and `[robust]` tables of a scenario: what the server may see, tell, and be told.

What goes together and what does not stands in `check_together`: a combination that would promise less than it says is
refused by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from edge_runtime.config import key
from edge_runtime.errors import ConfigError
from edge_runtime.privacy.ledger import SHARES
from edge_runtime.train.config import UplinkConfig

MECHANISMS = ("none", "central", "distributed", "local", "ftrl")
AGGREGATORS = ("mean", "median", "trimmed_mean", "krum", "multi_krum", "norm_bound")

# Why a stage can't be summed under masks, and what does its work there.
_UNSUMMABLE = {
    "float16": "floats do not add up exactly; every value takes secure.value_bits bits instead",
    "bfloat16": "floats do not add up exactly; every value takes secure.value_bits bits instead",
    "int8": "its scales differ between clients; secure.value_bits = 8 has one grid for all",
    "int4": "its scales differ between clients; secure.value_bits = 4 has one grid for all",
    "uniform": "its range differs between clients; secure.value_bits has one grid for all",
    "topk": "each client keeps other values, and the choice tells of its data; secure.fraction keeps the same for all",
    "randk": "each client draws other values; secure.fraction draws the same for all",
    "signsgd": "its scale differs between clients; secure.value_bits = 2 has one grid for all",
    "stc": "each client keeps other values at another scale; secure.fraction and secure.value_bits do for all alike",
    "hadamard": "its scales and signs differ between clients; secure aggregation rotates all clients' updates alike",
    "context": "its bytes can't be added; secure.value_bits and secure.fraction say what an update takes",
}


def whole_share(share: float, count: int) -> int:
    """How many of `count` a share is, rounded down; the share as it is written: in floats 0.29 x 100 is below 29."""
    return math.floor(Fraction(repr(share)) * count)


@dataclass(frozen=True, slots=True)
class SecureConfig:
    """Secure aggregation: the server learns sums of updates, never one update. See docs/secagg.md.

    A number at 0 is chosen for the cohort. `value_bits` is the grid of one value without noise, `bits` the lane of its
    sum. `fraction` of the rotated coordinates travel, the same for all clients of a round. `dropout` and `corrupt` are
    the shares of a cohort that may be lost, and that may work for the server. `groups` splits a cohort into so many
    sums, for a robust aggregator. `max_weight` above 0 weights updates by their examples, up to so many.
    """

    enabled: bool = key(False)
    threshold: int = key(0, low=0, high=65_535)
    bits: int = key(0, low=0, high=32)
    value_bits: int = key(8, low=1, high=16)
    fraction: float = key(1.0, above=0, high=1)
    dropout: float = key(0.2, low=0, below=1)
    corrupt: float = key(0.1, low=0, below=1)
    neighbours: int = key(0, low=0, high=65_534)
    min_clients: int = key(3, low=2, high=65_535)
    groups: int = key(1, low=1, high=1000)
    max_weight: int = key(0, low=0, high=2**20)
    malicious_server: bool = key(True)
    prg: str = key("auto", choices=("auto", "chacha20", "aes-ctr"))
    phase_deadline_s: float = key(30.0, above=0, high=604_800)
    devices: str = key("")  # file of the device keys that may take part; empty: whichever keys the nodes state


@dataclass(frozen=True, slots=True)
class PrivacyConfig:
    """Differential privacy of clients, and the clip, which secure aggregation needs as well. See docs/privacy.md.

    `epsilon` is the budget of the whole run, from which the noise follows; or `noise_multiplier` gives the noise, in
    clips. With both, the run ends before the round that would pass the budget. `mechanism` is by default "distributed"
    under secure aggregation, else "central". `clip` at 0 follows the `clip_quantile` of clients' norms. `population` is
    how many clients the server draws each cohort from, at random and for itself alone; 0 claims no such sampling; in a
    simulation it is all clients. `ledger` is that of an earlier run, a file or its run directory, whose releases count
    against the same budget.
    """

    mechanism: str = key("", choices=("", *MECHANISMS))
    epsilon: float = key(0.0, low=0, high=1e6)
    delta: float = key(1e-5, above=0, below=1)
    noise_multiplier: float = key(0.0, low=0, high=1e4)
    noise: str = key("skellam", choices=SHARES)
    clip: float = key(0.0, low=0, high=1e9)
    clip_quantile: float = key(0.5, above=0, below=1)
    clip_rate: float = key(0.2, above=0, high=1)
    population: int = key(0, low=0, high=2**31)
    separation: int = key(0, low=0, high=1_000_000)  # ftrl: from one round of a client to its next; 0: the most
    strategy: str = key("banded", choices=("banded", "blt"))  # ftrl
    ledger: str = key("")

    def __post_init__(self) -> None:
        if self.mechanism in MECHANISMS[1:] and not (self.epsilon or self.noise_multiplier):
            raise ConfigError(
                f"privacy.mechanism = {self.mechanism!r}: needs privacy.epsilon or privacy.noise_multiplier"
            )

    def chosen(self, secure: bool) -> str:
        """The mechanism, one of MECHANISMS."""
        if not (self.epsilon or self.noise_multiplier):
            return "none"
        return self.mechanism or ("distributed" if secure else "central")


@dataclass(frozen=True, slots=True)
class RobustConfig:
    """How updates become one when some may be wrong on purpose. See docs/robust.md.

    All but "mean", and "norm_bound" with a `norm`, hold a whole cohort's updates at once. `byzantine` is how many of a
    cohort's updates (or groups' means) may be wrong. `trim` is the share cut off at each end by "trimmed_mean", `norm`
    the bound of "norm_bound", 0 for the median of the norms.
    """

    aggregator: str = key("mean", choices=AGGREGATORS)
    byzantine: int = key(0, low=0, high=1_000_000)
    trim: float = key(0.2, low=0, below=0.5)
    norm: float = key(0.0, low=0, high=1e9)

    def __post_init__(self) -> None:
        if self.byzantine and self.aggregator == "mean":
            raise ConfigError(
                f"robust.byzantine = {self.byzantine}: must be 0 for a mean, which withstands none; robust.aggregator "
                "= one of " + ", ".join(AGGREGATORS[1:]) + " does"
            )

    def cut(self, updates: int) -> int:
        """How many of so many values "trimmed_mean" leaves out at each end."""
        return whole_share(self.trim, updates)

    def why_not(self, updates: int) -> str | None:
        """Why so many updates are too few, with `byzantine` bad ones among them; None if they are enough."""
        bad = self.byzantine
        least = 2 * bad + (3 if self.aggregator in ("krum", "multi_krum") else 1)
        if updates < least:
            return f"robust.byzantine = {bad} needs {least} of them"
        if self.aggregator == "trimmed_mean" and self.cut(updates) < bad:
            return (
                f"robust.trim = {self.trim:g} cuts {self.cut(updates)} off at each end; robust.byzantine = {bad} needs "
                f"trim >= {bad}/{updates}"
            )
        return None


def check_together(
    secure: SecureConfig, privacy: PrivacyConfig, robust: RobustConfig, uplink: UplinkConfig, evaluate: str
) -> None:
    """Refuse what does not go together.

    Raises:
        ConfigError: names the keys and what to do instead.

    """
    mechanism = privacy.chosen(secure.enabled)
    if evaluate == "clients" and (secure.enabled or mechanism != "none"):
        raise ConfigError(
            'server.evaluate = "clients": tells the server of single clients what secure aggregation and privacy keep '
            'from it; use "central" or "none"'
        )
    if mechanism != "none" and robust.aggregator != "mean":
        raise ConfigError(
            f"robust.aggregator = {robust.aggregator!r}: must be mean with privacy.mechanism = {mechanism!r}, whose "
            "noise is for sums; its clip bounds what one client can do"
        )
    if mechanism in ("central", "ftrl") and uplink.error_feedback:
        raise ConfigError(
            "uplink.error_feedback = True: must be false with privacy, where a client's residual would carry its data "
            "from round to round beyond the clip"
        )
    if mechanism == "local" and not privacy.clip:
        raise ConfigError(
            'privacy.clip = 0: must be above 0 with privacy.mechanism = "local", where the server is not to learn of '
            "norms that a clip could follow"
        )
    if secure.enabled:
        _check_secure(secure, mechanism, robust, uplink)
    elif mechanism == "distributed":
        raise ConfigError('privacy.mechanism = "distributed": needs secure.enabled = true; without it use "central"')
    elif secure.groups > 1:
        raise ConfigError(f"secure.groups = {secure.groups}: needs secure.enabled = true")


def check_robust(robust: RobustConfig, secure: SecureConfig, cohort: int) -> None:
    """ConfigError if not even a full cohort, or all its groups, were enough for the aggregator."""
    name, updates = ("secure.groups", secure.groups) if secure.enabled else ("server.cohort", cohort)
    if robust.aggregator != "mean" and (reason := robust.why_not(updates)):
        raise ConfigError(f"{name} = {updates}: too few for robust.aggregator = {robust.aggregator!r}: {reason}")


def _check_secure(secure: SecureConfig, mechanism: str, robust: RobustConfig, uplink: UplinkConfig) -> None:
    for stage in uplink.codec:
        if stage in _UNSUMMABLE:
            raise ConfigError(
                f"uplink.codec = {','.join(uplink.codec)!r}: cannot be summed under secure aggregation: "
                f"{_UNSUMMABLE[stage]}"
            )
    if uplink.error_feedback:
        raise ConfigError(
            "uplink.error_feedback = True: must be false with secure.enabled, where a client's residual would carry "
            "its data from round to round beyond the clip"
        )
    if mechanism not in ("none", "distributed"):
        raise ConfigError(
            f'privacy.mechanism = {mechanism!r}: must be "distributed" with secure.enabled, so that the sum has '
            "its noise before the server sees it"
        )
    if mechanism != "none" and secure.max_weight:
        raise ConfigError(
            f"secure.max_weight = {secure.max_weight}: must be 0 under privacy, where clients weigh alike"
        )
    if mechanism != "none" and secure.groups > 1:
        raise ConfigError(
            f"secure.groups = {secure.groups}: must be 1 under privacy: each group's sum would need all noise"
        )
    if robust.aggregator != "mean" and secure.groups < 3:
        raise ConfigError(
            f"robust.aggregator = {robust.aggregator!r}: needs single updates, which secure aggregation hides; with "
            "secure.groups >= 3 it works on the groups' sums"
        )
    if secure.groups > 1 and robust.aggregator == "mean":
        raise ConfigError(
            f"secure.groups = {secure.groups}: must be 1 for a mean, which one sum gives; see robust.aggregator"
        )
