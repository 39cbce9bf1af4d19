from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.domain.errors import QueueFull
from headrace.domain.models import Batching, QueuePolicy
from headrace.orchestrator.pending import Pending
from headrace.orchestrator.queue import RequestQueue
from tests.unit.orchestrator.stage import pending


def _queue(batching: Batching | None = None, *, limit: int = 100) -> RequestQueue:
    return RequestQueue(batching, limit=limit)


def _policy(**options: object) -> Batching:
    return Batching(default_policy=QueuePolicy(**options))  # type: ignore[arg-type]


# Order


async def test_rows_before_a_level_are_those_of_it_and_of_more_urgent_ones() -> None:
    queue = _queue()
    requests = [pending(0, level=level) for level in (3, 2, 2, 1)]
    for request in requests:
        queue.push(request)
    assert [queue.rows_before(level) for level in (1, 2, 3)] == [1, 3, 4]
    queue.discard(requests[1])
    queue.delay(requests[2])
    assert [queue.rows_before(level) for level in (1, 2, 3)] == [1, 1, 2]
    for request in requests:
        queue.discard(request)
    assert [queue.rows_before(level) for level in (1, 2, 3)] == [0, 0, 0]


async def test_requests_of_one_level_stand_in_the_order_of_arrival() -> None:
    queue = _queue()
    requests = [pending(i) for i in range(4)]
    for request in requests:
        queue.push(request)
    assert list(queue) == requests


async def test_a_more_urgent_level_stands_before_the_others() -> None:
    queue = _queue()
    late, normal, urgent = (pending(level=level) for level in (3, 2, 1))
    for request in (late, normal, urgent):
        queue.push(request)
    assert list(queue) == [urgent, normal, late]


async def test_a_delayed_request_stands_behind_the_least_urgent_one() -> None:
    queue = _queue()
    urgent, least = pending(level=1), pending(level=3)
    for request in (urgent, least):
        queue.push(request)
    queue.delay(urgent)
    assert list(queue) == [least, urgent]
    assert urgent.delayed
    assert len(queue) == 2


async def test_delayed_requests_keep_their_order() -> None:
    queue = _queue()
    requests = [pending(level=level) for level in (1, 3, 2)]
    for request in requests:
        queue.push(request)
    for request in requests:
        queue.delay(request)
    assert list(queue) == requests


# Levels


@pytest.mark.parametrize("priority", [1, 2, 3])
def test_a_known_priority_is_its_own_level(priority: int) -> None:
    assert _queue().level(priority) == priority


@pytest.mark.parametrize("priority", [0, 4, 99])
def test_no_priority_and_an_unknown_one_mean_the_normal_level(priority: int) -> None:
    assert _queue().level(priority) == 2


@pytest.mark.parametrize("priority", [0, 6])
def test_a_configured_default_priority_takes_the_place_of_the_normal_level(priority: int) -> None:
    queue = _queue(Batching(priority_levels=5, default_priority=4))
    assert queue.level(priority) == 4
    assert queue.level(5) == 5


def test_a_default_priority_without_levels_means_nothing() -> None:
    assert _queue(Batching(default_priority=3)).level(0) == 2


def test_a_single_level_is_everybodys() -> None:
    assert _queue(Batching(priority_levels=1)).level(0) == 1


# Bounds on length


async def test_a_request_over_the_platforms_bound_is_refused_with_a_hint_when_to_come_back() -> (
    None
):
    queue = _queue(limit=2)
    queue.push(pending(level=1))
    queue.push(pending(level=2))
    refused = pending(level=3)
    with pytest.raises(QueueFull, match=r"^Exceeds maximum queue size$") as caught:
        queue.push(refused)
    assert caught.value.retry_after_s == 1.0
    assert refused not in list(queue)
    assert len(queue) == 2


async def test_a_delayed_request_still_takes_room() -> None:
    queue = _queue(limit=1)
    request = pending()
    queue.push(request)
    queue.delay(request)
    with pytest.raises(QueueFull):
        queue.push(pending())


