from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.resilience.latency_window import LatencyWindow


@pytest.mark.parametrize("p", [0, 1, 50, 90, 95, 99, 100])
@pytest.mark.parametrize("seed", range(5))
def test_percentiles_are_right_within_a_tenth(p: float, seed: int) -> None:
    rng = random.Random(seed)
    window = LatencyWindow()
    samples = [rng.lognormvariate(-4, 1.5) for _ in range(rng.randrange(100, 2_000))]
    for sample in samples:
        window.observe(sample, 100.0)
    exact = sorted(samples)[max(math.ceil(len(samples) * p / 100), 1) - 1]
    assert window.percentile(p, 100.0) == pytest.approx(exact, rel=0.1)


@given(st.floats(1e-6, 1e6))
def test_every_latency_is_told_within_a_tenth(seconds: float) -> None:
    window = LatencyWindow()
    for _ in range(100):
        window.observe(seconds, 100.0)
    assert window.percentile(50, 100.0) == pytest.approx(seconds, rel=0.1)


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 1e-12, 1e12])
def test_latencies_that_cannot_be_told_apart_count_all_the_same(seconds: float) -> None:
    window = LatencyWindow()
    for _ in range(100):
        window.observe(seconds, 100.0)
    assert window.percentile(50, 100.0) is not None


def test_too_few_samples_say_nothing() -> None:
    window = LatencyWindow()
    assert window.percentile(95, 100.0) is None
    for _ in range(99):
        window.observe(0.1, 100.0)
    assert window.percentile(95, 100.0) is None
    window.observe(0.1, 100.0)
    assert window.percentile(95, 100.0) is not None


def test_old_latencies_leave_the_window() -> None:
    window = LatencyWindow(span_s=30.0)
    for second in range(10):
        for _ in range(20):
            window.observe(10.0, 100.0 + second)
    for second in range(10, 32):
        for _ in range(20):
            window.observe(0.1, 100.0 + second)
    assert window.percentile(100, 131.0) == pytest.approx(0.1, rel=0.1)


def test_the_latencies_of_the_last_half_are_all_there() -> None:
    window = LatencyWindow(span_s=30.0)
    for second in range(100):
        for _ in range(20):
            window.observe(0.1, 100.0 + second)
        window.observe(10.0 if second == 50 else 0.1, 100.0 + second)
        top = window.percentile(100, 100.0 + second)
        if 50 <= second < 65:
            assert top == pytest.approx(10.0, rel=0.1)
        elif second > 80:
            assert top == pytest.approx(0.1, rel=0.1)


def test_after_a_long_silence_nothing_is_known() -> None:
    window = LatencyWindow(span_s=30.0)
    for _ in range(200):
        window.observe(0.1, 100.0)
    assert window.percentile(95, 129.9) is not None
    assert window.percentile(95, 131.0) is None
    for _ in range(200):
        window.observe(0.1, 200.0)
    assert window.percentile(95, 1e6) is None
