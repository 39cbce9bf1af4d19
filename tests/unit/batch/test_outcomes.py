from __future__ import annotations

from headrace.batch.outcomes import Outcomes
from headrace.batch.row_job import RowsRun

ANY = 1_000_000


def test_lines_are_taken_in_the_rows_order_up_to_the_first_that_is_open() -> None:
    outcomes = Outcomes()
    first = outcomes.expect(3)
    outcomes.answer(first + 1, b"b")
    assert outcomes.first_is_open
    assert outcomes.take(ANY) is None
    outcomes.answer(first, b"a")
    assert not outcomes.first_is_open
    assert outcomes.take(ANY) == (b"ab", b"")
    assert (outcomes.first, outcomes.ahead, outcomes.first_is_open) == (2, 1, True)
    outcomes.answer(first + 2, b"c")
    assert outcomes.take(ANY) == (b"c", b"")
    assert outcomes.told() == RowsRun(3, 0)
    assert not outcomes.first_is_open


def test_failures_are_told_apart_in_their_own_order() -> None:
    outcomes = Outcomes()
    outcomes.expect(4)
    for place in (3, 1):
        outcomes.fail(place, b"no%d" % place)
    for place in (0, 2):
        outcomes.answer(place, b"yes%d" % place)
    assert outcomes.take(ANY) == (b"yes0yes2", b"no1no3")
    assert outcomes.told() == RowsRun(2, 2)


def test_rows_that_are_left_have_no_line_and_are_named_in_order() -> None:
    outcomes = Outcomes()
    outcomes.expect(3)
    outcomes.leave(2, "c")
    outcomes.leave(0, "a")
    outcomes.answer(1, b"b")
    assert outcomes.take(ANY) == (b"b", b"")
    assert outcomes.told() == RowsRun(1, 0, ("a", "c"))


def test_no_more_is_taken_at_a_time_than_asked_for() -> None:
    outcomes = Outcomes()
    for place in range(10):
        outcomes.expect()
        outcomes.answer(place, b"%d" % place)
    assert outcomes.take(4) == (b"0123", b"")
    assert outcomes.held_bytes == 6
    assert outcomes.take(100) == (b"456789", b"")
    assert outcomes.held_bytes == 0
    assert outcomes.take(100) is None
