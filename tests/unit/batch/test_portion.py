from __future__ import annotations

import pytest

from headrace.batch.portion import DECODE, RUN, TELL, Portion


def test_where_nothing_is_known_one_row_shows_what_it_takes() -> None:
    assert Portion(0.001).of(64) == 1


@pytest.mark.parametrize("slow", [DECODE, RUN, TELL])
def test_what_takes_longest_decides(slow: int) -> None:
    portion = Portion(0.001)
    for what in (DECODE, RUN, TELL):
        portion.took(what, 10, 0.001 if what == slow else 0.0001)
    assert portion.of(64) == 10


def test_no_more_rows_than_may_be_merged_and_none_where_none_may() -> None:
    portion = Portion(0.001)
    portion.took(RUN, 10, 0.001)
    assert [portion.of(limit) for limit in (0, 1, 4, 10, 64)] == [0, 1, 4, 10, 10]


def test_a_row_that_takes_longer_than_a_stretch_goes_alone() -> None:
    portion = Portion(0.001)
    portion.took(RUN, 1, 0.011)
    assert portion.of(64) == 1


def test_an_interruption_weighs_less_than_what_usually_happens() -> None:
    portion = Portion(0.001)
    for _ in range(8):
        portion.took(RUN, 10, 0.001)
    portion.took(RUN, 10, 0.005)
    assert 5 <= portion.of(64) < 10
    for _ in range(8):
        portion.took(RUN, 10, 0.001)
    assert portion.of(64) in {9, 10}
