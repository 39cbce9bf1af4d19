from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from headrace.domain.calls import Call, Principal
from headrace.domain.errors import HeadraceError, InvalidSettings, Overloaded, TenantBusy
from headrace.gateway.admission import Admission, AdmissionSettings, Waiter
from tests.support.waiting import until

LONG_S = 60.0


class House:
    """An admission, and what it counted."""

    def __init__(self, **settings: Any) -> None:
        self.refused: list[str] = []
        given = {"max_concurrent": 1, "max_wait_s": LONG_S, "batch_share": 1.0, **settings}
        self.admission = Admission(AdmissionSettings(**given), count_refusal=self.refused.append)

    def enter(self, call: Call) -> Waiter | None:
        return self.admission.enter(call)

    def waits(self, call: Call) -> Waiter:
        waiter = self.admission.enter(call)
        assert waiter is not None
        return waiter


def _call(
    priority: int = 0, *, batch: bool = False, tenant: str = "default", left_s: float = math.inf
) -> Call:
    principal = Principal("p", tenant)
    return Call("id", principal, priority=priority, batch=batch, deadline=left_s)


def _error(waiter: Waiter) -> HeadraceError:
    error = waiter.future.exception()
    assert isinstance(error, HeadraceError)
    return error


async def test_whoever_comes_while_there_is_room_does_not_wait() -> None:
    house = House(max_concurrent=2)
    assert house.enter(_call()) is None
    assert house.enter(_call()) is None
    house.waits(_call())
    assert (house.admission.in_flight, house.admission.waiting) == (2, 1)


async def test_it_is_known_when_the_last_online_request_came() -> None:
    house = House(max_concurrent=9)
    assert house.admission.last_online == -math.inf
    for received, batch in ((5.0, False), (7.0, False), (9.0, True)):
        house.enter(Call("id", received=received, batch=batch))
    assert house.admission.last_online == 7.0


async def test_the_next_one_gets_the_place_of_the_one_that_leaves() -> None:
    house = House()
    house.enter(_call())
    first, second = house.waits(_call()), house.waits(_call())
    house.admission.leave(_call())
    assert first.future.done()
    assert not second.future.done()
    house.admission.leave(_call())
    assert second.future.done()
    house.admission.leave(_call())
    assert (house.admission.in_flight, house.admission.waiting) == (0, 0)


async def test_the_urgent_go_first_and_the_unmarked_stand_in_the_middle() -> None:
    house = House(default_priority=5)
    house.enter(_call())
    calls = {
        "batch": _call(1, batch=True),
        "late": _call(9),
        "usual": _call(),
        "usual too": _call(5),
        "urgent": _call(1),
    }
    waiters = {name: house.waits(call) for name, call in calls.items()}
    order = []
    for _ in calls:
        house.admission.leave(_call())
        order += [n for n, w in waiters.items() if w.granted and n not in order]
    assert order == ["urgent", "usual", "usual too", "late", "batch"]


async def test_where_too_many_wait_the_least_urgent_is_refused_at_once() -> None:
    house = House(max_waiting=2)
    house.enter(_call())
    usual, late = house.waits(_call()), house.waits(_call(9))
    urgent = house.waits(_call(1))
    assert isinstance(_error(late), Overloaded)
    assert late.future.exception()
    with pytest.raises(Overloaded) as caught:  # as urgent as the last of them, and later
        house.enter(_call())
    assert caught.value.retry_after_s == 1.0
    assert not usual.future.done()
    assert not urgent.future.done()
    assert house.refused == ["overloaded", "overloaded"]


async def test_nobody_waits_longer_than_the_bound() -> None:
    house = House(max_wait_s=0.01)
    house.enter(_call())
    waiter = house.waits(_call())
    await until(waiter.future.done)
    assert isinstance(_error(waiter), Overloaded)
    assert house.admission.waiting == 0


async def test_nobody_waits_past_its_deadline() -> None:
    house = House()
    house.enter(_call())
    waiter = house.waits(_call(left_s=0.01))
    await until(waiter.future.done)
    assert isinstance(_error(waiter), Overloaded)


async def test_batch_traffic_takes_its_share_and_no_more() -> None:
    house = House(max_concurrent=4, batch_share=0.5)
    batch = _call(batch=True)
    assert house.enter(batch) is None
    assert house.enter(batch) is None
    waiter = house.waits(batch)
    assert house.enter(_call()) is None  # past the one that waits: its place is not batch's
    assert house.enter(_call()) is None
    house.admission.leave(_call())
    assert not waiter.granted
    house.admission.leave(batch)
    assert waiter.granted


@pytest.mark.parametrize(("share", "most"), [(0.5, 1), (0.01, 1), (0.0, 0)])
async def test_batch_traffic_has_a_place_wherever_it_has_a_share(share: float, most: int) -> None:
    house = House(max_concurrent=1, batch_share=share)
    let_in = house.enter(_call(batch=True)) is None
    assert let_in == bool(most)


async def test_online_traffic_comes_before_batch_that_waits_longer() -> None:
    house = House()
    house.enter(_call())
    batch, online = house.waits(_call(1, batch=True)), house.waits(_call(9))
    house.admission.leave(_call())
    assert online.granted
    assert not batch.granted


