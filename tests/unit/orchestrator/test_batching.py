from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.domain.models import Batching
from headrace.orchestrator.batching import Run, Wait, plan
from headrace.orchestrator.pending import Pending
from tests.unit.orchestrator.stage import START, pending


def _waiting(*rows: int) -> list[Pending]:
    return [pending(*range(count)) for count in rows]


def _run(
    waiting: list[Pending], *, max_rows: int = 8, batching: Batching | None = None, at: float = 0.0
) -> Run:
    decision = plan(waiting, batching=batching, max_rows=max_rows, now=START + at)
    assert isinstance(decision, Run)
    return decision


async def test_nothing_is_planned_where_nothing_waits() -> None:
    assert plan([], batching=None, max_rows=8, now=START) is None
    assert plan([], batching=Batching(max_delay_us=1_000), max_rows=8, now=START) is None


async def test_requests_of_one_key_run_together() -> None:
    waiting = _waiting(1, 2, 1)
    run = _run(waiting)
    assert run.requests == waiting
    assert run.rows == 4


async def test_a_request_of_another_key_ends_the_batch_and_is_not_passed_over() -> None:
    first, other, again = pending(1, key=("a",)), pending(2, key=("b",)), pending(3, key=("a",))
    assert _run([first, other, again]).requests == [first]


async def test_a_batch_stops_at_the_most_rows() -> None:
    waiting = _waiting(3, 3, 3)
    assert _run(waiting, max_rows=8).requests == waiting[:2]
    assert _run(waiting, max_rows=9).requests == waiting
    assert _run(waiting, max_rows=6).requests == waiting[:2]


async def test_a_small_request_behind_one_that_does_not_fit_does_not_overtake_it() -> None:
    waiting = _waiting(2, 7, 1)
    assert _run(waiting, max_rows=8).requests == waiting[:1]


async def test_a_request_larger_than_the_most_rows_runs_alone() -> None:
    waiting = _waiting(5, 1)
    run = _run(waiting, max_rows=1)
    assert run.requests == waiting[:1]
    assert run.rows == 5


async def test_the_most_urgent_request_decides_the_key_of_the_batch() -> None:
    urgent, normal = pending(1, key=("a",), level=1), pending(2, key=("b",), level=2)
    assert _run([urgent, normal]).requests == [urgent]


async def test_requests_of_different_levels_share_a_batch() -> None:
    waiting = [pending(1, level=1), pending(2, level=3)]
    assert _run(waiting).requests == waiting


# Batch jobs


async def test_rows_of_batch_jobs_do_not_join_online_requests() -> None:
    waiting = [pending(1), pending(2), pending(3, level=3, background=True)]
    assert _run(waiting).requests == waiting[:2]
    held = plan(waiting, batching=Batching(max_delay_us=1_000), max_rows=8, now=START)
    assert held == Wait(START + 0.001)


async def test_what_a_batch_job_has_merged_is_merged_with_nothing_else() -> None:
    single = [pending(1, background=True), pending(2, background=True)]
    several = pending(3, 4, background=True)
    assert _run([*single, several]).requests == single
    assert _run([several, *single]).requests == [several]


async def test_rows_of_batch_jobs_are_not_held_back_for_company() -> None:
    waiting = [pending(1, background=True)]
    assert _run(waiting, batching=Batching(max_delay_us=1_000)).requests == waiting


# Preferred sizes


async def test_the_longest_prefix_of_a_preferred_size_runs() -> None:
    waiting = _waiting(*[1] * 7)
    batching = Batching(preferred_sizes=(2, 4), max_delay_us=1_000)
    run = _run(waiting, batching=batching)
    assert run.requests == waiting[:4]
    assert run.rows == 4


async def test_a_preferred_size_that_requests_jump_over_is_not_reached() -> None:
    waiting = _waiting(3, 2)
    batching = Batching(preferred_sizes=(4,), max_delay_us=1_000)
    decision = plan(waiting, batching=batching, max_rows=8, now=START)
    assert decision == Wait(START + 0.001)


async def test_without_a_delay_what_is_no_preferred_size_runs_as_it_is() -> None:
    waiting = _waiting(1, 1, 1)
    assert _run(waiting, batching=Batching(preferred_sizes=(4, 8))).requests == waiting


async def test_a_preferred_size_over_the_most_rows_is_never_reached() -> None:
    waiting = _waiting(1, 1, 1, 1)
    batching = Batching(preferred_sizes=(4,))
    assert _run(waiting, batching=batching, max_rows=3).requests == waiting[:3]


