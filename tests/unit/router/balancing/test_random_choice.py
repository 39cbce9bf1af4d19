from __future__ import annotations

import random

import pytest

from headrace.router.balancing.random_choice import RandomChoice
from tests.unit.router.balancing.fleet import FakeCandidate, picks, shares


def test_shares_are_as_the_weights_say() -> None:
    fleet = [FakeCandidate("a", weight=0.5), FakeCandidate("b", weight=1.5), FakeCandidate("c")]
    found = shares(picks(RandomChoice(random.Random(1).random), fleet, 6_000))
    assert found == pytest.approx({"a": 1 / 6, "b": 3 / 6, "c": 2 / 6}, abs=0.02)


@pytest.mark.parametrize(("share", "name"), [(0.0, "a"), (0.24, "a"), (0.25, "b"), (0.999, "b")])
def test_each_weight_is_a_part_of_what_is_drawn_from(share: float, name: str) -> None:
    fleet = [FakeCandidate("a"), FakeCandidate("b", weight=3)]
    assert picks(RandomChoice(lambda: share), fleet) == [name]


def test_the_highest_number_there_is_still_falls_on_somebody() -> None:
    fleet = [FakeCandidate(str(n), weight=0.1 * (n + 1)) for n in range(10)]
    assert picks(RandomChoice(lambda: 1.0), fleet) == ["9"]


def test_who_leaves_in_the_middle_of_a_list_makes_room_at_once() -> None:
    fleet = [FakeCandidate("a"), FakeCandidate("b", weight=0.0)]
    chance = RandomChoice(lambda: 0.9)
    assert picks(chance, fleet) == ["a"]
    fleet[:] = [FakeCandidate("c"), FakeCandidate("a"), FakeCandidate("d")]
    assert picks(chance, fleet) == ["d"]


def test_another_list_of_the_same_length_is_another_list() -> None:
    chance = RandomChoice(lambda: 0.9)
    assert picks(chance, [FakeCandidate("a"), FakeCandidate("b", weight=0.0)]) == ["a"]
    assert picks(chance, [FakeCandidate("c", weight=0.0), FakeCandidate("d")]) == ["d"]
