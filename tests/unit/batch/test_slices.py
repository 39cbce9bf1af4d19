from __future__ import annotations

import math

import pytest

from headrace.batch.slices import Slice


class _Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


def test_a_slice_is_over_once_its_time_is(clock: _Clock) -> None:
    piece = Slice(5.0, clock)
    clock.now += 4.9
    assert not piece.is_over(10, 1000)
    clock.now += 0.1
    assert piece.is_over(10, 1000)


def test_what_is_soon_done_is_not_left_to_others(clock: _Clock) -> None:
    piece = Slice(5.0, clock)
    clock.now += 5.0
    assert not piece.is_over(900, 100)
    assert piece.is_over(700, 300)


def test_a_small_rest_that_takes_long_is_left_all_the_same(clock: _Clock) -> None:
    piece = Slice(5.0, clock)
    clock.now += 5.0
    assert not piece.is_over(900, 100)
    clock.now += 20.0
    assert piece.is_over(910, 90)


def test_no_more_requests_are_kept_for_later_than_take_a_slice(clock: _Clock) -> None:
    piece = Slice(5.0, clock)
    clock.now += 1.0
    assert piece.fits(16, 0)
    assert not piece.fits(17, 0)
    assert piece.fits(500, 100)
    assert not piece.fits(501, 100)


def test_a_slice_without_an_end_goes_on(clock: _Clock) -> None:
    piece = Slice(math.inf, clock)
    clock.now += 1e9
    assert not piece.is_over(1, 1_000_000)