async def test_a_levels_own_bound_leaves_the_other_levels_alone() -> None:
    batching = Batching(
        priority_levels=2,
        default_priority=1,
        default_policy=QueuePolicy(max_queue_size=1),
        priority_policies={2: QueuePolicy(max_queue_size=2)},
    )
    queue = _queue(batching)
    queue.push(pending(level=1))
    with pytest.raises(QueueFull):
        queue.push(pending(level=1))
    queue.push(pending(level=2))
    queue.push(pending(level=2))
    with pytest.raises(QueueFull):
        queue.push(pending(level=2))
    assert len(queue) == 3


async def test_a_bound_of_zero_is_none() -> None:
    queue = _queue(_policy(max_queue_size=0))
    for _ in range(50):
        queue.push(pending())
    assert len(queue) == 50


async def test_a_request_that_leaves_makes_room() -> None:
    queue = _queue(limit=1)
    first, second = pending(), pending()
    queue.push(first)
    queue.discard(first)
    assert not queue
    queue.push(second)
    assert list(queue) == [second]


async def test_discarding_twice_counts_once() -> None:
    queue = _queue()
    first, second = pending(), pending()
    queue.push(first)
    queue.push(second)
    queue.discard(first)
    queue.discard(first)
    assert len(queue) == 1
    assert list(queue) == [second]


async def test_a_delayed_request_can_be_discarded() -> None:
    queue = _queue()
    request = pending()
    queue.push(request)
    queue.delay(request)
    queue.discard(request)
    assert not queue
    assert list(queue) == []


# Bounds on waiting


def test_without_a_policy_a_request_may_wait_for_ever() -> None:
    assert _queue().timeout_s(2, 0) == math.inf
    assert _queue().timeout_s(2, 10) == math.inf


def test_a_default_timeout_holds_for_those_who_wish_nothing() -> None:
    assert _queue(_policy(default_timeout_us=2_500)).timeout_s(2, 0) == 0.0025


def test_a_wish_counts_only_where_the_policy_allows_it() -> None:
    fixed = _queue(_policy(default_timeout_us=2_000))
    assert fixed.timeout_s(2, 1_000) == 0.002
    open_to_wishes = _queue(_policy(default_timeout_us=2_000, allow_timeout_override=True))
    assert open_to_wishes.timeout_s(2, 1_000) == 0.001
    assert open_to_wishes.timeout_s(2, 0) == 0.002


def test_a_wish_shortens_the_default_and_never_lengthens_it() -> None:
    queue = _queue(_policy(default_timeout_us=2_000, allow_timeout_override=True))
    assert queue.timeout_s(2, 9_000) == 0.002


def test_a_wish_stands_alone_where_there_is_no_default() -> None:
    queue = _queue(_policy(allow_timeout_override=True))
    assert queue.timeout_s(2, 9_000) == 0.009
    assert queue.timeout_s(2, 0) == math.inf


def test_every_level_has_its_own_policy() -> None:
    batching = Batching(
        priority_levels=2,
        default_priority=1,
        default_policy=QueuePolicy(default_timeout_us=1_000),
        priority_policies={2: QueuePolicy(default_timeout_us=5_000, timeout_action="delay")},
    )
    queue = _queue(batching)
    assert [queue.timeout_s(level, 0) for level in (1, 2)] == [0.001, 0.005]
    assert [queue.delays(level) for level in (1, 2)] == [False, True]


# Whatever happens

_OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["push", "discard", "delay"]), st.integers(1, 3), st.integers(0, 9)),
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(operations=_OPERATIONS, limit=st.integers(1, 6))
async def test_the_queue_holds_what_was_pushed_and_not_taken_in_its_order(
    operations: list[tuple[str, int, int]], limit: int
) -> None:
    queue = _queue(limit=limit)
    lines: dict[int, list[Pending]] = {1: [], 2: [], 3: [], 4: []}  # 4: the delayed

    def standing() -> list[Pending]:
        return [request for line in lines.values() for request in line]

    for operation, level, which in operations:
        if operation == "push":
            request = pending(level=level)
            if len(standing()) >= limit:
                with pytest.raises(QueueFull):
                    queue.push(request)
            else:
                queue.push(request)
                lines[level].append(request)
        elif there := standing():
            request = there[which % len(there)]
            for line in lines.values():
                if request in line:
                    line.remove(request)
            if operation == "discard":
                queue.discard(request)
            else:
                queue.delay(request)
                lines[4].append(request)
        assert list(queue) == standing()
        assert len(queue) == len(standing())
