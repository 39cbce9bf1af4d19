from __future__ import annotations

import pytest

from headrace.orchestrator.pace import Pace


def _pace(*runs: tuple[int, float], waiting: bool = True) -> Pace:
    """After runs of so many rows that ended at such times."""
    pace = Pace()
    for rows, ended in runs:
        pace.ended(rows, ended, others_wait=waiting)
    return pace


def test_where_nothing_was_seen_nobody_waits() -> None:
    assert Pace().wait_s(1000) == 0.0
    assert _pace((1, 10.0)).wait_s(1000) == 0.0


def test_a_row_takes_what_passed_between_two_runs() -> None:
    assert _pace((4, 10.0), (4, 12.0)).wait_s(6) == pytest.approx(6 * 0.5 * 1.25)


def test_time_in_which_nobody_waited_is_not_counted() -> None:
    pace = _pace((1, 10.0), (1, 11.0))
    pace.ended(1, 12.0, others_wait=False)
    pace.ended(1, 500.0, others_wait=True)
    assert pace.wait_s(1) == pytest.approx(1.25)


def test_a_slow_run_counts_for_less_than_a_fast_one() -> None:
    slower = _pace((1, 10.0), (1, 11.0), (1, 13.0)).wait_s(1)
    faster = _pace((1, 10.0), (1, 11.0), (1, 11.5)).wait_s(1)
    assert slower == pytest.approx(1.2 * 1.25)
    assert faster == pytest.approx(0.75 * 1.25)


def test_a_run_without_rows_does_no_harm() -> None:
    assert _pace((0, 10.0), (0, 11.0)).wait_s(1) == pytest.approx(1.25)
