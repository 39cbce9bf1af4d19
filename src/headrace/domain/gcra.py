"""How a bucket fills: the generic cell rate algorithm, in integers.

All of a bucket's state is the tick at which it will be full again, its theoretical arrival time
(`tat`). How far that lies *ahead* of now is what was spent and is not there again yet. A unit moves
it by one interval, and no further than the tolerance, which is a burst of units. So over any span
of t ticks at most burst + t / interval units are allowed, and not one more.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

_LONGEST_S: Final = 400 * 86_400  # until a bucket is full again: what stays exact in a double


class Pace(msgspec.Struct, frozen=True, gc=False):
    """A rate in ticks."""

    interval: int  # until one unit is there again, rounded up
    tolerance: int  # how far ahead a bucket may be
    ticks_per_s: int


def pace(quota: int, window_s: float, burst: int, *, ticks_per_s: int, share: int = 1) -> Pace:
    """The pace of a rate, or of one of `share` equal parts of it with at least one unit at once.

    Raises:
        ValueError: there is no such rate.
    """
    ticks = round(window_s * ticks_per_s) if math.isfinite(window_s) else 0
    if quota < 1 or ticks < 1 or burst < 1:
        raise ValueError(
            f"a rate needs a quota, a window and a burst above 0, got {quota} units in "
            f"{window_s} s with a burst of {burst}"
        )
    burst = max(burst // share, 1)
    interval = -(-ticks * share // quota)
    if burst * interval > _LONGEST_S * ticks_per_s:
        raise ValueError(
            f"a burst of {burst} units takes more than 400 days to be there again "
            f"at {quota} units in {window_s} s"
        )
    return Pace(interval=interval, tolerance=burst * interval, ticks_per_s=ticks_per_s)


def ahead(tat: int, now: int, pace: Pace) -> int:
    """How far a bucket is ahead, in ticks from 0 to the tolerance."""
    # beyond the tolerance where the clock was set back, or the rate was changed: an empty bucket
    return min(max(tat - now, 0), pace.tolerance)