# Delay


async def test_the_oldest_request_is_held_back_for_the_delay_and_no_longer() -> None:
    waiting = [pending(1, enqueued=START + 0.5), pending(2, enqueued=START)]  # a level apart
    batching = Batching(max_delay_us=1_000_000)
    decision = plan(waiting, batching=batching, max_rows=8, now=START + 0.6)
    assert decision == Wait(START + 1.0)
    assert _run(waiting, batching=batching, at=1.0).requests == waiting


async def test_a_full_batch_is_not_held_back() -> None:
    waiting = _waiting(4, 4)
    assert _run(waiting, batching=Batching(max_delay_us=1_000)).requests == waiting


async def test_a_batch_that_the_next_request_does_not_fit_is_not_held_back() -> None:
    batching = Batching(max_delay_us=1_000)
    assert len(_run(_waiting(4, 5), batching=batching).requests) == 1
    other_key = [pending(1, key=("a",)), pending(2, key=("b",))]
    assert len(_run(other_key, batching=batching).requests) == 1


async def test_a_single_request_waits_for_company_only_as_long_as_the_delay_says() -> None:
    waiting = _waiting(1)
    batching = Batching(max_delay_us=250)
    assert plan(waiting, batching=batching, max_rows=8, now=START) == Wait(START + 0.000_25)
    assert _run(waiting, batching=batching, at=0.000_25).requests == waiting


# Whatever waits

_REQUESTS = st.lists(
    st.tuples(st.integers(1, 6), st.integers(0, 1), st.floats(0, 1, width=32)), max_size=12
)
_BATCHING = st.none() | st.builds(
    Batching,
    preferred_sizes=st.lists(st.integers(1, 12), max_size=3).map(tuple),
    max_delay_us=st.sampled_from([0, 1_000, 500_000]),
)


def _made(requests: list[tuple[int, int, float]]) -> list[Pending]:
    return [
        pending(*range(rows), key=(key,), enqueued=START + enqueued)
        for rows, key, enqueued in requests
    ]


@settings(max_examples=60, deadline=None)
@given(requests=_REQUESTS, batching=_BATCHING, max_rows=st.integers(1, 12), after=st.floats(0, 2))
async def test_a_plan_is_a_fitting_prefix_of_one_key_or_a_wait_that_ends(
    requests: list[tuple[int, int, float]], batching: Batching | None, max_rows: int, after: float
) -> None:
    waiting = _made(requests)
    decision = plan(waiting, batching=batching, max_rows=max_rows, now=START + after)
    if decision is None:
        assert not waiting
    elif isinstance(decision, Run):
        count = len(decision.requests)
        assert count >= 1
        assert decision.requests == waiting[:count]
        assert decision.rows == sum(request.rows for request in decision.requests)
        assert decision.rows <= max_rows or count == 1
        assert len({request.key for request in decision.requests}) == 1
        if batching is None or not batching.preferred_sizes:
            rest = waiting[count:]
            assert not rest or (
                rest[0].key != waiting[0].key or decision.rows + rest[0].rows > max_rows
            )
    else:
        assert batching is not None
        assert batching.max_delay_us
        oldest = min(request.enqueued for request in waiting)
        assert START + after < decision.until <= oldest + batching.max_delay_us / 1e6
        assert sum(request.rows for request in waiting) < max_rows


@settings(max_examples=60, deadline=None)
@given(requests=_REQUESTS, batching=_BATCHING, max_rows=st.integers(1, 12))
async def test_every_request_is_run_once_and_in_its_turn(
    requests: list[tuple[int, int, float]], batching: Batching | None, max_rows: int
) -> None:
    waiting = _made(requests)
    left, ran = list(waiting), []
    while left:
        decision = plan(left, batching=batching, max_rows=max_rows, now=math.inf)
        assert isinstance(decision, Run)
        ran += decision.requests
        left = left[len(decision.requests) :]
    assert ran == waiting


@settings(max_examples=60, deadline=None)
@given(requests=_REQUESTS.filter(bool), max_rows=st.integers(1, 12))
@pytest.mark.parametrize("batching", [None, Batching(), Batching(preferred_sizes=(3, 7))])
async def test_nothing_waits_where_no_delay_is_configured(
    requests: list[tuple[int, int, float]], batching: Batching | None, max_rows: int
) -> None:
    decision = plan(_made(requests), batching=batching, max_rows=max_rows, now=START)
    assert isinstance(decision, Run)
