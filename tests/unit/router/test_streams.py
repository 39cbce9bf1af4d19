"""Streams through attempts and routes: what is tried again, what is counted, what is let go of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from headrace.domain.calls import Call
from headrace.domain.catalog import Route, Shadow, Target
from headrace.domain.errors import (
    DeadlineExceeded,
    EndpointFailed,
    EndpointTimeout,
    HeadraceError,
    InvalidRequest,
    NoReadyEndpoint,
    UnknownModel,
)
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.tensors import InferContent
from headrace.ports.catalogue import Entry
from headrace.ports.inference import Responses
from tests.support.router_fakes import AT, FakeUpstream, RouterHouse, endpoint, failed, turns


class Streamed:
    """What an upstream streams: numbered responses, then an error where there is one."""

    def __init__(
        self, upstream: FakeUpstream, count: int = 3, error: HeadraceError | None = None
    ) -> None:
        self.upstream = upstream
        self.count = count
        self.error = error
        self.closed = 0
        self.waits: asyncio.Future[None] | None = None  # before the response after the first
        upstream.stream = self  # type: ignore[method-assign]

    async def __call__(self, request: InferRequest, call: Call) -> Responses:
        self.upstream.asked.append((request, call))
        try:
            for number in range(self.count):
                if number and self.waits is not None:
                    await self.waits
                response = InferResponse(request.model, self.upstream.name, [], final=False)
                response.id = str(number)
                yield response
            if self.error is not None:
                raise self.error
        finally:
            self.closed += 1


@pytest.fixture
async def house() -> AsyncIterator[RouterHouse]:
    async with RouterHouse() as house:
        await house.put(endpoint(0), endpoint(1))
        yield house


def streams(house: RouterHouse) -> list[Streamed]:
    return [Streamed(upstream) for upstream in house.upstreams.values()]


def opened(house: RouterHouse, model: str = "m", call: Call | None = None) -> Responses:
    request = InferRequest(model, decoded=InferContent([]))
    return house.router.stream(request, call or Call("id"))


async def read(responses: Responses) -> list[str]:
    async with aclosing(responses):
        return [response.id async for response in responses]


async def test_all_responses_come_from_one_endpoint_in_order(house: RouterHouse) -> None:
    both = streams(house)
    assert await read(opened(house)) == ["0", "1", "2"]
    assert sum(len(each.upstream.asked) for each in both) == 1
    assert [lane.in_flight for lane in house.lanes] == [0, 0]


async def test_a_stream_that_fails_before_its_first_response_is_tried_elsewhere(
    house: RouterHouse,
) -> None:
    both = streams(house)
    for each in both:
        each.count, each.error = 0, failed()
    with pytest.raises(EndpointFailed):
        await read(opened(house))
    assert all(each.upstream.asked for each in both)

    both[0].count, both[0].error = 3, None
    assert await read(opened(house)) == ["0", "1", "2"]


async def test_a_stream_that_breaks_off_later_is_not_begun_again(house: RouterHouse) -> None:
    both = streams(house)
    for each in both:
        each.count, each.error = 2, failed()
    responses = opened(house)
    assert [(await anext(responses)).id for _ in range(2)] == ["0", "1"]
    with pytest.raises(EndpointFailed):
        await anext(responses)
    assert sum(len(each.upstream.asked) for each in both) == 1


async def test_an_empty_stream_is_a_success(house: RouterHouse) -> None:
    for each in streams(house):
        each.count = 0
    assert await read(opened(house)) == []
    attempts = house.counted("headrace_endpoint_attempts_total")
    assert [key[-1] for key, value in attempts.items() if value] == ["ok"]


async def test_streams_that_break_off_again_and_again_open_the_breaker(house: RouterHouse) -> None:
    for each in streams(house):
        each.count, each.error = 1, failed()
    for _ in range(10):
        with pytest.raises((EndpointFailed, NoReadyEndpoint)):
            await read(opened(house))
    assert [lane.breaker.phase for lane in house.lanes] == ["open", "open"]


async def test_a_probe_lets_others_in_at_its_first_response(house: RouterHouse) -> None:
    await house.drop(("default", "e1"))
    (stream,) = (Streamed(upstream) for upstream in [house.upstreams["http://h:8000"]])
    stream.count, stream.error = 0, failed()
    for _ in range(6):
        with pytest.raises((EndpointFailed, NoReadyEndpoint)):
            await read(opened(house))
    house.clock.now += 3600
    stream.count, stream.error = 3, None
    probe = opened(house)
    await anext(probe)
    assert house.lanes[0].breaker.phase == "closed"
    await probe.aclose()


async def test_whoever_stops_reading_closes_what_lies_behind(house: RouterHouse) -> None:
    both = streams(house)
    responses = opened(house)
    await anext(responses)
    assert [lane.in_flight for lane in house.lanes] in ([0, 1], [1, 0])
    await responses.aclose()
    assert sum(each.closed for each in both) == 1
    assert [lane.in_flight for lane in house.lanes] == [0, 0]
    attempts = house.counted("headrace_endpoint_attempts_total")
    assert [key[-1] for key, value in attempts.items() if value] == ["cancelled"]
    assert [lane.breaker.phase for lane in house.lanes] == ["closed", "closed"]


async def test_a_cancelled_reader_closes_what_lies_behind(house: RouterHouse) -> None:
    both = streams(house)
    for each in both:
        each.waits = asyncio.get_running_loop().create_future()
    reading = asyncio.ensure_future(read(opened(house)))
    await turns()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert sum(each.closed for each in both) == 1
    assert [lane.in_flight for lane in house.lanes] == [0, 0]


async def test_an_open_stream_counts_as_a_request_under_way(house: RouterHouse) -> None:
    streams(house)
    first, second = opened(house), opened(house)
    await anext(first)
    await anext(second)
    assert sum(lane.in_flight for lane in house.lanes) == 2
    await first.aclose()
    await second.aclose()


async def test_what_is_late_already_is_not_begun(house: RouterHouse) -> None:
    both = streams(house)
    with pytest.raises(DeadlineExceeded):
        await read(opened(house, call=Call("id", deadline=house.clock.now)))
    assert not any(each.upstream.asked for each in both)


async def test_a_deadline_in_mid_stream_is_the_clients_to_hear_of(house: RouterHouse) -> None:
    call = Call("id", deadline=house.clock.now + 1)
    for each in streams(house):
        each.count, each.error = 1, EndpointTimeout("late")
    responses = opened(house, call=call)
    await anext(responses)
    house.clock.now += 1
    with pytest.raises(DeadlineExceeded):
        await anext(responses)


async def test_what_an_endpoint_says_of_the_request_is_not_tried_elsewhere(
    house: RouterHouse,
) -> None:
    both = streams(house)
    for each in both:
        each.count, each.error = 0, InvalidRequest("no")
    with pytest.raises(InvalidRequest):
        await read(opened(house))
    assert sum(len(each.upstream.asked) for each in both) == 1


async def test_a_routes_streams_bear_its_name_and_its_targets(house: RouterHouse) -> None:
    both = streams(house)
    shadow = Shadow(target=Target(model="m", version="9"))
    route = Route(
        tenant="default", name="r", targets=(Target(model="m", version="2", name="new"),),
        shadows=(shadow,), created_at=AT, updated_at=AT,
    )  # fmt: skip
    house.catalogue.entries["default", "r"] = Entry(route=route)
    house.catalogue.changed(("route", route.key))
    seen = [(x.model, x.target) async for x in opened(house, "r")]
    assert seen == [("r", "new")] * 3
    await turns()
    (request,) = [request for each in both for request, _ in each.upstream.asked]
    assert (request.model, request.version) == ("m", "2")
    assert house.counted("headrace_route_requests_total") == {("default", "r", "new", "ok"): 1.0}


async def test_a_models_alias_is_resolved_for_streams_too(house: RouterHouse) -> None:
    both = streams(house)
    house.catalogue.entries["default", "m"] = Entry(aliases={"champion": "4"})
    house.catalogue.changed(("alias", ("default", "m", "champion")))
    request = InferRequest("m", "champion", decoded=InferContent([]))
    async for _ in house.router.stream(request, Call("id")):
        pass
    (asked,) = [request for each in both for request, _ in each.upstream.asked]
    assert asked.version == "4"


async def test_what_this_process_has_is_streamed_here(house: RouterHouse) -> None:
    both = streams(house)
    with pytest.raises(UnknownModel, match="no folders"):
        await read(opened(house, "folders"))
    assert not any(each.upstream.asked for each in both)
