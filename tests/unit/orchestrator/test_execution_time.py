from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.orchestrator.execution_time import ExecutionTime

Cost = Callable[[int], float]


def _observed(*runs: tuple[int, float]) -> ExecutionTime:
    times = ExecutionTime()
    for rows, seconds in runs:
        times.observe(rows, seconds)
    return times


def _load(times: ExecutionTime, cost: Cost, *, runs: int = 200, max_rows: int = 64) -> list[int]:
    """The rows of each run where more requests wait than ever fit, as Scheduler forms them."""
    sizes = []
    times.observe(1, cost(1))
    for _ in range(runs):
        rows = min(max_rows, times.useful_rows or max_rows)
        times.observe(rows, cost(rows))
        sizes.append(rows)
    return sizes


# Predicting


def test_a_run_of_which_nothing_is_known_may_take_for_ever() -> None:
    assert ExecutionTime().predict(1) == math.inf


def test_a_run_takes_what_runs_of_its_size_took() -> None:
    times = _observed((1, 0.001), (4, 0.003))
    assert times.predict(1) == 0.001
    assert times.predict(4) == 0.003


@pytest.mark.parametrize("rows", [4, 5, 6, 7])
def test_sizes_up_to_the_next_power_of_two_share_what_is_known(rows: int) -> None:
    assert _observed((5, 0.003)).predict(rows) == 0.003


def test_what_is_known_moves_a_fifth_of_the_way_to_each_new_run() -> None:
    times = _observed((1, 0.010), (1, 0.020))
    assert times.predict(1) == pytest.approx(0.012)


def test_one_run_that_suddenly_takes_long_is_felt_at_once() -> None:
    times = _observed((1, 0.0001), (1, 1.0))
    assert times.predict(1) > 0.1


def test_a_larger_run_is_expected_to_take_the_time_per_row_of_the_next_smaller_one_known() -> None:
    times = _observed((1, 0.001), (4, 0.002))
    assert times.predict(2) == pytest.approx(0.002)
    assert times.predict(16) == pytest.approx(0.008)


def test_a_larger_run_tells_nothing_of_a_smaller_one() -> None:
    assert _observed((8, 0.001)).predict(1) == math.inf


def test_runs_of_any_size_can_be_observed() -> None:
    times = _observed((2**40, 7.0))
    assert times.predict(2**40) == 7.0
    assert times.predict(2**30) == 7.0
    assert times.predict(2**20) == math.inf


# Useful rows


def test_nothing_is_said_of_merging_before_one_row_was_timed() -> None:
    assert ExecutionTime().useful_rows is None
    assert _observed((4, 0.001)).useful_rows is None


def test_after_one_row_two_are_tried() -> None:
    assert _observed((1, 0.001)).useful_rows == 2


@settings(max_examples=60, deadline=None)
@given(
    runs=st.lists(
        st.tuples(st.integers(1, 200), st.floats(1e-6, 1.0, allow_nan=False)), max_size=80
    )
)
def test_at_most_twice_the_rows_of_what_was_observed_are_tried(
    runs: list[tuple[int, float]],
) -> None:
    times = ExecutionTime()
    most = 0
    for rows, seconds in runs:
        times.observe(rows, seconds)
        most = max(most, rows)
        assert times.useful_rows is None or 1 <= times.useful_rows <= 2 * most


@pytest.mark.parametrize("per_row_s", [0.00005, 0.001, 0.2])
def test_a_model_whose_time_grows_with_its_rows_is_merged_no_more(per_row_s: float) -> None:
    times = ExecutionTime()
    sizes = _load(times, lambda rows: rows * per_row_s)
    assert sizes[:2] == [2, 4]
    assert set(sizes[2:]) == {1}
    assert times.useful_rows == 1


@pytest.mark.parametrize("fixed_share", [0.6, 0.9, 1.0])
def test_a_model_that_costs_about_the_same_for_any_rows_is_merged_up_to_the_most(
    fixed_share: float,
) -> None:
    cost_s = 0.00001
    sizes = _load(
        ExecutionTime(), lambda rows: cost_s * (fixed_share + (1 - fixed_share) * rows), runs=40
    )
    assert sizes[:6] == [2, 4, 8, 16, 32, 64]
    assert set(sizes[6:]) == {64}


def test_two_rows_alone_do_not_show_what_merging_is_worth() -> None:
    assert _observed((1, 0.001), (2, 0.002)).useful_rows == 4


def test_four_rows_do() -> None:
    assert _observed((1, 0.001), (2, 0.002), (4, 0.004)).useful_rows == 1
    assert _observed((1, 0.001), (2, 0.002), (4, 0.002)).useful_rows == 8


def test_a_verdict_is_looked_at_again_as_more_is_known() -> None:
    times = _observed((1, 0.001), (4, 0.004))  # the first run of four paid for something
    assert times.useful_rows == 1
    times.observe(4, 0.0012)
    assert times.useful_rows == 1
    for _ in range(32):
        times.observe(4, 0.0012)
    assert times.useful_rows == 8
