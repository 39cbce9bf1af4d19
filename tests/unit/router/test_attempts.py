from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest

from headrace.domain.calls import Call
from headrace.domain.errors import (
    DeadlineExceeded,
    EndpointBusy,
    EndpointFailed,
    EndpointTimeout,
    HeadraceError,
    InvalidRequest,
    ModelFailed,
    NoReadyEndpoint,
    UnknownModel,
)
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.tensors import InferContent
from headrace.resilience.backoff import RetrySettings
from headrace.router.settings import HedgingSettings, RouterSettings
from tests.support.router_fakes import FakeUpstream, RouterHouse, endpoint, failed, turns
from tests.support.waiting import until


@pytest.fixture
async def house() -> AsyncIterator[RouterHouse]:
    async with RouterHouse() as house:
        await house.put(endpoint(0), endpoint(1))
        yield house


def upstreams(house: RouterHouse) -> list[FakeUpstream]:
    return list(house.upstreams.values())


def asked(house: RouterHouse) -> list[int]:
    return [len(upstream.asked) for upstream in upstreams(house)]


def _unreached() -> EndpointFailed:
    error = failed()
    error.sent = False
    return error


def fail_first(house: RouterHouse, error: HeadraceError) -> None:
    """Make the first attempt end in `error`, wherever it goes."""
    first: list[HeadraceError] = [error]

    async def infer(upstream: FakeUpstream, request: InferRequest, call: Call) -> InferResponse:
        upstream.asked.append((request, call))
        outcome = first.pop() if first else None
        if outcome is not None:
            raise outcome
        return InferResponse(request.model, upstream.name, [])

    for upstream in upstreams(house):
        upstream.infer = infer.__get__(upstream)  # type: ignore[method-assign]


@pytest.mark.parametrize("error", [failed(), UnknownModel("not here"), failed(60.0)])
async def test_a_retried_attempt_goes_to_another_endpoint(
    house: RouterHouse, error: EndpointFailed | UnknownModel
) -> None:
    fail_first(house, error)
    await house.ask()
    assert asked(house) == [1, 1]
    assert house.counted("headrace_endpoint_retries_total") == {("m",): 1}


#: A row of a batch job, of whose attempts its job has so many.
ROW = Call("id", batch=True)


@pytest.mark.parametrize("error", [failed(), EndpointTimeout("nothing"), ModelFailed("it raised")])
async def test_a_row_of_a_batch_that_may_have_run_is_not_retried(
    house: RouterHouse, error: HeadraceError
) -> None:
    for upstream in upstreams(house):
        upstream.always = error
    with pytest.raises(type(error)):
        await house.ask(tenant_call=ROW)
    assert sum(asked(house)) == 1


@pytest.mark.parametrize("error", [_unreached(), UnknownModel("not here"), EndpointBusy("full")])
async def test_a_row_of_a_batch_that_did_not_run_goes_to_another_endpoint(
    house: RouterHouse, error: HeadraceError
) -> None:
    fail_first(house, error)
    await house.ask(tenant_call=ROW)
    assert asked(house) == [1, 1]


async def test_attempts_stay_within_the_budget_in_a_storm(house: RouterHouse) -> None:
    for upstream in upstreams(house):
        upstream.always = failed()
    requests = 4000
    for _ in range(requests):
        house.clock.now += 0.002
        for lane in house.lanes:  # as if breakers were no help
            lane.breaker.closed = True
            lane.tally.ejected = False
        with pytest.raises(EndpointFailed):
            await house.ask()
    assert requests < sum(asked(house)) <= 1.2 * requests + 3
    counted = house.counted("headrace_endpoint_attempts_total")
    assert sum(counted.values()) == sum(asked(house))


async def test_three_retries_are_allowed_however_few_requests_there_are() -> None:
    async with RouterHouse(retries=RetrySettings(max_attempts=9, base_s=0, max_s=0)) as house:
        await house.put(endpoint(0), endpoint(1))
        for upstream in upstreams(house):
            upstream.always = failed()
        with pytest.raises(EndpointFailed):
            await house.ask()
        assert sum(asked(house)) == 4
        assert house.counted("headrace_endpoint_retries_refused_total") == {("m",): 1}


