from __future__ import annotations

from math import ceil, inf, log2
from typing import Final

_PER_OCTAVE: Final = 8  # a bucket's ends are 9 % apart
_LEAST_S: Final = 1e-6  # what is below is not told apart
_OCTAVES: Final = 40
_MOST_S: Final = _LEAST_S * 2**_OCTAVES  # twelve days; what is above is not told apart either
_HIGHEST: Final = _OCTAVES * _PER_OCTAVE
_BUCKETS: Final = _HIGHEST + 1
_ENOUGH: Final = 100  # fewer samples say nothing about the slow ones


class LatencyWindow:
    """The latencies of the last half of `span_s` seconds at least, and all of them at most.

    Percentiles are off by 5 % at most; latencies below a microsecond or above 12 days count as
    that.
    """

    __slots__ = ("_all", "_count", "_ends", "_half_s", "_highest", "_recent")

    def __init__(self, *, span_s: float = 30.0) -> None:
        self._half_s = span_s / 2
        self._ends = -inf  # of the half that is being filled
        self._recent = [0] * _BUCKETS  # samples of that half
        self._all = [0] * _BUCKETS  # and of the half before too
        self._count = 0  # of the latter
        self._highest = 0  # bucket that may have any

    def observe(self, seconds: float, now: float) -> None:
        """Take in one latency."""
        if now >= self._ends:
            self._turn(now)
        if seconds <= _LEAST_S:
            bucket = 0
        elif seconds >= _MOST_S:
            bucket = _HIGHEST
        else:
            bucket = int(log2(seconds / _LEAST_S) * _PER_OCTAVE)
        self._recent[bucket] += 1
        self._all[bucket] += 1
        self._count += 1
        if bucket <= self._highest:
            return
        self._highest = bucket

    def percentile(self, p: float, now: float) -> float | None:
        """Seconds that `p` percent of the requests did not exceed; None: too few to say.

        It takes the longer, the further `p` is from 100.
        """
        if now >= self._ends:
            self._turn(now)
        if self._count < _ENOUGH:
            return None
        above = self._count - max(ceil(self._count * p / 100), 1)  # samples that may be slower
        counts = self._all
        bucket = self._highest
        while above >= counts[bucket]:
            above -= counts[bucket]
            bucket -= 1
        return float(_LEAST_S * 2 ** ((bucket + 0.5) / _PER_OCTAVE))

    def _turn(self, now: float) -> None:
        ended = now - self._ends
        self._ends = now + self._half_s
        if ended < self._half_s:
            self._all = self._recent
            self._ends -= ended
        else:  # nothing came for so long that even the last half is too old
            self._all = [0] * _BUCKETS
        self._recent = [0] * _BUCKETS
        self._count = sum(self._all)
        self._highest = max((n for n, count in enumerate(self._all) if count), default=0)
