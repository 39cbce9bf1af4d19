"""Endpoints that fail in every way there is, behind a platform's process."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_network
from random import Random
from typing import Any, Final

import pytest

from headrace.compose.siting import Siting
from headrace.compose.upstreams import Upstreams
from headrace.domain.calls import OPERATOR
from headrace.domain.catalog import Endpoint
from headrace.ports.upstream import Address
from headrace.registry.registry import utc_now
from headrace.router.configured import ConfiguredCatalogue, NoRegistry
from headrace.router.endpoint_metrics import EndpointMetrics
from headrace.router.endpoint_statistics import EndpointStatistics
from headrace.router.fleet import Fleet
from headrace.router.settings import RouterSettings
from headrace.settings import Settings
from headrace.telemetry.metrics import Metrics
from tests.support.process import Server, eventually, serving
from tests.support.raw_http import RawClient, request
from tests.support.registry_api import Api
from tests.support.remote_model import JSON, RemoteModel
from tests.support.stub_faults import (
    AnswerEarly,
    Drip,
    Extra,
    Fault,
    Flaky,
    Garbage,
    GarbageJson,
    Hang,
    Reset,
    ResetMidBody,
    Status,
    Truncate,
    UntilClose,
    WrongLength,
)
from tests.support.stub_process import stub_process
from tests.support.stub_server import Received, StubServer
from tests.support.stub_thread import StubThread, stub_thread
from tests.support.waiting import until

#: Everything that takes time is over soon; no check but a request tells of a fault.
QUICK: Final = {
    "HEADRACE_BREAKER__OPEN_S": "0.2",
    "HEADRACE_BREAKER__MAX_OPEN_S": "0.5",
    "HEADRACE_HEALTH_CHECKS__INTERVAL_S": "0.2",
    "HEADRACE_HEALTH_CHECKS__TIMEOUT_S": "0.5",
    "HEADRACE_ROUTER__SLOW_START_S": "0",
    "HEADRACE_ROUTER__BALANCER": "round-robin",  # p2c may leave out an endpoint that was slow once
    "HEADRACE_OUTLIERS__ENABLED": "false",
    "HEADRACE_LOG__ACCESS": "all",
}
#: What a busy machine may add to a time.
LATE_S: Final = 0.5

_numbers: Final = itertools.count()


@pytest.fixture(scope="module")
def stubs() -> Iterator[StubThread]:
    with stub_thread(3) as running:
        yield running


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(None, tmp_path_factory.mktemp("faults") / "log", environment=QUICK) as server:
        Api(server).do("GET", "endpoints")  # its first request imports what they all need
        yield server


@pytest.fixture
def model(platform: Server) -> RemoteModel:
    return RemoteModel(platform, f"f{next(_numbers)}")


def inferences(stub: StubServer, model: RemoteModel) -> list[Received]:
    """What the stub was asked for the model, as far as it remembers."""
    return [each for each in stub.seen if each.kind == "infer" and each.model == model.name]


# Killed, hung, slow


def test_the_only_endpoint_killed_is_502_then_503_and_back_after_one_probe(
    model: RemoteModel,
) -> None:
    with stub_process("only") as stub:
        (name,) = model.register(stub.url)
        assert model.ask().status == 200
        stub.kill()
        answers = [model.ask() for _ in range(12)]
        assert {answer.status for answer in answers} == {502, 503}
        assert model.breaker(name)["opened"] >= 1
        for answer in answers:
            assert "127.0.0.1" not in answer.error
            if answer.headers["x-error-code"] == "no_ready_endpoint":
                assert int(answer.headers["retry-after"]) >= 1
        stub.start()
        eventually(lambda: model.ask().status == 200)
        assert model.breaker(name)["phase"] == "closed"


def test_a_hung_endpoint_is_504_at_the_deadline_and_other_models_do_not_notice(
    model: RemoteModel, stubs: StubThread
) -> None:
    other = RemoteModel(model.server, f"{model.name}-other")
    other.register(stubs.fleet[0].url)
    with stub_process("hung") as stub, ThreadPoolExecutor(1) as threads:
        (name,) = model.register(stub.url)
        stub.pause()
        begun = time.monotonic()
        hung = threads.submit(model.ask, request_timeout="0.6")
        eventually(lambda: model.in_flight(name) == 1)
        assert other.ask_often(20) == {"stub-0": 20}
        answer = hung.result()
        took = time.monotonic() - begun
        stub.resume()
        assert (answer.status, answer.headers["x-error-code"]) == (504, "deadline_exceeded")
        assert 0.5 <= took <= 0.6 + LATE_S
        eventually(lambda: model.in_flight(name) == 0)
        eventually(lambda: model.ask().status == 200)


def test_an_answer_that_drips_is_504_by_the_total_deadline(
    model: RemoteModel, stubs: StubThread
) -> None:
    stub = stubs.fleet[0]
    stub.model_faults[model.name] = Drip(50.0)
    (name,) = model.register(stub.url)
    aborted, begun = stub.aborted, time.monotonic()
    answer = model.ask(request_timeout="0.4")
    assert answer.status == 504
    assert 0.3 <= time.monotonic() - begun <= 0.4 + LATE_S
    eventually(lambda: stub.aborted == aborted + 1, timeout_s=1)
    assert model.in_flight(name) == 0


# Storms


def test_retries_in_a_storm_are_a_fifth_of_the_requests_at_most(
    model: RemoteModel, stubs: StubThread
) -> None:
    for stub in stubs.fleet:
        stub.model_faults[model.name] = Flaky(0.45, Status(500))
    model.register(*stubs.fleet.urls)
    model.ask_at_once(4, 75)
    attempts = sum(stub.inferences[model.name, ""] for stub in stubs.fleet)
    assert attempts <= 1.2 * 300 + 3
    assert model.attempts() == attempts
    retried = model.server.metric("headrace_endpoint_retries_total", model=model.name)
    assert 0 < retried <= 60
    assert model.server.metric("headrace_endpoint_retries_refused_total", model=model.name) > 0


def test_with_all_endpoints_down_callers_are_told_when_to_come_back(
    model: RemoteModel, stubs: StubThread
) -> None:
    for stub in stubs.fleet:
        stub.model_faults[model.name] = Status(503)
    names = model.register(*stubs.fleet.urls)
    answers = [model.ask() for _ in range(40)]
    attempts = sum(stub.inferences[model.name, ""] for stub in stubs.fleet)
    assert attempts <= 1.2 * 40 + 3
    refused = [each for each in answers if each.headers["x-error-code"] == "no_ready_endpoint"]
    assert refused
    assert all(each.status == 503 and int(each.headers["retry-after"]) >= 1 for each in refused)
    assert {answer.status for answer in answers} == {502, 503}
    for stub in stubs.fleet:
        stub.model_faults.pop(model.name)

    def all_closed() -> bool:
        model.ask()
        return all(model.breaker(name)["phase"] == "closed" for name in names)

    eventually(all_closed)
    assert model.ask_often(5).keys() <= {"stub-0", "stub-1", "stub-2"}


# Answers that are none

BROKEN: Final = (
    Garbage(),
    WrongLength(5),
    WrongLength(-5, then_close=False),
    Truncate(10),
    Truncate(0),
    Truncate(12, part="head"),
    ResetMidBody(),
    UntilClose(),
)


@pytest.mark.parametrize("fault", BROKEN, ids=repr)
def test_a_broken_answer_is_502_counted_by_the_breaker_and_ends_its_connection(
    model: RemoteModel, stubs: StubThread, fault: Fault
) -> None:
    stub = stubs.fleet[0]
    stub.model_faults[model.name] = fault
    (name,) = model.register(stub.url)
    answer = model.ask(request_timeout="5")
    assert (answer.status, answer.headers["x-error-code"]) == (502, "endpoint_failed")
    asked = inferences(stub, model)
    assert model.attempts(outcome="endpoint_failed") == model.attempts() == len(asked)
    assert model.breaker(name)["consecutive_failures"] == len(asked)
    stub.model_faults.pop(model.name)
    assert model.ask().status == 200
    used = [each.connection for each in inferences(stub, model)]
    assert len(set(used)) == len(used), "no connection was used again behind a broken answer"


def test_a_200_that_is_no_inference_response_is_502(model: RemoteModel, stubs: StubThread) -> None:
    stub = stubs.fleet[0]
    stub.model_faults[model.name] = GarbageJson()
    (name,) = model.register(stub.url)
    answer = model.ask()
    assert (answer.status, answer.headers["x-error-code"]) == (502, "endpoint_failed")
    assert b"nonsense" not in answer.body
    assert model.breaker(name)["consecutive_failures"] == len(inferences(stub, model))


def test_what_comes_behind_an_answer_is_nobodys_answer(
    model: RemoteModel, stubs: StubThread
) -> None:
    stub = stubs.fleet[0]
    stub.model_faults[model.name] = Extra()
    model.register(stub.url)
    answer = model.ask()
    assert answer.status == 502, "whoever sends more than was asked cannot be believed"
    assert b"leak" not in answer.body
    stub.model_faults.pop(model.name)
    assert model.ask_often(1) == {"stub-0": 1}
    used = [each.connection for each in inferences(stub, model)]
    assert len(set(used)) == len(used)


@pytest.mark.parametrize(
    "fault", [Reset(), Reset(during_upload=True), ResetMidBody(), Truncate(10)], ids=repr
)
def test_what_one_endpoint_breaks_off_another_answers_whole(
    model: RemoteModel, stubs: StubThread, fault: Fault
) -> None:
    names = model.register(*stubs.fleet.urls[:2])
    assert model.ask_often(40).total() == 40  # a share of them is what may be tried again
    well = model.attempts(names[0], "ok")
    stubs.fleet[0].model_faults[model.name] = fault
    assert model.ask_at_once(2, 30) == {"stub-1": 60}
    failed = model.attempts(names[0], "endpoint_failed")
    assert 1 <= failed == model.attempts(names[0]) - well
    assert model.server.metric("headrace_endpoint_retries_total", model=model.name) == failed


def test_an_answer_before_the_end_of_the_upload_is_taken_and_its_connection_is_not_used_again(
    model: RemoteModel, stubs: StubThread
) -> None:
    stub = stubs.fleet[0]
    stub.model_faults[model.name] = AnswerEarly(413)
    model.register(stub.url)
    body = JSON[:-1] + " " * 6_000_000 + "}"
    path = f"/v2/models/{model.name}/infer"
    for _ in range(2):
        answer = model.server.request("POST", path, body, timeout_s=5)
        # it depends on how much of the request the kernel took before the answer came
        assert answer.status in {413, 502}
    stub.model_faults.pop(model.name)
    assert model.ask().status == 200


# Clients and their circumstances


def test_an_endpoint_is_told_at_once_when_the_client_is_gone(
    model: RemoteModel, stubs: StubThread
) -> None:
    stub = stubs.fleet[0]
    stub.model_faults[model.name] = Hang()
    (name,) = model.register(stub.url)
    aborted = stub.aborted
    with RawClient(model.server.port) as client:
        client.send(request("POST", f"/v2/models/{model.name}/infer", JSON.encode()))
        eventually(lambda: inferences(stub, model))
        assert model.in_flight(name) == 1
    eventually(lambda: stub.aborted == aborted + 1, timeout_s=1 + LATE_S)
    eventually(lambda: model.in_flight(name) == 0, timeout_s=1 + LATE_S)
    assert len(inferences(stub, model)) == 1
    breaker = model.breaker(name)
    assert (breaker["phase"], breaker["consecutive_failures"]) == ("closed", 0)
    assert model.attempts(outcome="cancelled") == model.attempts() == 1
    eventually(lambda: 499 in statuses(model))
    eventually(lambda: model.server.metric("headrace_requests_in_flight") == 0)


def statuses(model: RemoteModel) -> list[int]:
    """What the access log says of the model's requests."""
    lines = [line for line in model.server.log() if line["logger"] == "headrace.access"]
    return [line["status"] for line in lines if line.get("model") == model.name]