@pytest.mark.parametrize("error", [InvalidRequest("odd"), InvalidRequest("shape")])
async def test_the_clients_own_error_is_not_retried_and_shows_that_the_endpoint_is_well(
    house: RouterHouse, error: InvalidRequest
) -> None:
    for upstream in upstreams(house):
        upstream.always = error
    for _ in range(20):
        with pytest.raises(InvalidRequest):
            await house.ask()
    assert sum(asked(house)) == 20
    assert {lane.breaker.phase for lane in house.lanes} == {"closed"}


async def test_a_request_of_a_sequence_is_not_retried(house: RouterHouse) -> None:
    for upstream in upstreams(house):
        upstream.always = failed()
    content = InferContent([], parameters={"sequence_id": 5})
    with pytest.raises(EndpointFailed):
        await house.router.infer(InferRequest("m", decoded=content), Call("id"))
    assert sum(asked(house)) == 1


async def test_what_is_late_already_is_not_begun(house: RouterHouse) -> None:
    with pytest.raises(DeadlineExceeded):
        await house.ask(tenant_call=Call("id", deadline=house.clock.now))
    assert asked(house) == [0, 0]


async def test_nobody_is_asked_again_after_the_deadline(house: RouterHouse) -> None:
    for upstream in upstreams(house):
        upstream.always, upstream.takes_s = EndpointTimeout("nothing"), 1.0
    with pytest.raises(DeadlineExceeded) as caught:
        await house.ask(tenant_call=Call("id", deadline=house.clock.now + 1))
    assert not isinstance(caught.value, EndpointTimeout), "it is the client's deadline that passed"
    assert sum(asked(house)) == 1


async def test_what_the_only_endpoint_asks_for_is_waited_for_unless_it_is_too_much() -> None:
    async with RouterHouse(retries=RetrySettings(base_s=0, max_s=0)) as house:
        await house.put(endpoint(0))
        (only,) = upstreams(house)
        only.script = [failed(60.0)]
        with pytest.raises(EndpointFailed):
            await house.ask()
        with pytest.raises(NoReadyEndpoint) as caught:
            await house.ask()
        assert caught.value.retry_after_s == pytest.approx(30.0)
        assert len(only.asked) == 1


async def test_each_try_has_its_own_time_within_the_deadline() -> None:
    async with RouterHouse(router=RouterSettings(slow_start_s=0, try_timeout_s=2)) as house:
        await house.put(endpoint(0))
        (only,) = upstreams(house)
        begun = house.clock.now
        await house.ask(tenant_call=Call("id", deadline=begun + 10))
        await house.ask(tenant_call=Call("id", deadline=begun + 1))
        assert [call.deadline for _, call in only.asked] == [begun + 2, begun + 1]


async def test_a_deadline_that_is_too_short_opens_no_breaker(house: RouterHouse) -> None:
    for upstream in upstreams(house):
        upstream.always, upstream.takes_s = EndpointTimeout("nothing"), 0.1
    for _ in range(50):
        deadline = house.clock.now + 0.1
        with pytest.raises(DeadlineExceeded):
            await house.ask(tenant_call=Call("id", deadline=deadline, wished=True))
    assert [lane.breaker.opened for lane in house.lanes] == [0, 0]


async def test_an_endpoint_that_hangs_opens_its_breaker() -> None:
    async with RouterHouse() as house:
        await house.put(endpoint(0))
        (only,) = upstreams(house)
        only.takes_s = 0.01
        await house.ask()
        only.always, only.takes_s = EndpointTimeout("nothing"), 1.0
        for _ in range(5):
            deadline = house.clock.now + 1.0
            with pytest.raises(DeadlineExceeded):
                await house.ask(tenant_call=Call("id", deadline=deadline, wished=True))
        assert house.lanes[0].breaker.phase == "open", "its own timeouts are not what is usual"


