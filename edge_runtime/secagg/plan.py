"""How wide a lane is and how fine its grid, so that the sum of all clients says most on the fewest bits.

Without noise no sum can wrap: the grid spans +-k C / sqrt(D), k standard deviations of a rotated update of norm C in D
coordinates, and the lane holds all clients at their largest value. With noise sums may wrap, rarely: k standard
deviations of signal, rounding and noise fit in half a lane (Kairouz, Liu, Steinke 2021, section 6):

    s^2 (n C)^2 / D + n / 4 + noise_std(s)^2 <= (2^b / 2k)^2

The signal is at its most: all clients send the same update at the clip, and a rotation has spread its energy. Where a
sum wraps all the same, accuracy is lost, never privacy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from edge_runtime.errors import ConfigError
from edge_runtime.secagg.lanes import Lanes

BLOCK = 512  # coordinates are rotated in blocks of so many; an update is padded to whole ones
MAX_SIZE = 2**30
WIDTHS = (8, 9, 10, 12, 16, 21, 32)  # the lanes that fill a word
MOST_INFLATION = 1.05  # with noise, the narrowest width within this is taken

# Past the scale at which s C = 16 sqrt(D), rounding makes a client's vector less than 0.1 % longer: no finer grid pays.
_FINEST = 16.0
_REFERENCE = 4 * _FINEST  # where the noise of unrounded vectors is read off
_COARSEST = 2.0**-20  # of the finest scale; whoever needs less has no room at all

NoiseStd = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class BitPlan:
    """What `plan_bits` found.

    bits: of a lane.
    scale: whole numbers per unit of an update.
    value_max: the largest magnitude of one client's value; 0 with noise, which bounds all values together.
    wrap: whether sums may wrap modulo 2^bits.
    kept: rotated coordinates that travel.
    bits_per_parameter: on the wire, per value of the update.
    noise_std: of one value of the sum, in whole numbers; 0 without noise.
    inflation: std of rounding and noise over that of the same privacy's noise without rounding; 1 without noise.
    """

    bits: int
    scale: float
    value_max: int
    wrap: bool
    kept: int
    bits_per_parameter: float
    noise_std: float
    inflation: float


def padded_size(size: int) -> int:
    """Coordinates of a rotated update of `size` values."""
    return -(-size // BLOCK) * BLOCK


def kept_count(size: int, fraction: float) -> int:
    """How many of these a fraction is: the nearest number, at least one."""
    return max(1, round(fraction * padded_size(size)))


def plan_bits(
    *,
    clients: int,
    size: int,
    clip: float,
    value_bits: int = 4,
    bits: int = 0,
    fraction: float = 1.0,
    max_weight: int = 0,
    noise_std: NoiseStd | None = None,
    headroom: float = 4.0,
) -> BitPlan:
    """Lanes and grid for sums of `clients` updates of `size` values and L2 norm up to `clip`.

    Args:
        clients: at most so many in one sum.
        size: values of an update.
        clip: of its L2 norm.
        value_bits: of one client's value, without noise: +-(2^(value_bits - 1) - 1), at least +-1.
        bits: of a lane; 0 = the narrowest that does: without noise where nothing can wrap, with noise where inflation
            is within 1.05, or else least.
        fraction: share of the rotated coordinates that travel.
        max_weight: the largest weight of a client, without noise; 0 = no weights.
        noise_std: scale -> standard deviation of the noise in one value of the sum, in whole numbers. Asked at scales
            of up to 64 sqrt(size) / clip.
        headroom: standard deviations from the middle of the grid, or of the lane, to its end.

    Raises:
        ConfigError: out of range, or no lane does; the text names what would help.

    """
    whole = {
        "clients": (clients, 1, 65_535),
        "size": (size, 1, MAX_SIZE),
        "value_bits": (value_bits, 1, 16),
        "max_weight": (max_weight, 0, 2**31),
    }
    for name, (value, low, high) in whole.items():
        if type(value) is not int or not low <= value <= high:
            raise ConfigError(f"{name} = {value!r}: must be a whole number >= {low} and <= {high}")
    if type(bits) is not int or (bits and not 2 <= bits <= WIDTHS[-1]):
        raise ConfigError(f"bits = {bits!r}: must be 2 to {WIDTHS[-1]}, or 0 to choose")
    for name, number, most in (("clip", clip, math.inf), ("fraction", fraction, 1.0), ("headroom", headroom, math.inf)):
        if not (0 < number <= most and math.isfinite(number)):
            raise ConfigError(f"{name} = {number!r}: must be a number above 0" + (", at most 1" if most == 1 else ""))
    if noise_std is None:
        return _without_noise(clients, size, clip, value_bits, bits, fraction, max_weight, headroom)
    if max_weight:
        raise ConfigError(
            f"max_weight = {max_weight}: with noise all clients weigh the same, or one could move the sum further; "
            "take max_weight = 0"
        )
    return _Noisy(clients, size, clip, fraction, headroom, noise_std).plan(bits)


def _without_noise(
    clients: int, size: int, clip: float, value_bits: int, bits: int, fraction: float, max_weight: int, headroom: float
) -> BitPlan:
    value_max = max(1, 2 ** (value_bits - 1) - 1)
    kept = kept_count(size, fraction)
    count = kept + bool(max_weight)
    for width in (bits,) if bits else WIDTHS:
        lanes = Lanes(width, count)
        if lanes.fits(clients, value_max, max(1, max_weight)):
            scale = value_max * math.sqrt(padded_size(size)) / (headroom * clip)
            return BitPlan(width, scale, value_max, False, kept, lanes.wire_bits * count / size, 0.0, 1.0)
    weighted = f" with weights up to {max_weight}" if max_weight else ""
    smaller = " or a smaller max_weight" if max_weight else ""
    raise ConfigError(
        f"bits = {bits or WIDTHS[-1]}: sums of {clients} clients' values of up to {value_max}{weighted} could wrap; "
        f"take {'more bits, ' if bits else ''}fewer value_bits{smaller}, or a smaller cohort"
    )


@dataclass(frozen=True, slots=True)
class _Noisy:
    clients: int
    size: int
    clip: float
    fraction: float
    headroom: float
    noise_std: NoiseStd

    def plan(self, bits: int) -> BitPlan:
        found: list[BitPlan] = []
        for width in (bits,) if bits else WIDTHS:
            if scale := self._largest_scale(width):
                found.append(self._plan(width, scale))
                if found[-1].inflation <= MOST_INFLATION:
                    break
        if not found:
            wider = [width for width in WIDTHS if width > bits > 0 and self._largest_scale(width)]
            raise ConfigError(
                f"bits = {bits or WIDTHS[-1]}: noise and rounding of {self.clients} clients leave no room for the "
                f"update; take {f'{wider[0]} bits, ' if wider else ''}a smaller fraction, fewer clients or less noise"
            )
        return min(found, key=lambda plan: plan.inflation)

    def _plan(self, bits: int, scale: float) -> BitPlan:
        kept = kept_count(self.size, self.fraction)
        noise = self._noise(scale)
        unrounded = self._noise(self._finest * _REFERENCE / _FINEST) / (_REFERENCE / _FINEST)
        inflation = math.hypot(noise, math.sqrt(self.clients) / 2) / scale / (unrounded / self._finest)
        wire = Lanes(bits, kept).wire_bits * kept / self.size
        return BitPlan(bits, scale, 0, True, kept, wire, noise, inflation)

    @property
    def _finest(self) -> float:
        return _FINEST * math.sqrt(padded_size(self.size)) / self.clip

    def _largest_scale(self, bits: int) -> float:
        """The largest scale for which lanes of `bits` have room; 0 if there is none. Found to 0.05 %, from below.

        By false position (Illinois) in the scale's square, in which what is used is nearly a straight line.
        """
        room = (2.0**bits / (2 * self.headroom)) ** 2 - self.clients / 4
        signal = (self.clients * self.clip) ** 2 / padded_size(self.size)

        def spare(square: float) -> float:
            return room - square * signal - self._noise(math.sqrt(square)) ** 2

        low, high = (self._finest * _COARSEST) ** 2, self._finest**2
        at_low, at_high = spare(low), spare(high)
        if at_high >= 0:
            return self._finest
        if at_low < 0:
            return 0.0
        last = 0.0
        while high > low * 1.001:
            square = (low * -at_high + high * at_low) / (at_low - at_high)
            square = min(max(square, low * 1.0005), high / 1.0005)  # so that the bracket closes
            now = spare(square)
            if now >= 0:
                low, at_low, at_high = square, now, at_high / 2 if last > 0 else at_high
            else:
                high, at_high, at_low = square, now, at_low / 2 if last < 0 else at_low
            last = now
        return math.sqrt(low)

    def _noise(self, scale: float) -> float:
        std = self.noise_std(scale)
        if not 0 < std < math.inf:
            raise ConfigError(f"noise_std({scale:.6g}) = {std}: must be a finite number above 0")
        return std
