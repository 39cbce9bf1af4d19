from __future__ import annotations

import random

import pytest

from headrace.router.balancing.consistent_hash import ConsistentHash
from tests.unit.router.balancing.fleet import FakeCandidate, picks, shares

KEYS = [f"user-{number}" for number in range(4_000)]


def owners(fleet: list[FakeCandidate]) -> dict[str, str]:
    balancer = ConsistentHash(random.Random(1).random)
    return {key: balancer.pick(fleet, 0.0, key).name for key in KEYS}


def test_a_key_stays_wherever_its_endpoint_stands_in_the_list() -> None:
    fleet = [FakeCandidate(name) for name in "abcd"]
    assert owners(fleet) == owners(fleet[::-1])


def test_who_has_a_key_is_the_same_in_every_process() -> None:
    # written down once: another hash would move every caller at the next upgrade
    found = owners([FakeCandidate(name) for name in "abcd"])
    assert "".join(found[key] for key in KEYS[:16]) == "dbbabdabadbcddcb"


def test_keys_are_spread_as_the_weights_say() -> None:
    fleet = [FakeCandidate("a", weight=0.5), FakeCandidate("b", weight=1.5), FakeCandidate("c")]
    found = shares(owners(fleet).values())
    assert found == pytest.approx({"a": 1 / 6, "b": 3 / 6, "c": 2 / 6}, abs=0.03)


def test_who_leaves_moves_its_own_keys_only_and_to_all_others() -> None:
    fleet = [FakeCandidate(name) for name in "abcd"]
    before, after = owners(fleet), owners(fleet[:3])
    moved = [key for key in KEYS if before[key] != after[key]]
    assert moved == [key for key in KEYS if before[key] == "d"]
    assert shares(after[key] for key in moved) == pytest.approx(
        dict.fromkeys("abc", 1 / 3), abs=0.05
    )


def test_a_weight_that_grows_moves_keys_to_its_endpoint_only() -> None:
    fleet = [FakeCandidate(name) for name in "abc"]
    before = owners(fleet)
    fleet[0].weighs = 2.0
    after = owners(fleet)
    assert {after[key] for key in KEYS if before[key] != after[key]} == {"a"}


def test_requests_without_a_key_are_spread() -> None:
    fleet = [FakeCandidate("a"), FakeCandidate("b", weight=3)]
    found = shares(picks(ConsistentHash(random.Random(1).random), fleet, 2_000, key=""))
    assert found == pytest.approx({"a": 0.25, "b": 0.75}, abs=0.04)