async def test_a_client_that_goes_away_frees_the_permit_and_gives_the_probe_back() -> None:
    async with RouterHouse(retries=RetrySettings(max_attempts=1)) as house:
        await house.put(endpoint(0))
        (only,) = upstreams(house)
        only.script = [failed()] * 5
        for _ in range(5):
            with pytest.raises(EndpointFailed):
                await house.ask()
        house.clock.now += 2.0
        only.script = [asyncio.get_running_loop().create_future()]
        probe = asyncio.create_task(house.ask())
        await turns()
        lane = house.lanes[0]
        assert (lane.breaker.phase, lane.in_flight) == ("half-open", 1)
        with pytest.raises(NoReadyEndpoint):
            await house.ask()
        probe.cancel()
        await asyncio.wait([probe])
        assert (only.cancelled, lane.in_flight) == (1, 0)
        await house.ask()
        assert lane.breaker.phase == "closed"


async def _hedging(house: RouterHouse) -> list[FakeUpstream]:
    await house.put(endpoint(0), endpoint(1))
    for _ in range(200):
        await house.ask()
    found = upstreams(house)
    for upstream in found:
        upstream.asked.clear()
        upstream.script = [asyncio.get_running_loop().create_future()]
    return found


@pytest.mark.parametrize("gone", [False, True])
async def test_of_a_request_and_its_hedge_the_loser_is_cancelled(gone: bool) -> None:  # noqa: FBT001
    async with RouterHouse(hedging=HedgingSettings(percentile=95)) as house:
        first, second = await _hedging(house)
        held = [upstream.script[0] for upstream in (first, second)]
        request = asyncio.create_task(house.ask())
        await until(lambda: asked(house) == [1, 1])
        if gone:
            request.cancel()
        else:
            assert isinstance(held[1], asyncio.Future)
            held[1].set_result(None)
        await asyncio.wait([request])
        await turns()
        assert (first.cancelled, second.cancelled) == (1, int(gone))
        assert [lane.in_flight for lane in house.lanes] == [0, 0]


async def test_nobody_is_asked_twice_by_default(house: RouterHouse) -> None:
    found = await _hedging(house)
    request = asyncio.create_task(house.ask())
    await turns(50)
    assert sum(asked(house)) == 1
    for upstream in found:
        for held in upstream.script:
            assert isinstance(held, asyncio.Future)
    request.cancel()
    await asyncio.wait([request])


async def test_an_endpoint_that_was_not_reached_costs_the_budget_nothing(
    house: RouterHouse,
) -> None:
    dead = upstreams(house)[0]
    dead.always = failed()
    dead.always.sent = False
    for _ in range(20):
        house.clock.now += 0.001
        for lane in house.lanes:  # as if its breaker were no help
            lane.breaker.closed = True
            lane.tally.ejected = False
        await house.ask()
    assert house.counted("headrace_endpoint_retries_refused_total") == {}


