from __future__ import annotations

import pytest

from headrace.batch.weight import Weight

_MIB = 1024 * 1024


def test_where_nothing_is_known_few_rows_are_tried() -> None:
    weight = Weight()
    assert weight.most(1024, 8 * _MIB) == 2
    assert weight.of(2) == 8 * _MIB


def test_small_answers_let_more_rows_be_merged_step_by_step() -> None:
    weight, tried = Weight(), []
    for _ in range(5):
        tried.append(weight.most(1024, 8 * _MIB))
        weight.told(tried[-1], 100 * tried[-1])
    assert tried == [2, 16, 128, 1024, 1024]


def test_as_many_rows_as_fit() -> None:
    weight = Weight()
    weight.told(32, 32 * 1000)
    assert weight.of(3) == 3000
    assert [weight.most(64, size) for size in (20_000, 2000, 10)] == [20, 2, 1]


@pytest.mark.parametrize("limit", [0, 1])
def test_no_more_rows_than_may_be_merged(limit: int) -> None:
    weight = Weight()
    assert weight.most(limit, 1) == limit
    weight.told(64, 0)
    assert weight.most(limit, 1) == limit


def test_answers_that_weigh_nothing_are_bounded_by_the_limit_alone() -> None:
    weight = Weight()
    weight.told(64, 0)
    assert weight.most(100, 1) == 100


def test_heavy_answers_are_believed_at_once_and_light_ones_slowly() -> None:
    weight = Weight()
    weight.told(10, 1000)
    weight.told(10, 100_000)
    assert weight.of(1) == 10_000
    weight.told(10, 0)
    assert weight.of(1) == 8000
