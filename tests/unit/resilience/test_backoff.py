from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.resilience.backoff import RetrySettings, backoff_s

ALMOST_ONE = math.nextafter(1.0, 0.0)


def longest() -> float:
    return ALMOST_ONE


def test_the_longest_wait_doubles_with_each_retry_up_to_the_bound() -> None:
    settings = RetrySettings(base_s=0.1, max_s=0.5)
    waits = [backoff_s(retry, settings, longest, None) for retry in range(1, 6)]
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.5, 0.5])


def test_any_time_below_it_is_as_likely() -> None:
    settings = RetrySettings(base_s=0.1)
    assert backoff_s(1, settings, lambda: 0.0, None) == 0.0
    assert backoff_s(1, settings, lambda: 0.25, None) == pytest.approx(0.025)


def test_no_retry_comes_before_the_time_that_the_backend_asked_for() -> None:
    settings = RetrySettings(base_s=0.1)
    assert backoff_s(1, settings, lambda: 0.0, 1.0) == 1.0


def test_retries_that_were_told_the_same_time_do_not_come_together() -> None:
    settings = RetrySettings(base_s=0.1)
    assert backoff_s(1, settings, lambda: 0.5, 1.0) == pytest.approx(1.05)


@pytest.mark.parametrize("retry_after_s", [1.001, 3600.0, math.inf, math.nan])
def test_a_backend_that_asks_for_too_long_is_not_tried_again(retry_after_s: float) -> None:
    assert backoff_s(1, RetrySettings(), longest, retry_after_s) is None


@given(
    retry=st.integers(1, 10**9),
    chance=st.floats(0, ALMOST_ONE),
    retry_after_s=st.none() | st.floats(-10, 1),
)
def test_a_wait_is_always_within_its_bounds(
    retry: int, chance: float, retry_after_s: float | None
) -> None:
    wait_s = backoff_s(retry, RetrySettings(), lambda: chance, retry_after_s)
    assert wait_s is not None
    asked_for_s = max(retry_after_s or 0.0, 0.0)
    assert asked_for_s <= wait_s <= asked_for_s + 1.0


def test_the_longest_wait_is_not_below_the_first() -> None:
    with pytest.raises(ValueError, match=r"max_s must be at least base_s \(0.01\), got 0.001"):
        RetrySettings(max_s=0.001)
