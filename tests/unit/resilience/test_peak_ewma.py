from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.resilience.peak_ewma import PeakEwma


def test_a_peak_is_believed_at_once() -> None:
    average = PeakEwma()
    average.observe(0.01, 100.0)
    average.observe(2.0, 100.0)
    assert average.value(100.0) == 2.0


def test_better_times_are_believed_bit_by_bit() -> None:
    average = PeakEwma(tau_s=10.0)
    average.observe(2.0, 100.0)
    average.observe(1.0, 110.0)
    assert average.value(110.0) == pytest.approx(1 + 1 / math.e)
    average.observe(1.0, 200.0)
    assert average.value(200.0) == pytest.approx(1.0, rel=1e-3)


def test_how_many_observations_there_are_does_not_matter_only_how_long_they_last() -> None:
    few, many = PeakEwma(), PeakEwma()
    for average, steps in ((few, 2), (many, 1_000)):
        average.observe(2.0, 0.0)
        for step in range(1, steps + 1):
            average.observe(1.0, 10.0 * step / steps)
    assert many.value(10.0) == pytest.approx(few.value(10.0))


def test_it_fades_while_nothing_is_observed() -> None:
    average = PeakEwma(tau_s=10.0)
    average.observe(2.0, 100.0)
    assert average.value(110.0) == pytest.approx(2 / math.e)
    assert average.value(110.0) == pytest.approx(2 / math.e)  # and not by being asked


def test_a_guess_stands_until_the_first_observation() -> None:
    average = PeakEwma(initial_s=0.5)
    assert average.value(1e9) == 0.5
    average.observe(0.1, 1e9)
    assert average.value(1e9) == 0.1
    assert PeakEwma().value(0.0) == 0.0


@given(st.lists(st.tuples(st.floats(-5, 100), st.floats(0, 60)), min_size=1))
def test_it_never_leaves_the_range_of_what_was_observed(steps: list[tuple[float, float]]) -> None:
    average = PeakEwma()
    now = 1_000.0
    for waited, seconds in steps:
        now += waited  # a report may be a little late
        average.observe(seconds, now)
    top = max(seconds for _, seconds in steps)
    assert 0.0 <= average.value(now) <= top * (1 + 1e-9)
