from __future__ import annotations

from headrace.router.balancing.rendezvous import arrival, stable_hash


def test_parts_are_kept_apart() -> None:
    assert stable_hash("a", "bc") != stable_hash("ab", "c")


def test_text_that_has_no_utf_8_has_a_hash() -> None:
    assert stable_hash("\udc80") != stable_hash("\udc81")


def test_twice_the_weight_arrives_in_half_the_time() -> None:
    key, runner = stable_hash("key"), stable_hash("runner")
    assert arrival(key, runner, 2.0) == arrival(key, runner, 1.0) / 2


def test_there_is_a_time_for_every_hash() -> None:
    # a key that is its runner's own hash mixes to zero, whose logarithm there is none of
    assert 0 < arrival(5, 5, 1.0) < 40