async def test_a_tenants_limit_is_its_own() -> None:
    house = House(max_concurrent=10, max_concurrent_per_tenant=2)
    for _ in range(2):
        assert house.enter(_call(tenant="a")) is None
    with pytest.raises(TenantBusy) as caught:
        house.enter(_call(tenant="a"))
    assert caught.value.retry_after_s == 1.0
    assert house.enter(_call(tenant="b")) is None
    house.admission.leave(_call(tenant="a"))
    assert house.enter(_call(tenant="a")) is None
    assert house.refused == ["tenant_busy"]


async def test_a_tenant_at_its_limit_does_not_hold_up_those_who_wait_behind_it() -> None:
    house = House(max_concurrent=2, max_concurrent_per_tenant=1)
    house.enter(_call(tenant="a"))
    house.enter(_call(tenant="b"))
    first, second = house.waits(_call(tenant="c")), house.waits(_call(tenant="c"))
    third = house.waits(_call(tenant="d"))
    house.admission.leave(_call(tenant="a"))
    house.admission.leave(_call(tenant="b"))
    assert first.granted
    assert not second.granted
    assert third.granted


async def _waiting(house: House, call: Call) -> tuple[Waiter, asyncio.Task[None]]:
    waiter = house.waits(call)
    task = asyncio.create_task(house.admission.wait(waiter))
    await asyncio.sleep(0)
    return waiter, task


async def test_no_tenant_takes_the_room_of_others_by_calling_everything_urgent() -> None:
    house = House(max_concurrent=4, max_waiting=6)
    for _ in range(4):
        house.enter(_call(1, tenant="loud"))
    loud = [house.waits(_call(1, tenant="loud")) for _ in range(6)]
    quiet = [house.waits(_call(tenant="quiet")) for _ in range(2)]  # in place of two loud ones
    assert [waiter.future.done() for waiter in loud] == [False] * 4 + [True] * 2
    for waiter in loud[4:]:
        assert isinstance(_error(waiter), Overloaded)
    for _ in range(2):
        house.admission.leave(_call(tenant="loud"))
    assert [waiter.granted for waiter in quiet] == [True, True]
    assert not any(waiter.granted for waiter in loud)
    house.admission.leave(_call(tenant="loud"))  # one of loud's is under way, two of quiet's
    assert loud[0].granted


async def test_thousands_that_were_cancelled_are_passed_over() -> None:
    house = House(max_waiting=5000)
    house.enter(_call())
    waiters = [house.waits(_call()) for _ in range(3000)]
    for waiter in waiters[:-1]:
        waiter.future.cancel()
    house.admission.leave(_call())
    assert waiters[-1].granted


async def test_who_is_cancelled_leaves_no_trace() -> None:
    house = House()
    house.enter(_call())
    _, waiting = await _waiting(house, _call())
    granted, task = await _waiting(house, _call(9))
    waiting.cancel()
    await asyncio.wait([waiting])
    house.admission.leave(_call())
    assert granted.granted
    task.cancel()  # when the place was its own, and it had yet to go on
    await asyncio.wait([task])
    assert (house.admission.in_flight, house.admission.waiting) == (0, 0)
    assert house.enter(_call()) is None


async def test_a_place_never_goes_to_one_that_was_cancelled() -> None:
    house = House()
    house.enter(_call())
    _, gone = await _waiting(house, _call())
    next_one = house.waits(_call())
    gone.cancel()
    house.admission.leave(_call())
    assert next_one.granted
    await asyncio.wait([gone])
    assert house.admission.in_flight == 1


async def test_places_are_counted_right_whatever_happens() -> None:
    house = House(max_concurrent=3, max_waiting=4, max_wait_s=0.005, max_concurrent_per_tenant=2)
    done = {"ok": 0, "refused": 0, "cancelled": 0}

    async def one(n: int) -> None:
        call = _call(n % 4, batch=n % 3 == 0, tenant=f"t{n % 3}")
        try:
            waiter = house.enter(call)
            if waiter is not None:
                await house.admission.wait(waiter)
        except HeadraceError:
            done["refused"] += 1
            return
        except asyncio.CancelledError:
            done["cancelled"] += 1
            raise
        try:
            for _ in range(n % 5):
                await asyncio.sleep(0)
        finally:
            house.admission.leave(call)
        done["ok"] += 1

    tasks = []
    for n in range(600):
        tasks.append(asyncio.create_task(one(n)))
        if n % 7 == 0:
            await asyncio.sleep(0)
        if n % 11 == 0:
            tasks[n // 2].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (house.admission.in_flight, house.admission.waiting) == (0, 0)
    assert done["ok"]
    assert done["refused"] == len(house.refused)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"max_concurrent": 0}, "admission.max_concurrent"),
        ({"batch_share": 1.5}, "admission.batch_share"),
        ({"batch_share": -0.1}, "admission.batch_share"),
        ({"default_priority": 0}, "admission.default_priority"),
    ],
)
def test_what_would_let_nobody_in_is_refused(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(InvalidSettings, match=key):
        House(**settings)
