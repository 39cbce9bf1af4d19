from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from headrace.domain.calls import Call, Principal, TraceContext
from headrace.domain.errors import (
    DeadlineExceeded,
    Forbidden,
    HeadraceError,
    InvalidRequest,
    ModelNotReady,
    Overloaded,
    QueueFull,
    RateLimited,
    ShuttingDown,
    UnknownModel,
)
from headrace.domain.idempotency import IdempotencyKey, Once
from headrace.domain.inference import DeadlineOf, InferRequest, InferResponse
from headrace.domain.scopes import EVERYTHING, grants
from headrace.domain.standing import Standing
from headrace.domain.tensors import InferContent, Parameters, Tensor
from headrace.gateway.admission import Admission, AdmissionSettings
from headrace.gateway.gateway import Gateway
from headrace.gateway.limits import LimitPolicy, Limits, LimitSettings
from headrace.gateway.metrics import GatewayMetrics
from headrace.gateway.settings import GatewaySettings
from headrace.ports.inference import Responses
from headrace.ports.limiter import Charge, Spent, Taken
from headrace.telemetry.metrics import Metrics
from tests.support.waiting import until

Answer: TypeAlias = Callable[[InferRequest, Call], Awaitable[InferResponse]]

LABELS = ("model", "version", "outcome")
RECEIVED = 100.0
DEFAULT_S, MAX_S = 5.0, 20.0


async def _version_7(request: InferRequest, _: Call) -> InferResponse:
    return InferResponse(request.model, "7", [])


def _failing(error: BaseException) -> Answer:
    async def infer(_: InferRequest, __: Call) -> InferResponse:
        raise error

    return infer


class Behind:
    """The service behind the gateway; keeps the calls that reach it."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.calls: list[Call] = []
        self.closed = 0

    async def infer(self, request: InferRequest, call: Call) -> InferResponse:
        self.calls.append(call)
        return await self.answer(request, call)

    async def stream(self, request: InferRequest, call: Call) -> Responses:
        """The answer twice; closed by whoever opened it."""
        self.calls.append(call)
        try:
            for _ in range(2):
                yield await self.answer(request, call)
        finally:
            self.closed += 1


class House:
    """A gateway, what is behind it, and a clock that stands still."""

    def __init__(
        self,
        answer: Answer = _version_7,
        *,
        admission: AdmissionSettings | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.behind = Behind(answer)
        self.now = RECEIVED
        self.metrics = Metrics(version="test")
        gates = GatewayMetrics(self.metrics)
        self.gateway = Gateway(
            self.behind,
            settings=GatewaySettings(default_timeout_s=DEFAULT_S, max_timeout_s=MAX_S),
            admission=Admission(
                admission or AdmissionSettings(), count_refusal=gates.count_refusal
            ),
            limits=limits,
            metrics=gates,
            clock=lambda: self.now,
        )

    async def infer(
        self,
        parameters: Parameters | None = None,
        *,
        deadline: float = math.inf,
        priority: int = 0,
        model: str = "m",
        version: str = "",
    ) -> InferResponse:
        content = InferContent([], parameters=parameters or {})
        call = Call("id", received=RECEIVED, deadline=deadline, priority=priority)
        return await self.gateway.infer(InferRequest(model, version, decoded=content), call)

    def stream(self, parameters: Parameters | None = None, model: str = "m") -> Responses:
        content = InferContent([], parameters=parameters or {})
        request = InferRequest(model, decoded=content)
        return self.gateway.stream(request, Call("id", received=RECEIVED))

    async def passed_on(
        self, parameters: Parameters | None = None, *, deadline: float = math.inf, priority: int = 0
    ) -> Call:
        await self.infer(parameters, deadline=deadline, priority=priority)
        return self.behind.calls[-1]

    async def refusal(self, parameters: Parameters | None = None, **call: Any) -> HeadraceError:
        with pytest.raises(HeadraceError) as caught:
            await self.infer(parameters, **call)
        return caught.value

    def samples(self, family: str) -> dict[tuple[str, ...], float]:
        """A metric's values (of a histogram its counts), by LABELS."""
        families = text_string_to_metric_families(self.metrics.render()[0].decode())
        return {
            tuple(sample.labels[n] for n in LABELS if n in sample.labels): sample.value
            for each in families
            if each.name == family
            for sample in each.samples
            if sample.name.endswith(("_total", "_count", "in_flight"))
        }

    def outcomes(self) -> dict[tuple[str, ...], float]:
        return self.samples("headrace_requests")


