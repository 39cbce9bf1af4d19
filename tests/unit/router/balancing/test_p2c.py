from __future__ import annotations

import random

import pytest

from headrace.router.balancing.p2c import P2c
from tests.unit.router.balancing.fleet import FakeCandidate, Server, picks, shares, traffic


@pytest.fixture
def p2c() -> P2c:
    return P2c(random.Random(1).random)


def test_of_two_the_one_with_less_latency_is_picked(p2c: P2c) -> None:
    fleet = [FakeCandidate("slow", latency_s=0.011), FakeCandidate("fast", latency_s=0.010)]
    assert set(picks(p2c, fleet, 50)) == {"fast"}


def test_requests_under_way_count_as_latency_does(p2c: P2c) -> None:
    busy = FakeCandidate("busy", latency_s=0.010, in_flight=3)
    slow = FakeCandidate("slow", latency_s=0.039)
    assert set(picks(p2c, [busy, slow], 50)) == {"slow"}
    slow.takes_s = 0.041
    assert set(picks(p2c, [busy, slow], 50)) == {"busy"}


def test_two_different_candidates_are_compared_so_the_worst_gets_nothing(p2c: P2c) -> None:
    fleet = [FakeCandidate(str(n), latency_s=0.001 + 0.001 * n) for n in range(4)]
    found = shares(picks(p2c, fleet, 6_000))
    assert "3" not in found
    # of the six pairs, the best is the better one in three, the next in two, the third in one
    assert [found[name] for name in "012"] == pytest.approx([3 / 6, 2 / 6, 1 / 6], abs=0.02)


def test_chance_decides_between_equals(p2c: P2c) -> None:
    fleet = [FakeCandidate(name, latency_s=0.01) for name in "abc"]
    assert shares(picks(p2c, fleet, 6_000)) == pytest.approx(dict.fromkeys("abc", 1 / 3), abs=0.02)


def test_equals_share_as_their_weights_say_without_any_load(p2c: P2c) -> None:
    fleet = [FakeCandidate("a", weight=3, latency_s=0.01), FakeCandidate("b", latency_s=0.01)]
    assert shares(picks(p2c, fleet, 6_000)) == pytest.approx({"a": 0.75, "b": 0.25}, abs=0.02)
    fleet.append(FakeCandidate("c", latency_s=0.01))
    found = shares(picks(p2c, fleet, 6_000))
    assert found == pytest.approx({"a": 0.6, "b": 0.2, "c": 0.2}, abs=0.02)


def test_requests_under_way_count_for_each_unit_of_weight(p2c: P2c) -> None:
    heavy = FakeCandidate("heavy", weight=3, latency_s=0.01, in_flight=30)
    light = FakeCandidate("light", latency_s=0.01, in_flight=30)
    assert set(picks(p2c, [heavy, light], 50)) == {"heavy"}
    light.in_flight = 3
    assert set(picks(p2c, [heavy, light], 50)) == {"light"}


def test_a_heavy_endpoint_that_is_slow_loses_its_share(p2c: P2c) -> None:
    fleet = [FakeCandidate("heavy", weight=9, latency_s=0.05), FakeCandidate("b", latency_s=0.01)]
    assert set(picks(p2c, fleet, 50)) == {"b"}


def test_a_newcomer_is_tried_before_it_has_a_latency(p2c: P2c) -> None:
    fleet = [FakeCandidate("known", latency_s=0.000_001), FakeCandidate("new", weight=0.1)]
    assert set(picks(p2c, fleet, 50)) == {"new"}


@pytest.mark.parametrize("weight", [1, 100])
def test_a_newcomer_is_not_flooded_before_it_answered(p2c: P2c, weight: float) -> None:
    fleet = [
        FakeCandidate("known", latency_s=10.0, in_flight=100),
        FakeCandidate("new", weight=weight, in_flight=1),
    ]
    assert set(picks(p2c, fleet, 50)) == {"known"}


def test_newcomers_share_by_requests_under_way(p2c: P2c) -> None:
    fleet = [FakeCandidate("a", in_flight=2), FakeCandidate("b", in_flight=1)]
    assert set(picks(p2c, fleet, 50)) == {"b"}


def test_a_weight_that_changes_counts_after_a_moment(p2c: P2c) -> None:
    warm = FakeCandidate("warm", latency_s=0.01)
    fresh = FakeCandidate("fresh", latency_s=0.01, weight=0.1)
    fleet = [warm, fresh]
    picks(p2c, fleet)
    fresh.weighs = 1.0
    found = shares(p2c.pick(fleet, 0.2, "").name for _ in range(4_000))
    assert found["fresh"] == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("per_s", [5, 100, 1_000])
def test_load_distribution_follows_weights_however_much_load_there_is(
    p2c: P2c, per_s: float
) -> None:
    fleet = [Server("a", mean_s=0.01, weight=3), Server("b", mean_s=0.01)]
    found = traffic(p2c, fleet, requests=10_000, per_s=per_s)
    assert found["a"] == pytest.approx(0.7, abs=0.07)


def test_load_distribution_among_equals_is_even(p2c: P2c) -> None:
    fleet = [Server(str(n), mean_s=0.01) for n in range(5)]
    found = traffic(p2c, fleet, requests=10_000, per_s=200)
    assert found == pytest.approx(dict.fromkeys("01234", 0.2), abs=0.03)


@pytest.mark.parametrize("per_s", [5, 100, 1_000])
def test_least_latency_leaves_a_slow_endpoint_almost_nothing(p2c: P2c, per_s: float) -> None:
    fleet = [Server(str(n), mean_s=0.1 if n == 0 else 0.01) for n in range(4)]
    found = traffic(p2c, fleet, requests=10_000, per_s=per_s)
    assert found["0"] < 0.04
    assert min(found[name] for name in "123") > 0.25