def test_the_deadline_and_the_trace_go_on_to_the_endpoint(
    model: RemoteModel, stubs: StubThread
) -> None:
    model.register(stubs.fleet[0].url)
    trace = "0af7651916cd43dd8448eb211c80319c"
    answer = model.ask(
        request_timeout="7", traceparent=f"00-{trace}-b7ad6b7169203331-01", x_request_id="mine"
    )
    assert answer.status == 200
    (received,) = inferences(stubs.fleet[0], model)
    assert 6 < float(received.headers["request-timeout"]) <= 7
    version, same, span, flags = received.headers["traceparent"].split("-")
    assert (version, same, flags) == ("00", trace, "01")
    assert span != "0" * 16
    assert received.headers["x-request-id"] == "mine"
    assert "authorization" not in received.headers


def test_a_deadline_too_short_for_any_endpoint_opens_no_breaker(
    model: RemoteModel, stubs: StubThread
) -> None:
    stub = stubs.fleet[0]
    stub.model_faults[model.name] = Hang()
    (name,) = model.register(stub.url)
    for _ in range(8):
        assert model.ask(request_timeout="0.02").status == 504
    assert model.breaker(name)["phase"] == "closed"


# Where endpoints are


def test_an_endpoint_may_be_known_by_a_name(model: RemoteModel, stubs: StubThread) -> None:
    (name,) = model.register(f"http://localhost:{stubs.fleet[0].port}", wait=False)
    address = f"127.0.0.1:{stubs.fleet[0].port}"
    eventually(lambda: address in [each["address"] for each in model.addresses(name)])
    assert model.ask_often(5) == {"stub-0": 5}


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "192.0.2.1", "[::ffff:192.0.2.1]", "3221225985"]
)
def test_an_address_that_is_not_allowed_cannot_be_registered(model: RemoteModel, host: str) -> None:
    refused = model.api.call("POST", "endpoints", {"name": "out", "url": f"http://{host}:9"})
    assert refused.status == 400


