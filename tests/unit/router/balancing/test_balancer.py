"""What is true of every policy."""

from __future__ import annotations

import random
from typing import get_args

import pytest

from headrace.domain import catalog
from headrace.router.balancing.balancer import Balancer, balancer
from tests.unit.router.balancing.fleet import FakeCandidate, picks

POLICIES = get_args(catalog.Balancer)


@pytest.fixture(params=POLICIES)
def policy(request: pytest.FixtureRequest) -> Balancer:
    return balancer(request.param, random.Random(1).random)


def test_the_only_candidate_is_picked(policy: Balancer) -> None:
    assert picks(policy, [FakeCandidate("a", weight=0.0)]) == ["a"]


def test_who_has_no_weight_gets_nothing(policy: Balancer) -> None:
    fleet = [FakeCandidate("a", weight=0.0), FakeCandidate("b"), FakeCandidate("c")]
    assert {name for key in "12345678" for name in picks(policy, fleet, 8, key=key)} == {"b", "c"}


def test_where_one_alone_has_weight_it_gets_everything(policy: Balancer) -> None:
    fleet = [FakeCandidate("a", weight=0.0), FakeCandidate("b"), FakeCandidate("c", weight=0.0)]
    assert set(picks(policy, fleet, 50, key="k")) == {"b"}


def test_where_nobody_has_weight_all_are_equal(policy: Balancer) -> None:
    fleet = [FakeCandidate(name, weight=0.0) for name in "abc"]
    picked = [name for key in range(90) for name in picks(policy, fleet, key=str(key))]
    assert all(15 <= picked.count(name) <= 45 for name in "abc")


def test_only_who_is_in_the_list_now_is_picked(policy: Balancer) -> None:
    rng = random.Random(2)
    everybody = [FakeCandidate(str(n), weight=rng.choice([0.5, 1, 2])) for n in range(8)]
    ready = list(everybody)
    for number in range(500):
        picked = policy.pick(ready, number / 100, str(number))
        assert picked in ready
        if rng.random() < 0.3:  # the same list object, of any other length
            ready[:] = rng.sample(everybody, rng.randint(1, len(everybody)))
        elif rng.random() < 0.3:
            ready = rng.sample(everybody, rng.randint(1, len(everybody)))


@pytest.mark.parametrize("name", POLICIES)
def test_names_that_are_gone_are_forgotten(name: catalog.Balancer) -> None:
    policy = balancer(name, random.Random(1).random)
    for number in range(5_000):
        fleet = [FakeCandidate(f"{number}-{place}") for place in range(3)]
        picks(policy, fleet, key="k")
    kept = [
        len(value)
        for slot in type(policy).__slots__  # type: ignore[attr-defined]
        if isinstance(value := getattr(policy, slot), dict)
    ]
    assert all(count < 100 for count in kept)