# The deadline


async def test_a_request_without_a_wish_gets_the_default() -> None:
    assert (await House().passed_on()).deadline == RECEIVED + DEFAULT_S


@pytest.mark.parametrize(
    ("timeout_us", "deadline", "granted_s"),
    [
        (2_000_000, math.inf, 2.0),
        (0, RECEIVED + 3.0, 3.0),
        (2_000_000, RECEIVED + 3.0, 2.0),
        (4_000_000, RECEIVED + 3.0, 3.0),
        (10_000_000, math.inf, 10.0),  # a wish may be longer than the default
        (60_000_000, RECEIVED + 70.0, MAX_S),
        (0, RECEIVED + 70.0, MAX_S),
        (2**63 - 1, math.inf, MAX_S),
        (1, math.inf, 1e-6),
    ],
)
async def test_the_smallest_wish_wins_within_the_maximum(
    timeout_us: int, deadline: float, granted_s: float
) -> None:
    call = await House().passed_on({"timeout": timeout_us}, deadline=deadline)
    assert call.deadline == pytest.approx(RECEIVED + granted_s, abs=1e-9)


async def test_the_time_runs_from_when_the_request_was_received() -> None:
    house = House()
    house.now = RECEIVED + 1.0
    assert (await house.passed_on({"timeout": 2_000_000})).deadline == RECEIVED + 2.0


async def test_a_timeout_of_0_is_no_wish() -> None:
    assert (await House().passed_on({"timeout": 0})).deadline == RECEIVED + DEFAULT_S


async def test_a_64_bit_number_may_come_as_a_string() -> None:
    call = await House().passed_on({"timeout": "3000000", "priority": "2"})
    assert (call.deadline, call.priority) == (RECEIVED + 3.0, 2)


@pytest.mark.parametrize("deadline", [RECEIVED, RECEIVED - 1.0])
async def test_a_deadline_that_has_passed_goes_no_further(deadline: float) -> None:
    house = House()
    assert isinstance(await house.refusal(deadline=deadline), DeadlineExceeded)
    assert house.behind.calls == []


# The rest of the call


async def test_a_requests_own_priority_comes_before_the_calls() -> None:
    house = House()
    assert (await house.passed_on({"priority": 1}, priority=3)).priority == 1
    assert (await house.passed_on({"priority": 0}, priority=3)).priority == 3
    assert (await house.passed_on(priority=3)).priority == 3
    assert (await house.passed_on()).priority == 0


