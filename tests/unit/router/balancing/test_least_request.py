from __future__ import annotations

import random

import pytest

from headrace.router.balancing.least_request import LeastRequest
from tests.unit.router.balancing.fleet import FakeCandidate, Server, picks, shares, traffic


@pytest.fixture
def least() -> LeastRequest:
    return LeastRequest(random.Random(1).random)


def test_the_fewest_of_all_is_picked(least: LeastRequest) -> None:
    fleet = [FakeCandidate(str(n), in_flight=n) for n in (3, 2, 1, 2, 3)]
    assert set(picks(least, fleet, 50)) == {"1"}


def test_a_weight_of_three_holds_three_times_as_many(least: LeastRequest) -> None:
    heavy, light = FakeCandidate("heavy", weight=3, in_flight=1), FakeCandidate("light")
    assert set(picks(least, [heavy, light], 50)) == {"heavy"}
    heavy.in_flight = 3
    assert set(picks(least, [heavy, light], 50)) == {"light"}


def test_chance_decides_between_equals(least: LeastRequest) -> None:
    fleet = [FakeCandidate("a"), FakeCandidate("b"), FakeCandidate("c", in_flight=1)]
    assert shares(picks(least, fleet, 2_000)) == pytest.approx({"a": 0.5, "b": 0.5}, abs=0.04)


def test_load_distribution_follows_speed(least: LeastRequest) -> None:
    fleet = [Server("slow", mean_s=0.1), Server("fast", mean_s=0.01)]
    found = traffic(least, fleet, requests=10_000, per_s=1_000)
    assert found["fast"] == pytest.approx(0.9, abs=0.05)
