"""What a version was asked, in a form that can be added up over processes and time."""

from __future__ import annotations

from bisect import bisect_left
from datetime import datetime
from typing import Final

import msgspec

#: Upper bounds of the latency buckets in seconds: five to a decade, from 100 µs to 100 s.
BOUNDS_S: Final = (
    *(round(base * 10.0**power, 6) for power in range(-4, 2) for base in (1, 1.6, 2.5, 4, 6.3)),
    100.0,
)


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Requests, how many of them failed, and how long they took."""

    requests: int = 0
    errors: int = 0
    latency_s: float = 0.0  # the sum
    buckets: tuple[int, ...] = (0,) * (len(BOUNDS_S) + 1)  # the last is above every bound
    last_used_at: datetime | None = None

    def plus(self, other: Usage) -> Usage:
        """Both together."""
        times = [at for at in (self.last_used_at, other.last_used_at) if at is not None]
        return Usage(
            requests=self.requests + other.requests,
            errors=self.errors + other.errors,
            latency_s=self.latency_s + other.latency_s,
            buckets=tuple(a + b for a, b in zip(self.buckets, other.buckets, strict=True)),
            last_used_at=max(times, default=None),
        )

    def quantile_s(self, share: float) -> float | None:
        """The latency that `share` of the requests did not exceed, within its bucket's width.

        None without requests; the last bound where it lies above it.
        """
        total = sum(self.buckets)
        if not total:
            return None
        rank, below = share * total, 0
        for index, count in enumerate(self.buckets[:-1]):
            if count and below + count >= rank:
                low = BOUNDS_S[index - 1] if index else 0.0
                return low + (BOUNDS_S[index] - low) * max(0.0, rank - below) / count
            below += count
        return BOUNDS_S[-1]


def bucket(seconds: float) -> int:
    """Which bucket a latency is counted in."""
    return bisect_left(BOUNDS_S, seconds)