async def test_who_calls_and_under_which_trace_is_passed_on() -> None:
    house = House()
    trace = TraceContext("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    call = Call("r-1", Principal("alice", "blue", EVERYTHING), received=RECEIVED, trace=trace)
    await house.gateway.infer(InferRequest("m", decoded=InferContent([])), call)
    (passed,) = house.behind.calls
    assert (passed.request_id, passed.principal, passed.trace) == ("r-1", call.principal, trace)
    assert passed.received == RECEIVED


async def test_nothing_that_a_call_brings_along_is_lost_on_the_way() -> None:
    house = House()
    call = Call(
        "r-1",
        Principal("alice", "blue", EVERYTHING),
        received=RECEIVED,
        deadline=RECEIVED + 1,
        priority=2,
        trace=TraceContext("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        wished=True,
        address="192.0.2.1",
        batch=True,
        once=Once(IdempotencyKey("blue", "alice", "k"), "h"),
        headers={b"x-tier": b"gold"},
    )
    usual = Call("")
    unlike = [getattr(call, name) != getattr(usual, name) for name in Call.__struct_fields__]
    assert all(unlike), "a field that is new must be in this call too"
    await house.gateway.infer(InferRequest("m", decoded=InferContent([])), call)
    assert house.behind.calls == [call]


@pytest.mark.parametrize("key", ["timeout", "priority"])
@pytest.mark.parametrize(
    "value",
    [-1, 1.5, 2.0, True, None, "", "-1", "soon", "1e3", "9" * 20, "9" * 5000, 2**63, [1], {"a": 1}],
    ids=lambda value: repr(value)[:24],
)
async def test_a_malformed_number_is_refused_by_name(key: str, value: object) -> None:
    house = House()
    error = await house.refusal({key: value})
    assert isinstance(error, InvalidRequest)
    assert error.message == f"parameters.{key}: expected a whole number >= 0"
    assert house.behind.calls == []


# Draining


async def test_a_gateway_that_drains_takes_nothing_new_and_says_when_to_come_back() -> None:
    house = House()
    house.gateway.draining = True
    error = await house.refusal()
    assert isinstance(error, ShuttingDown)
    assert error.retry_after_s is not None
    assert error.retry_after_s > 0
    assert house.behind.calls == []


async def test_what_is_under_way_when_draining_begins_is_finished() -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    async def slow(request: InferRequest, _: Call) -> InferResponse:
        entered.set()
        await leave.wait()
        return InferResponse(request.model, "7", [])

    house = House(slow)
    under_way = asyncio.create_task(house.infer())
    await entered.wait()
    house.gateway.draining = True
    leave.set()
    assert (await under_way).version == "7"


# Metrics


async def test_requests_are_counted_by_outcome_under_the_version_that_ran() -> None:
    house = House()
    await house.infer()
    await house.infer(version="7")
    house.behind.answer = _failing(QueueFull("full"))
    await house.refusal(version="3")
    house.behind.answer = _failing(ModelNotReady("it loads"))
    await house.refusal()
    assert house.outcomes() == {
        ("m", "7", "ok"): 2,
        ("m", "3", "queue_full"): 1,
        ("m", "", "model_not_ready"): 1,
    }
    assert house.samples("headrace_request_seconds") == house.outcomes()


async def test_the_time_that_is_observed_ends_with_the_answer() -> None:
    house = House()

    async def takes_2_s(request: InferRequest, _: Call) -> InferResponse:
        house.now += 2.0
        return InferResponse(request.model, "7", [])

    house.behind.answer = takes_2_s
    await house.infer()
    assert (
        b'headrace_request_seconds_sum{model="m",outcome="ok",version="7"} 2.0'
        in (house.metrics.render()[0])
    )


async def test_names_of_unknown_models_make_no_series() -> None:
    house = House(_failing(UnknownModel("not found")))
    for i in range(3):
        await house.refusal(model=f"guess-{i}", version="1")
    assert house.outcomes() == {("", "", "model_not_found"): 3}


@pytest.mark.parametrize(
    ("parameters", "deadline"), [({"timeout": -1}, math.inf), ({}, RECEIVED - 1.0)]
)
async def test_requests_that_never_reach_the_router_make_no_series(
    parameters: Parameters, deadline: float
) -> None:
    house = House(_failing(UnknownModel("not found")))
    for i in range(3):
        await house.refusal(parameters, deadline=deadline, model=f"guess-{i}")
    assert len(house.outcomes()) == 1


async def test_a_request_that_is_given_up_is_counted_as_cancelled() -> None:
    entered = asyncio.Event()

    async def never(_: InferRequest, __: Call) -> InferResponse:
        entered.set()
        await asyncio.Event().wait()
        raise AssertionError

    house = House(never)
    given_up = asyncio.create_task(house.infer())
    await entered.wait()
    assert house.samples("headrace_requests_in_flight") == {(): 1}
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    assert house.outcomes() == {("m", "", "cancelled"): 1}
    assert house.samples("headrace_requests_in_flight") == {(): 0}


async def test_a_fault_of_ours_is_counted_as_internal_and_raised() -> None:
    house = House(_failing(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        await house.infer()
    assert house.outcomes() == {("m", "", "internal"): 1}
    assert house.samples("headrace_requests_in_flight") == {(): 0}


# Who may run what


async def test_a_caller_runs_the_models_that_its_scopes_name_and_no_others() -> None:
    house = House()
    caller = Principal("alice", grants=grants(["infer:fraud-*", "models:read"]))
    call = Call("id", caller, received=RECEIVED)
    request = InferRequest("fraud-2", decoded=InferContent([]))
    assert (await house.gateway.infer(request, call)).model == "fraud-2"
    with pytest.raises(Forbidden, match="needs the scope infer or infer:other"):
        await house.gateway.infer(InferRequest("other", decoded=InferContent([])), call)
    assert [c.principal for c in house.behind.calls] == [caller]


@pytest.mark.parametrize("scopes", [[], ["models:write"], ["batch"], ["infer:"], ["infer:M"]])
async def test_without_the_scope_nothing_is_run_and_nothing_is_spent(scopes: list[str]) -> None:
    limits = FakeLimiter()
    house = House(limits=limits.of(_PER_PRINCIPAL))
    call = Call("id", Principal("alice", grants=grants(scopes)), received=RECEIVED)
    with pytest.raises(Forbidden):
        await house.gateway.infer(InferRequest("m", decoded=InferContent([])), call)
    assert limits.taken == []
    assert house.behind.calls == []


# How much

_PER_PRINCIPAL = LimitPolicy(name="usual", quota=10, window_s=60)
_ROWS = LimitPolicy(name="rows", quota=100, unit="rows", models="*")


class FakeLimiter:
    """Answers what it is told, at once or later, and keeps what was asked."""

    degraded = False

    def __init__(self, *answers: Spent, later: bool = False) -> None:
        self.answers = answers or (Spent(allowed=True, remaining=9, reset_s=6.0),)
        self.later = later
        self.taken: list[tuple[str, int]] = []

    def of(self, *policies: LimitPolicy) -> Limits:
        refused: list[str] = []
        return Limits(
            LimitSettings(policies=list(policies)), limiter=self, count_refusal=refused.append
        )

    def take(self, charges: Sequence[Charge]) -> Taken | asyncio.Future[Taken]:
        self.taken += [(charge.bucket, charge.units) for charge in charges]
        if not self.later:
            return self.answers
        future: asyncio.Future[Taken] = asyncio.get_running_loop().create_future()
        future.set_result(self.answers)
        return future

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("later", [False, True])
async def test_an_answer_tells_how_its_caller_stands(later: bool) -> None:  # noqa: FBT001 - a case
    house = House(limits=FakeLimiter(later=later).of(_PER_PRINCIPAL))
    response = await house.infer()
    assert list(response.standings) == [Standing("usual", 10, 60, 9, 6.0, 10)]


@pytest.mark.parametrize("later", [False, True])
async def test_what_is_over_the_limit_goes_no_further(later: bool) -> None:  # noqa: FBT001 - a case
    house = House(
        limits=FakeLimiter(
            Spent(allowed=False, remaining=0, reset_s=60.0, retry_after_s=6.0), later=later
        ).of(_PER_PRINCIPAL)
    )
    error = await house.refusal()
    assert isinstance(error, RateLimited)
    assert error.retry_after_s == 6.0
    assert [standing.remaining for standing in error.standings] == [0]
    assert house.behind.calls == []
    assert house.outcomes() == {("", "", "rate_limited"): 1}


async def test_a_failure_behind_tells_of_the_limits_too() -> None:
    house = House(_failing(QueueFull("full")), limits=FakeLimiter().of(_PER_PRINCIPAL))
    assert [standing.policy for standing in (await house.refusal()).standings] == ["usual"]


@pytest.mark.parametrize(
    ("shape", "units"), [((7, 3), [1, 6]), ((1, 4), [1]), ((5,), [1]), ((), [1]), ((0, 4), [1])]
)
async def test_rows_are_what_the_first_axis_of_a_batch_says(
    shape: tuple[int, ...], units: list[int]
) -> None:
    limiter = FakeLimiter()
    house = House(limits=limiter.of(_ROWS))
    content = InferContent([Tensor("x", "FP32", np.zeros(shape, dtype=np.float32))])
    await house.gateway.infer(InferRequest("m", decoded=content), Call("id", received=RECEIVED))
    assert [spent for _, spent in limiter.taken] == units


class Packed:
    """A body that is compressed, and tells when somebody undoes that."""

    size_bytes = 0

    def __init__(self, rows: int | None = 3) -> None:
        self.unpacked = False
        self._rows = rows

    async def unpack(self, _: DeadlineOf) -> None:
        self.unpacked = True

    def rows(self) -> int | None:
        assert self.unpacked
        return self._rows

    def parameters(self) -> Parameters:
        assert self.unpacked
        return {}

    def decode(self) -> InferContent:
        raise AssertionError("the gateway looks at no tensor")


def _packed(body: Packed, principal: Principal | None = None) -> tuple[InferRequest, Call]:
    caller = principal or Principal("alice", grants=EVERYTHING)
    return InferRequest("m", payload=body, unpack=body.unpack), Call("id", caller, RECEIVED)


async def test_a_body_is_unpacked_before_it_is_looked_at() -> None:
    limiter, body = FakeLimiter(), Packed()
    await House(limits=limiter.of(_ROWS)).gateway.infer(*_packed(body))
    assert [units for _, units in limiter.taken] == [1, 2]


async def test_what_is_refused_is_not_unpacked_before() -> None:
    refused = FakeLimiter(Spent(allowed=False, remaining=0, reset_s=9.0, retry_after_s=9.0))
    cases = [
        (House(), _packed(body := Packed(), Principal("alice"))),
        (House(limits=refused.of(_ROWS)), _packed(body)),
    ]
    for house, asked in cases:
        with pytest.raises((Forbidden, RateLimited)):
            await house.gateway.infer(*asked)
        assert not body.unpacked


async def test_where_rows_are_counted_a_body_must_tell_them() -> None:
    with pytest.raises(InvalidRequest, match="send its shape along"):
        await House(limits=FakeLimiter().of(_ROWS)).gateway.infer(*_packed(Packed(None)))
    await House().gateway.infer(*_packed(Packed(None)))


async def test_management_is_counted_by_the_limits_that_are_not_for_models() -> None:
    limiter = FakeLimiter()
    house = House(limits=limiter.of(_PER_PRINCIPAL, _ROWS))
    await house.gateway.spend(Principal("alice"), "10.0.0.1")
    assert limiter.taken == [("usual/p/default/token/alice", 1)]
    assert await House().gateway.spend(Principal("alice"), "") == ()


# How many at a time


async def test_a_place_is_given_back_however_a_request_ends() -> None:
    house = House(admission=AdmissionSettings(max_concurrent=1, max_waiting=0))
    for answer in (_failing(QueueFull("full")), _failing(RuntimeError("defect")), _version_7):
        house.behind.answer = answer
        try:
            await house.infer()
        except (QueueFull, RuntimeError):
            continue
    assert house.outcomes()["m", "7", "ok"] == 1


async def test_who_waits_and_is_cancelled_leaves_its_place_to_others() -> None:
    leave = asyncio.Event()

    async def slow(request: InferRequest, _: Call) -> InferResponse:
        await leave.wait()
        return InferResponse(request.model, "7", [])

    house = House(slow, admission=AdmissionSettings(max_concurrent=1, max_wait_s=60.0))
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(house.infer())
        await until(lambda: len(house.behind.calls) == 1)
        second = tasks.create_task(house.infer())
        third = tasks.create_task(house.infer())
        await asyncio.sleep(0)
        second.cancel()
        leave.set()
        assert (await third).version == "7"
        assert (await first).version == "7"
    assert house.outcomes()["", "", "cancelled"] == 1


async def test_who_is_not_let_in_is_told_so_and_counted() -> None:
    leave = asyncio.Event()

    async def slow(request: InferRequest, _: Call) -> InferResponse:
        await leave.wait()
        return InferResponse(request.model, "7", [])

    house = House(slow, admission=AdmissionSettings(max_concurrent=1, max_waiting=0))
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(house.infer())
        await until(lambda: len(house.behind.calls) == 1)
        error = await house.refusal()
        assert isinstance(error, Overloaded)
        assert error.retry_after_s == 1.0
        leave.set()
        await first
    assert house.outcomes()["", "", "overloaded"] == 1
    assert b'headrace_admission_refusals_total{code="overloaded"} 1.0' in house.metrics.render()[0]


# Streams


async def test_a_stream_is_one_request_that_is_charged_once_and_has_a_deadline() -> None:
    limiter = FakeLimiter()
    house = House(limits=limiter.of(_PER_PRINCIPAL))
    responses = [response async for response in house.stream({"timeout": 2_000_000})]
    assert [response.version for response in responses] == ["7", "7"]
    assert [list(response.standings) for response in responses] == [
        [Standing("usual", 10, 60, 9, 6.0, 10)]
    ] * 2
    assert len(limiter.taken) == 1
    assert [call.deadline for call in house.behind.calls] == [RECEIVED + 2.0]
    assert house.outcomes() == {("m", "7", "ok"): 1}


async def test_what_may_not_be_streamed_goes_no_further() -> None:
    house = House()
    request = InferRequest("m", decoded=InferContent([]))
    stranger = Principal("alice", grants=grants(["infer:other"]))
    with pytest.raises(Forbidden):
        await anext(house.gateway.stream(request, Call("id", stranger, received=RECEIVED)))
    house.gateway.draining = True
    with pytest.raises(ShuttingDown):
        await anext(house.stream())
    assert house.behind.calls == []


async def test_a_stream_that_is_over_the_limit_goes_no_further() -> None:
    spent = Spent(allowed=False, remaining=0, reset_s=60.0, retry_after_s=6.0)
    house = House(limits=FakeLimiter(spent).of(_PER_PRINCIPAL))
    with pytest.raises(RateLimited):
        await anext(house.stream())
    assert house.behind.calls == []


async def test_a_stream_has_its_place_until_it_is_closed() -> None:
    house = House(admission=AdmissionSettings(max_concurrent=1, max_waiting=0))
    first = house.stream()
    await anext(first)
    assert house.samples("headrace_requests_in_flight") == {(): 1}
    with pytest.raises(Overloaded):
        await anext(house.stream())
    await first.aclose()
    assert house.behind.closed == 1
    assert house.samples("headrace_requests_in_flight") == {(): 0}
    assert [response.version async for response in house.stream()] == ["7", "7"]
    assert house.outcomes() == {
        ("m", "7", "cancelled"): 1,
        ("", "", "overloaded"): 1,
        ("m", "7", "ok"): 1,
    }


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (QueueFull("full"), ("m", "", "queue_full")),
        (UnknownModel("no such model"), ("", "", "model_not_found")),
        (RuntimeError("defect"), ("m", "", "internal")),
    ],
)
async def test_what_breaks_a_stream_off_is_counted_and_raised(
    error: Exception, outcome: tuple[str, str, str]
) -> None:
    house = House(_failing(error), limits=FakeLimiter().of(_PER_PRINCIPAL))
    with pytest.raises(type(error)):
        await anext(house.stream())
    assert house.behind.closed == 1
    assert house.outcomes() == {outcome: 1}
    assert house.samples("headrace_requests_in_flight") == {(): 0}