async def test_a_name_is_followed_to_new_addresses_and_never_out_of_the_networks() -> None:
    answers: Sequence[Address] = [ip_address("127.0.0.1")]

    async def resolve(host: str, port: int) -> Sequence[Address]:
        del host, port
        if not answers:
            raise OSError("no such name")
        return answers

    own = Endpoint(
        tenant=OPERATOR, name="named", url="http://models.test:9", models=("m",),
        created_at=utc_now(), updated_at=utc_now(),
    )  # fmt: skip
    settings = Settings(router=RouterSettings(dns_refresh_s=0.01))
    async with running(settings, own, resolve) as fleet:

        def at() -> list[str]:
            state = fleet.state(*own.key)
            return [] if state is None else sorted(each.address for each in state.addresses)

        await until(lambda: at() == ["127.0.0.1:9"])
        answers = [ip_address("127.0.0.2"), ip_address("127.0.0.3")]
        await until(lambda: at() == ["127.0.0.2:9", "127.0.0.3:9"])
        answers = []
        await until(lambda: fleet.events(*own.key)[0].kind == "unresolved")
        assert at() == ["127.0.0.2:9", "127.0.0.3:9"], "where it was, it may still be"
        answers = [ip_address("127.0.0.2"), ip_address("192.0.2.1")]
        await until(lambda: at() == ["127.0.0.2:9"])
        answers = [ip_address("::ffff:192.0.2.1"), ip_address("169.254.169.254")]
        await until(lambda: at() == [])
        state = fleet.state(*own.key)
        assert state is not None
        assert "outside the allowed networks" in state.problem
        refused = [e.address for e in fleet.events(*own.key) if e.kind == "address-refused"]
        assert sorted(refused) == ["169.254.169.254", "192.0.2.1"]


