from __future__ import annotations

from collections import Counter

from headrace.router.balancing.round_robin import RoundRobin
from tests.unit.router.balancing.fleet import FakeCandidate, picks


def test_everybody_has_its_turn_whatever_its_weight() -> None:
    fleet = [FakeCandidate("a"), FakeCandidate("b", weight=9, in_flight=9), FakeCandidate("c")]
    assert picks(RoundRobin(), fleet, 7) == list("abcabca")


def test_a_newcomer_gets_one_turn_and_then_waits_as_all_do() -> None:
    robin = RoundRobin()
    fleet = [FakeCandidate("a"), FakeCandidate("b")]
    picks(robin, fleet, 10)
    fleet.append(FakeCandidate("c"))
    assert picks(robin, fleet, 6) == list("cabcab")


def test_nobody_loses_turns_where_the_list_changes_from_call_to_call() -> None:
    robin = RoundRobin()
    a, b, c = (FakeCandidate(name) for name in "abc")
    turns: Counter[str] = Counter()
    for _ in range(300):  # a place in a list, or the name after the last one, would pass a over
        turns.update(picks(robin, [a, b, c]) + picks(robin, [b, c]))
    assert turns == {"a": 150, "b": 225, "c": 225}  # half of the lists that it is in