def waits(house: RouterHouse, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Fill the list with what is waited between attempts, and let that time be over at once."""
    waited: list[float] = []
    loop = asyncio.get_running_loop()

    def call_later(seconds: float, then: Callable[..., Any], *about: Any) -> asyncio.Handle:
        waited.append(seconds)
        house.clock.now += seconds
        return loop.call_at(0, then, *about)

    monkeypatch.setattr(loop, "call_later", call_later)
    return waited


async def test_each_retry_waits_for_a_random_time_up_to_twice_that_of_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    retries = RetrySettings(max_attempts=6, base_s=0.1, max_s=0.5, budget_ratio=100)
    async with RouterHouse(retries=retries) as house:
        await house.put(endpoint(0), endpoint(1))
        waited = waits(house, monkeypatch)
        for upstream in upstreams(house):
            upstream.always = EndpointBusy("no room")  # which opens no breaker
        longest = [0.0] * 5
        for _ in range(60):
            waited.clear()
            with pytest.raises(EndpointBusy):
                await house.ask()
            assert len(waited) == 5
            longest = list(map(max, longest, waited))
        bounds = [0.1, 0.2, 0.4, 0.5, 0.5]
        for wait_s, bound_s in zip(longest, bounds, strict=True):
            assert 0.8 * bound_s < wait_s <= bound_s


async def test_nobody_waits_for_a_retry_that_would_be_too_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with RouterHouse(retries=RetrySettings(base_s=1, max_s=1, budget_ratio=100)) as house:
        await house.put(endpoint(0), endpoint(1))
        waited = waits(house, monkeypatch)
        for upstream in upstreams(house):
            upstream.always = EndpointBusy("no room")
        retried = 0
        for _ in range(60):
            waited.clear()
            deadline = house.clock.now + 0.5
            with pytest.raises(EndpointBusy):
                await house.ask(tenant_call=Call("id", deadline=deadline))
            assert house.clock.now < deadline
            retried += len(waited)
        assert sum(asked(house)) == 60 + retried
        assert retried > 20


async def test_what_the_only_endpoint_asks_for_is_waited_for_with_some_time_on_top(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with RouterHouse(retries=RetrySettings(base_s=0.1, max_s=0.1)) as house:
        await house.put(endpoint(0))
        waited = waits(house, monkeypatch)
        upstreams(house)[0].script = [failed(0.5)]
        await house.ask()
        (wait_s,) = waited
        assert 0.5 <= wait_s <= 0.6


async def test_a_row_of_a_batch_has_no_hedge() -> None:
    async with RouterHouse(hedging=HedgingSettings(percentile=95)) as house:
        found = await _hedging(house)
        held = [upstream.script[0] for upstream in found]
        before = len(asyncio.all_tasks())
        asking = asyncio.create_task(house.ask(tenant_call=ROW))
        await until(lambda: sum(asked(house)) == 1)
        assert len(asyncio.all_tasks()) == before + 1, "there is nothing that a hedge could race"
        for each in held:
            assert isinstance(each, asyncio.Future)
            each.set_result(None)
        await asking
        assert sum(asked(house)) == 1


async def test_hedges_are_a_twentieth_of_the_requests_at_most() -> None:
    async with RouterHouse(hedging=HedgingSettings(percentile=95)) as house:
        found = await _hedging(house)
        requests = 200  # those that have taught it what is usual
        for number in range(1, 121):
            for upstream in found:
                upstream.script = [asyncio.get_running_loop().create_future()]
            held = [upstream.script[0] for upstream in found]
            house.clock.now += 0.005
            request = asyncio.create_task(house.ask())
            while sum(hedges(house)) < number:  # polled without pauses: it is but a millisecond
                await turns(1)
            assert hedges(house)[0] <= 0.05 * (requests + number)
            for each in held:
                assert isinstance(each, asyncio.Future)
                each.set_result(None)
            await request
        sent, refused = hedges(house)
        assert (sent, refused) == (16, 104)
        assert sum(asked(house)) == 120 + sent
        await turns()
        assert [lane.in_flight for lane in house.lanes] == [0, 0]


def hedges(house: RouterHouse) -> tuple[float, float]:
    """How many were sent, and for how many the budget had no room."""
    counted = house.counted("headrace_endpoint_hedges_total")
    return counted.get(("m", "sent"), 0), counted.get(("m", "refused"), 0)


async def test_a_hedge_goes_on_where_the_first_attempt_fails() -> None:
    async with RouterHouse(hedging=HedgingSettings(percentile=95)) as house:
        first, second = await _hedging(house)
        (one,), (two,) = first.script, second.script
        assert isinstance(one, asyncio.Future)
        assert isinstance(two, asyncio.Future)
        request = asyncio.create_task(house.ask())
        await until(lambda: asked(house) == [1, 1])
        one.set_result(failed())
        await turns()
        assert not request.done(), "the other may still answer"
        two.set_result(None)
        assert (await request).version == second.name
        assert asked(house) == [1, 1]


async def test_where_a_request_and_its_hedge_fail_the_client_hears_of_it() -> None:
    hedging, retries = HedgingSettings(percentile=95), RetrySettings(max_attempts=2)
    async with RouterHouse(hedging=hedging, retries=retries) as house:
        held = [upstream.script[0] for upstream in await _hedging(house)]
        request = asyncio.create_task(house.ask())
        await until(lambda: asked(house) == [1, 1])
        for each in held:
            assert isinstance(each, asyncio.Future)
            each.set_result(failed())
        with pytest.raises(EndpointFailed):
            await request
        assert asked(house) == [1, 1], "the hedge was an attempt too"
        assert [lane.in_flight for lane in house.lanes] == [0, 0]


async def test_a_request_of_a_sequence_is_not_hedged() -> None:
    async with RouterHouse(hedging=HedgingSettings(percentile=95)) as house:
        await _hedging(house)
        content = InferContent([], parameters={"sequence_id": 5})
        request = asyncio.ensure_future(
            house.router.infer(InferRequest("m", decoded=content), Call("id"))
        )
        await turns()
        later = asyncio.create_task(house.ask())
        await until(lambda: hedges(house) == (1, 0))
        assert sum(asked(house)) == 3, "the hedge is that of the request that came later"
        for task in (request, later):
            task.cancel()
        await asyncio.wait([request, later])


class Watched:
    """A body that tells when it is gone."""

    size_bytes = 1

    def parameters(self) -> dict[str, object]:
        return {}

    def rows(self) -> None:
        return None

    def decode(self) -> InferContent:
        return InferContent([])


async def raising(make: Callable[[], Exception]) -> InferResponse:
    raise make()


@pytest.mark.parametrize(
    "make",
    [
        failed,
        partial(EndpointTimeout, "late"),
        partial(InvalidRequest, "odd"),
        partial(UnknownModel, "none"),
    ],
)
@pytest.mark.parametrize("hedged", [False, True])
async def test_a_request_that_failed_is_let_go_of_without_the_collector(
    make: Callable[[], Exception],
    hedged: bool,  # noqa: FBT001
) -> None:
    async with RouterHouse(hedging=HedgingSettings(percentile=50 if hedged else 0)) as house:
        await house.put(endpoint(0), endpoint(1))
        for _ in range(120 if hedged else 0):  # so that it is known what takes long
            await house.ask()
        for upstream in upstreams(house):
            upstream.infer = lambda *_: raising(make)  # type: ignore[method-assign]
        body = Watched()
        gone = weakref.ref(body)
        gc.disable()
        try:
            with contextlib.suppress(HeadraceError):
                await house.router.infer(
                    InferRequest("m", payload=body), Call("id", deadline=house.clock.now + 0.5)
                )
            del body
            await turns()
            assert gone() is None
        finally:
            gc.enable()


async def test_made_up_names_share_a_budget(house: RouterHouse) -> None:
    await house.put(endpoint(0, models=()), endpoint(1, models=()))
    for upstream in upstreams(house):
        upstream.always = failed()
    for number in range(100):
        with pytest.raises(EndpointFailed):
            await house.ask(f"name-{number}")
    assert sum(asked(house)) <= 1.2 * 100


async def test_many_failures_at_once_open_the_breaker_and_eject_nobody(house: RouterHouse) -> None:
    loop = asyncio.get_running_loop()
    ends: list[asyncio.Future[HeadraceError]] = [loop.create_future() for _ in range(60)]
    for upstream, part in zip(upstreams(house), (ends[:30], ends[30:]), strict=True):
        upstream.script = list(part)
    asking = [asyncio.ensure_future(house.ask()) for _ in range(40)]
    await turns()
    for end in ends:
        end.set_result(failed())
    await asyncio.gather(*asking, return_exceptions=True)
    assert not any(lane.breaker.closed for lane in house.lanes)
    assert not any(lane.tally.ejected for lane in house.lanes), "it would outlast the breaker"