@contextlib.asynccontextmanager
async def running(settings: Settings, endpoint: Endpoint, resolve: Any) -> Any:
    """The fleet of one endpoint, its names looked up by `resolve`."""

    def in_process(_: Endpoint) -> Any:
        raise AssertionError("nothing runs here")

    metrics, chance = Metrics(version="test"), Random(1).random
    fleet = Fleet(
        catalogue=ConfiguredCatalogue(NoRegistry(), endpoints=(endpoint,), routes=()),
        shared=[endpoint.key],
        connect=Upstreams(settings, in_process=in_process),
        locate=Siting(allowed=[ip_network("127.0.0.0/8")], resolve=resolve),
        router=settings.router,
        breaker=settings.breaker,
        outliers=settings.outliers,
        health_checks=settings.health_checks,
        retries=settings.retries,
        hedging=settings.hedging,
        metrics=EndpointMetrics(metrics, clock=time.monotonic),
        statistics=EndpointStatistics(
            metrics, settings=settings.health_checks, clock=time.monotonic, chance=chance
        ),
        clock=time.monotonic,
        now=utc_now,
        chance=chance,
    )
    task = asyncio.create_task(fleet.run())
    try:
        yield fleet
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await fleet.close()


# Flaps


def test_a_thousand_flaps_leave_nothing_stuck(model: RemoteModel, stubs: StubThread) -> None:
    names = model.register(*stubs.fleet.urls[:2])
    faults: list[Callable[[], Fault | None]] = [lambda: None, lambda: Status(500), Reset]

    async def flap() -> None:
        for turn in range(1000):
            stub, fault = stubs.fleet[turn % 2], faults[turn % 3]()
            if fault is None:
                stub.model_faults.pop(model.name, None)
            else:
                stub.model_faults[model.name] = fault
            await asyncio.sleep(0.001)

    with model.load(4) as seen:
        stubs.run(flap())
    for stub in stubs.fleet:
        stub.model_faults.pop(model.name, None)
    assert seen.keys() <= {
        "stub-0", "stub-1", "502 endpoint_failed", "503 no_ready_endpoint",
    }, seen  # fmt: skip
    # it answers, and every breaker has had its probe
    eventually(
        lambda: (
            model.ask_often(20).keys() == {"stub-0", "stub-1"}
            and all(model.breaker(name)["phase"] == "closed" for name in names)
        )
    )
    assert [model.in_flight(name) for name in names] == [0, 0]
    assert model.ask_often(20).keys() <= {"stub-0", "stub-1"}
    asked = sum(stub.inferences[model.name, ""] for stub in stubs.fleet)
    # a kept connection that was reset before an answer is asked once more within one attempt
    assert model.attempts() <= asked
