from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.domain import gcra

TICKS_PER_S = 16_000_000


@pytest.mark.parametrize(
    ("rate", "share", "interval", "units"),
    [
        ((1, 1.0, 1), 1, 16_000_000, 1),
        ((3, 1.0, 5), 1, 5_333_334, 5),  # rounded up: never faster than the rate
        ((600_000, 1.0, 600_000), 1, 27, 600_000),
        ((100, 60.0, 10), 4, 38_400_000, 2),
        ((100, 60.0, 1), 8, 76_800_000, 1),  # a share has at least one unit
        ((7, 1.0, 7), 3, 6_857_143, 2),  # rounded once, after the division
    ],
)
def test_a_rate_becomes_an_interval_and_a_tolerance(
    rate: tuple[int, float, int], share: int, interval: int, units: int
) -> None:
    pace = gcra.pace(*rate, ticks_per_s=TICKS_PER_S, share=share)
    assert pace.interval == interval
    assert pace.tolerance == units * interval


@pytest.mark.parametrize(
    ("quota", "window_s", "burst"),
    [
        (0, 1.0, 1),
        (-1, 1.0, 1),
        (1, 0.0, 1),
        (1, -1.0, 1),
        (1, math.nan, 1),
        (1, math.inf, 1),
        (1, 1.0, 0),
        (1, 86_400.0, 401),  # more than 400 days
        (1, 1e9, 1),
    ],
)
def test_a_rate_that_is_none_is_refused(quota: int, window_s: float, burst: int) -> None:
    with pytest.raises(ValueError, match=r"a rate needs|400 days"):
        gcra.pace(quota, window_s, burst, ticks_per_s=TICKS_PER_S)


def test_a_bucket_is_ahead_from_nothing_to_its_tolerance() -> None:
    pace = gcra.pace(1, 1.0, 2, ticks_per_s=10)
    assert gcra.ahead(5, 9, pace) == 0
    assert gcra.ahead(15, 9, pace) == 6
    # a clock that was set back empties a bucket, and does not close it for longer
    assert gcra.ahead(1_000_000, 9, pace) == pace.tolerance == 20


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 10_000),
    st.floats(0.001, 100_000),
    st.integers(1, 10_000),
    st.integers(1, 16),
)
def test_shares_together_are_no_faster_than_the_whole(
    quota: int, window_s: float, burst: int, share: int
) -> None:
    if burst * window_s / quota > 300 * 86_400 / share:
        return
    whole = gcra.pace(quota, window_s, burst, ticks_per_s=TICKS_PER_S)
    part = gcra.pace(quota, window_s, burst, ticks_per_s=TICKS_PER_S, share=share)
    assert part.interval * quota >= share * round(window_s * TICKS_PER_S)
    assert part.interval <= share * whole.interval
    assert part.tolerance // part.interval == max(burst // share, 1)
