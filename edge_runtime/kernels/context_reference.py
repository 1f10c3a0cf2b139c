"""The coder of `context/context.h` once more, slowly and in plain Python: what its native form is tested against.

Written from that specification. Integers are exact here, so nothing can overflow unseen.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edge_runtime.errors import PeerError
from edge_runtime.kernels.context import CLASSES, MAX_MAGNITUDE, PlaneForm

Grid = NDArray[np.int16]

LEAST = 16
SIGMOID: list[int] = [round(65536 / (1 + 2.718281828459045 ** (-i / 4))) for i in range(21)]


def probability(logit: int) -> int:
    """65536 / (1 + exp(-logit / 256)), straight between multiples of 64."""
    size = min(abs(logit), 1279)
    low, high = SIGMOID[size // 64], SIGMOID[size // 64 + 1]
    p = low + (high - low) * (size % 64) // 64
    return p if logit >= 0 else 65536 - p


def class_of(v: int) -> int:
    if v < 2:
        return v
    log = v.bit_length() - 1
    return min(2 * log + (v >> (log - 1) & 1), CLASSES - 1)


class Counter:
    """The share of ones, of 2^24, after `seen` bits."""

    def __init__(self, logit: int | None = None) -> None:
        """Nothing seen yet, or as if three bits had been that speak for this logit."""
        self.share, self.seen = (1 << 23, 0) if logit is None else (probability(logit) << 8, 3)

    @property
    def p(self) -> int:
        return min(max(self.share >> 8, LEAST), 65536 - LEAST)

    def learn(self, bit: int) -> None:
        target = (1 << 24) - 1 if bit else 0
        self.share += (target - self.share) * (655360 // (10 * self.seen + 16)) >> 16
        self.seen = min(self.seen + 1, 255)


def some_logit(m: int) -> int:
    return -896 if m <= 4 else -896 + 140 * (m - 4) if m <= 10 else -56 + 118 * (m - 10)


def first_logit(name: tuple[object, ...]) -> int | None:
    """What the counter of that name begins with."""
    match name:
        case ("some", _, _, int(m), bool(predicted)):
            return max(some_logit(m), 77) if predicted else some_logit(m)
        case ("more", _, int(k), int(m), _):
            return max(118 * m - 206 * k - 1463, -590)
        case ("high", *_):
            return -205
    return None


class Interval:
    def __init__(self) -> None:
        self.low, self.high = 0, 0xFFFFFFFF

    def split(self, p: int) -> int:
        width = self.high - self.low
        return self.low + (width >> 16) * p + ((width & 0xFFFF) * p >> 16)

    def take(self, bit: int, p: int) -> int:
        """Narrow to the bit's part; returns how many leading bytes are settled, after dropping them."""
        if bit:
            self.high = self.split(p)
        else:
            self.low = self.split(p) + 1
        settled = 0
        while (self.low ^ self.high) >> 24 == 0:
            self.low = self.low << 8 & 0xFFFFFFFF
            self.high = (self.high << 8 | 0xFF) & 0xFFFFFFFF
            settled += 1
        return settled

    def ending(self) -> bytes:
        """The shortest bytes that, followed by zeros, lie inside."""
        for length in range(5):
            unit = 1 << 8 * (4 - length)
            value = -(-self.low // unit) * unit
            if value <= self.high:
                return value.to_bytes(4, "big").rstrip(b"\0")
        raise AssertionError("four bytes always do")


class _Coder:
    """What both ends do alike: `bit(value, p)` codes the value, or ignores it and returns the decoded one."""

    def __init__(self, bit: Callable[[int, int], int]) -> None:
        self._bit = bit
        self._counters: dict[tuple[object, ...], Counter] = {}

    def _counted(self, bit: int, *name: object) -> int:
        counter = self._counters.setdefault(name, Counter(first_logit(name)))
        bit = self._bit(bit, counter.p)
        counter.learn(bit)
        return bit

    def number(self, slot: int, value: int) -> int:
        log, k = (value + 1).bit_length() - 1, 0
        while self._counted(int(k < log), "number", slot, k):
            k += 1
            if k > 31:
                raise PeerError("a number is too large")
        result = 1
        for b in reversed(range(k)):
            result = 2 * result + self._counted(value + 1 >> b & 1, "number bit", slot, b)
        return result - 1

    def plane(self, form: PlaneForm, given: Grid | None) -> Grid:
        q: NDArray[np.int64] = np.zeros((form.rows, form.columns), np.int64)
        across, before = [0] * form.columns, 0
        for i in range(form.rows):
            some = self._counted(int(given is not None and bool(given[i].any())), "row", form.kind, before)
            before = (before << 1 | some) & 3
            along, shift = 0, min(5, 1 + min(i + 1, 64).bit_length() - 1)
            for j in range(form.columns):
                if some:
                    q[i, j] = self._value(form, q, i, j, across[j], along, None if given is None else int(given[i, j]))
                    if abs(q[i, j]) > MAX_MAGNITUDE:
                        raise PeerError("a value is too large")
                    v = 128 * min(abs(int(q[i, j])), 40)
                    along += v - along >> 4
                else:
                    v = 0
                across[j] += v - across[j] >> shift
        return q.astype(np.int16)

    def _value(
        self, form: PlaneForm, q: NDArray[np.int64], i: int, j: int, across: int, along: int, given: int | None
    ) -> int:
        def at(row: int, column: int) -> int:
            inside = row >= 0 and 0 <= column < form.columns
            return int(q[row, column]) if inside else 0

        def a(row: int, column: int) -> int:
            return min(abs(at(row, column)), 40)

        distances = (1, 2, form.lag, form.lag - 1, form.lag + 1) if form.lag else (1, 2)
        total = sum(tap * at(i, j - d) for tap, d in zip(form.taps, distances, strict=False))
        mu = min(max(total + 4 >> 3, -MAX_MAGNITUDE), MAX_MAGNITUDE)
        near = 4 * (a(i, j - 1) + a(i - 1, j)) + 2 * a(i, j - 2)
        near += 3 * a(i, j - form.lag) + a(i, j - form.lag + 1) if form.lag else a(i, j - 3)
        m = class_of(8 * near + 3 * (across // 4) + along >> 3)
        row_class = class_of(along >> 2) if form.row_class is None else int(form.row_class[i])
        e = 0 if given is None else given - mu
        if not self._counted(int(e != 0), "some", form.kind, row_class, m, mu != 0):
            return mu
        signs = [1 if v > 0 else 2 if v < 0 else 0 for v in (mu, at(i, j - 1))]
        negative = self._counted(int(e < 0), "sign", form.kind, *signs)
        log, k = abs(e).bit_length() - 1, 0
        while self._counted(int(k < log), "more", form.kind, min(k, 6), m, min(abs(mu), 3)):
            if k == 16:
                raise PeerError("a value is too large")
            k += 1
        size = 1
        for b in reversed(range(k)):
            bit = abs(e) >> b & 1
            top = b == k - 1
            size = 2 * size + (self._counted(bit, "high", form.kind, min(k, 9), m) if top else self._bit(bit, 32768))
        return mu - size if negative else mu + size


class ReferenceEncoder(_Coder):
    """As `PlaneEncoder`, but for planes of given integers."""

    def __init__(self) -> None:
        super().__init__(self._put)
        self._interval, self._out = Interval(), bytearray()

    def _put(self, bit: int, p: int) -> int:
        high = (self._interval.split(p) if bit else self._interval.high).to_bytes(4, "big")
        self._out += high[: self._interval.take(bit, p)]
        return bit

    def put_number(self, slot: int, value: int) -> None:
        self.number(slot, value)

    def put_plane(self, form: PlaneForm, q: Grid) -> None:
        self.plane(form, q)

    def end(self) -> bytes:
        return bytes(self._out) + self._interval.ending()


class ReferenceDecoder(_Coder):
    """As `PlaneDecoder`."""

    def __init__(self, data: bytes) -> None:
        super().__init__(self._get)
        self._interval, self._data, self._read = Interval(), data, 4
        self._code = int.from_bytes(data[:4].ljust(4, b"\0"), "big")

    def _get(self, _: int, p: int) -> int:
        bit = int(self._code <= self._interval.split(p))
        for _ in range(self._interval.take(bit, p)):
            following = self._data[self._read] if self._read < len(self._data) else 0
            self._code = (self._code << 8 | following) & 0xFFFFFFFF
            self._read += 1
        return bit

    def end(self) -> None:
        if self._data[self._read - 4 :] != self._interval.ending() or len(self._data) < self._read - 4:
            raise PeerError("bytes are missing or left over")
