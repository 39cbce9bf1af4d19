from __future__ import annotations

from headrace.router.balancing.weighted import WeightedRoundRobin
from tests.unit.router.balancing.fleet import FakeCandidate, picks


def test_turns_are_as_many_as_the_weight_and_not_in_a_row() -> None:
    fleet = [FakeCandidate("a", weight=5), FakeCandidate("b"), FakeCandidate("c")]
    # the sequence in the message of the nginx change that brought it, of these weights
    assert picks(WeightedRoundRobin(), fleet, 14) == list("aabacaa" * 2)


def test_a_weight_that_changes_counts_from_the_next_pick() -> None:
    wheel = WeightedRoundRobin()
    fleet = [FakeCandidate("a"), FakeCandidate("b", weight=0.25)]
    picks(wheel, fleet, 100)
    fleet[1].weighs = 1.0
    assert abs(picks(wheel, fleet, 100).count("b") - 50) <= 1


def test_who_lost_its_weight_does_not_get_what_it_had_earned_before() -> None:
    wheel = WeightedRoundRobin()
    fleet = [FakeCandidate("a"), FakeCandidate("b")]
    assert picks(wheel, fleet) == ["a"]
    fleet[1].weighs = 0.0
    assert picks(wheel, fleet) == ["a"]


def test_who_was_away_does_not_come_back_with_what_it_would_have_earned() -> None:
    wheel = WeightedRoundRobin()
    a, b, c = (FakeCandidate(name) for name in "abc")
    picks(wheel, [a, b, c], 9)
    picks(wheel, [a, b], 90)
    assert picks(wheel, [a, b, c], 6).count("c") == 2
