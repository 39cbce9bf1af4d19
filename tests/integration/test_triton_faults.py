"""A real Triton that dies, freezes, restarts and is garbled, behind a platform's process."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import pytest

from tests.support.process import Answer, Server, eventually, serving
from tests.support.raw_http import RawClient, request
from tests.support.registry_api import Api
from tests.support.remote_model import BODY, RemoteModel
from tests.support.tcp_proxy import (
    PASS,
    Drip,
    Fault,
    Garble,
    Length,
    Refuse,
    Reset,
    TcpProxy,
    Truncate,
    tcp_proxy,
)
from tests.support.triton import Triton, running
from tests.support.triton_client import client_of, is_idle, stream_of

#: No check but the first tells of a fault: requests have to.
QUICK: Final = {
    "HEADRACE_BREAKER__OPEN_S": "0.2",
    "HEADRACE_BREAKER__MAX_OPEN_S": "0.5",
    "HEADRACE_ENDPOINT_GRPC__RECONNECT_S": "0.2",
    "HEADRACE_HEALTH_CHECKS__INTERVAL_S": "60",
    "HEADRACE_ROUTER__SLOW_START_S": "0",
    "HEADRACE_ROUTER__BALANCER": "round-robin",  # p2c may leave out an endpoint that was slow once
    "HEADRACE_OUTLIERS__ENABLED": "false",
    "HEADRACE_LOG__ACCESS": "all",
}
MAX_OPEN_S: Final = 0.5
#: What a client may wait beyond its deadline.
LATE_S: Final = 0.25
#: As they are seen by `RemoteModel.ask_often`: the element that `identity` gave back.
OK: Final = "1.0"

_MODELS: Final = ("identity", "slow", "stream", "failing")
_BODIES: Final = {
    "identity": BODY,
    "failing": {"inputs": [{"name": "how", "shape": [1, 1], "datatype": "BYTES", "data": [""]}]},
    "slow": {"inputs": [{"name": "ms", "shape": [1, 1], "datatype": "INT32", "data": [1]}]},
}
_WATCH_S: Final = 0.05

_numbers: Final = itertools.count()


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    with running(tmp_path_factory.mktemp("first"), models=_MODELS) as server:
        yield server


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    with running(tmp_path_factory.mktemp("second"), models=_MODELS) as server:
        yield server


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(None, tmp_path_factory.mktemp("platform") / "log", environment=QUICK) as server:
        Api(server).do("GET", "endpoints")  # its first request imports what they all need
        yield server


@pytest.fixture(params=["rest", "grpc"])
def wire(request: pytest.FixtureRequest) -> str:
    """How the platform asks."""
    return str(request.param)


BY_GRPC: Final = pytest.mark.parametrize("wire", ["grpc"])


class Served(RemoteModel):
    """A model of the Tritons, at endpoints of the test's own."""

    def __init__(self, server: Server, name: str) -> None:
        super().__init__(server, name)
        self._names: list[str] = []

    def at(self, wire: str, *places: Triton | TcpProxy) -> list[str]:
        """Register the places, and wait until all are asked."""
        for place in places:
            name = f"e{next(_numbers)}"
            content = {"name": name, "models": [self.name], **_where(wire, place)}
            self.api.do("POST", "endpoints", content)
            self._names.append(name)
        self.until_ready(self._names)
        return self._names

    def forget(self) -> None:
        """Remove what was registered, and wait until nothing of it is known."""
        for name in self._names:
            self.remove(name)
        eventually(lambda: not self.attempts())

    def send(self, value: Any = None, **headers: str) -> Answer:
        """Ask with this element. No answer comes late or tells what is not the client's."""
        body = json.loads(json.dumps(_BODIES[self.name]))
        if value is not None:
            body["inputs"][0]["data"] = [value]
        begun = time.monotonic()
        answer = self.server.infer(self.name, body, **headers)
        took = time.monotonic() - begun
        assert took <= float(headers.get("request_timeout", 60)) + LATE_S, took
        if answer.status != 200:
            assert _is_discreet(answer.body), answer.body
        return answer

    def requests(self) -> Counter[str]:
        """The gateway's count of inference requests, by outcome."""
        text = self.server.request("GET", "/metrics").body.decode()
        found: Counter[str] = Counter()
        for line in text.splitlines():
            if line.startswith("headrace_requests_total{") and f'model="{self.name}"' in line:
                outcome = line.partition('outcome="')[2].partition('"')[0]
                found[outcome] += round(float(line.rpartition(" ")[2]))
        return found

    def retries(self) -> float:
        return self.server.metric("headrace_endpoint_retries_total", model=self.name)


def _where(wire: str, place: Triton | TcpProxy) -> dict[str, str]:
    if isinstance(place, TcpProxy):
        port = place.port
    else:
        port = place.http_port if wire == "rest" else place.grpc_port
    if wire == "rest":
        return {"url": f"http://127.0.0.1:{port}"}
    return {"url": f"grpc://127.0.0.1:{port}", "protocol": "oip-grpc"}


def _is_discreet(body: bytes) -> bool:
    return not any(part in body for part in (b"127.0.0.1", b"Traceback", b'File \\"', b"/tmp"))


@pytest.fixture
def served(platform: Server) -> Iterator[Callable[[str], Served]]:
    """Models by name; what they are registered at is forgotten at the end."""
    made: dict[str, Served] = {}

    def model(name: str) -> Served:
        return made.setdefault(name, Served(platform, name))

    yield model
    for each in made.values():
        each.forget()


@pytest.fixture
def identity(served: Callable[[str], Served]) -> Served:
    return served("identity")


@pytest.fixture(autouse=True)
def alive(platform: Server) -> Iterator[None]:
    """During each test the platform lives; after it nothing is under way or logged unasked."""
    over, seen = threading.Event(), Counter[int]()

    def watch() -> None:
        while not over.wait(_WATCH_S):
            seen[platform.request("GET", "/livez").status] += 1

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert seen.keys() <= {200}
    eventually(lambda: is_idle(platform))
    assert platform.foreign_lines() == []


@pytest.fixture
def proxied(first: Triton, wire: str) -> Iterator[TcpProxy]:
    """A proxy before the first Triton."""
    with tcp_proxy(first.http_port if wire == "rest" else first.grpc_port) as proxy:
        yield proxy


# ---------------------------------------------------------------- killed


@pytest.mark.parametrize(
    ("wire", "how"),
    [
        ("rest", "killed"),
        ("rest", "stopped"),
        ("grpc", "killed"),
        ("grpc", "stopped"),
    ],
)
def test_a_triton_that_goes_and_comes_back_under_load_costs_no_client_its_answer(
    identity: Served, first: Triton, second: Triton, wire: str, how: str
) -> None:
    gone, stays = identity.at(wire, first, second)
    before = identity.requests()
    with identity.load(4) as seen:
        eventually(lambda: seen[OK] > 100)  # a share of them is what may be tried again
        if how == "killed":
            first.kill()
        else:
            first.stop()
        at = seen[OK]
        eventually(lambda: seen[OK] > at + 50)
        first.start()
        answered = identity.attempts(gone, "ok")
        eventually(lambda: identity.attempts(gone, "ok") > answered + 10)
    assert seen.keys() == {OK}, seen
    assert identity.requests() - before == {"ok": seen[OK]}
    assert identity.attempts(outcome="ok") == seen[OK]
    assert identity.attempts(stays) == identity.attempts(stays, "ok")
    assert identity.breaker(gone)["phase"] == "closed"


def test_the_only_triton_killed_is_502_then_503_and_back_after_one_probe(
    identity: Served, first: Triton, wire: str
) -> None:
    (name,) = identity.at(wire, first)
    assert identity.send().status == 200
    before = identity.requests()
    first.kill()
    try:
        answers = [identity.send(request_timeout="2") for _ in range(12)]
        assert {answer.status for answer in answers} == {502, 503}
        assert identity.breaker(name)["opened"] >= 1
        for answer in answers:
            if answer.headers["x-error-code"] == "no_ready_endpoint":
                assert int(answer.headers["retry-after"]) >= 1
        codes = Counter(answer.headers["x-error-code"] for answer in answers)
        assert identity.requests() - before == codes
    finally:
        first.start()
    begun = time.monotonic()
    eventually(lambda: identity.send().status == 200, interval_s=0.02)
    assert time.monotonic() - begun <= MAX_OPEN_S + 2 * LATE_S
    assert identity.breaker(name)["phase"] == "closed"


@BY_GRPC
def test_a_stream_whose_triton_is_killed_ends_with_an_error(
    served: Callable[[str], Served], first: Triton, wire: str
) -> None:
    model = served("stream")
    (name,) = model.at(wire, first)
    try:
        with RawClient(model.server.port) as raw, client_of(model.server, "grpc") as client:
            raw.send(_events_of(10_000, delay_ms=20))
            with stream_of(client) as stream:
                stream.ask("stream", _count(10_000, delay_ms=20), request_id="a")
                assert stream.value("index") == 0
                head = raw.socket.recv(4096)
                assert b"200 OK" in head
                first.kill()
                errors = (error for _, error in iter(stream.next, None))
                error = next(each for each in errors if each is not None)
                assert _is_discreet(error.message().encode())
                last = _rest(raw).split(b"\n\n")[-2]
            assert list(json.loads(last.rpartition(b"data: ")[2])) == ["error"]
            assert _is_discreet(last)
        assert model.attempts(name, "endpoint_failed") == model.attempts(name) == 2
    finally:
        first.kill()
        first.start()


def _count(count: int, **more: int) -> dict[str, Any]:
    return {name: np.array([value], np.int32) for name, value in {"count": count, **more}.items()}


def _events_of(count: int, **more: Any) -> bytes:
    body = json.dumps({"count": count, **more}).encode()
    return request("POST", "/v2/models/stream/generate_stream", body)


def _rest(raw: RawClient) -> bytes:
    """All that comes until the answer's last chunk."""
    received = b""
    while not received.endswith(b"0\r\n\r\n"):
        data = raw.socket.recv(65_536)
        assert data, "the connection ended instead of the answer"
        received += data
    return received.removesuffix(b"\r\n0\r\n\r\n")


# ---------------------------------------------------------------- frozen, slow


def test_a_frozen_triton_is_504_at_the_deadline_and_other_models_do_not_notice(
    identity: Served, served: Callable[[str], Served], first: Triton, second: Triton, wire: str
) -> None:
    (name,) = identity.at(wire, first)
    other = served("failing")
    other.at(wire, second)
    assert identity.send().status == other.send().status == 200
    first.freeze()
    try:
        with ThreadPoolExecutor(4) as threads:
            begun = time.monotonic()
            hung = [threads.submit(identity.send, request_timeout="0.6") for _ in range(4)]
            eventually(lambda: identity.in_flight(name) == 4)
            for _ in range(20):
                assert other.send().status == 200
            answers = [each.result() for each in hung]
        assert 0.5 <= time.monotonic() - begun <= 0.7 + LATE_S
        for answer in answers:
            assert (answer.status, answer.headers["x-error-code"]) == (504, "deadline_exceeded")
        eventually(lambda: identity.in_flight(name) == 0)
        assert identity.attempts() == 5
    finally:
        first.thaw()
    eventually(lambda: identity.send().status == 200)
    assert identity.breaker(name)["phase"] == "closed"


def test_a_triton_frozen_for_long_is_left_alone_and_asked_again_when_it_goes_on(
    identity: Served, first: Triton, second: Triton, wire: str
) -> None:
    frozen, _ = identity.at(wire, first, second)
    assert identity.ask_often(10) == {OK: 10}
    first.freeze()
    try:
        # deadlines long enough to tell of an endpoint, which has answered before
        with ThreadPoolExecutor(8) as threads:
            asked = [threads.submit(identity.send, request_timeout="1.2") for _ in range(16)]
            statuses = Counter(each.result().status for each in asked)
        assert statuses.keys() <= {200, 504}
        assert statuses[200] >= 8
        assert identity.breaker(frozen)["phase"] != "closed"
        seen = Counter(identity.send(request_timeout="2").status for _ in range(20))
        assert seen[200] >= 18, "no more than a probe or two hang"
    finally:
        first.thaw()

    def back() -> bool:
        identity.send(request_timeout="2")
        return bool(identity.breaker(frozen)["phase"] == "closed")

    eventually(back)
    assert identity.ask_often(10) == {OK: 10}


def test_an_answer_that_drips_is_504_by_the_total_deadline(
    identity: Served, proxied: TcpProxy, wire: str
) -> None:
    (name,) = identity.at(wire, proxied)
    proxied.fault = Drip(bytes_per_s=1)
    begun = time.monotonic()
    answer = identity.send(request_timeout="0.5")
    assert 0.4 <= time.monotonic() - begun <= 0.6 + LATE_S
    assert (answer.status, answer.headers["x-error-code"]) == (504, "deadline_exceeded")
    assert identity.in_flight(name) == 0
    assert identity.attempts(name) == 1
    proxied.fault = PASS
    proxied.cut()
    eventually(lambda: identity.send().status == 200)


# ---------------------------------------------------------------- storms


def test_in_a_storm_of_errors_attempts_are_bounded_and_callers_told_when_to_come_back(
    served: Callable[[str], Served], first: Triton, second: Triton, wire: str
) -> None:
    model = served("failing")
    names = model.at(wire, first, second)
    before, retries = model.requests(), model.retries()
    answers = [model.send("INTERNAL") for _ in range(40)]
    codes = Counter(answer.headers["x-error-code"] for answer in answers)
    assert codes.keys() == {"endpoint_failed", "no_ready_endpoint"}
    assert {answer.status for answer in answers} == {502, 503}
    assert model.requests() - before == codes
    assert model.attempts() <= 1.2 * 40 + 3
    assert model.attempts() == codes["endpoint_failed"] + model.retries() - retries
    for answer in answers:
        if answer.status == 503:
            assert int(answer.headers["retry-after"]) >= 1

    def all_closed() -> bool:
        model.send("")
        return all(model.breaker(name)["phase"] == "closed" for name in names)

    eventually(all_closed)
    assert model.send("").status == 200


def test_a_storm_of_one_models_errors_leaves_others_of_its_triton_alone(
    identity: Served, served: Callable[[str], Served], first: Triton, wire: str
) -> None:
    storm = served("failing")
    (name,) = storm.at(wire, first)
    identity.at(wire, first)
    for _ in range(8):
        storm.send("UNAVAILABLE")
    assert storm.breaker(name)["phase"] != "closed"
    assert identity.ask_often(10) == {OK: 10}


def test_a_model_whose_program_died_is_left_alone_until_it_is_loaded_again(
    identity: Served, first: Triton, second: Triton, wire: str
) -> None:
    dead, _ = identity.at(wire, first, second)
    assert identity.ask_often(60) == {OK: 60}  # a share of them is what may be tried again
    with _dead(first, identity):
        # Triton goes on to call the model ready, and takes a second for each refusal
        assert identity.ask_at_once(4, 15) == {OK: 60}
        assert identity.server.request("GET", "/v2/models/identity/ready").status == 200
        eventually(lambda: identity.send().status == 200 and _is_open(identity, dead))
        assert identity.ask_often(10) == {OK: 10}

    def back() -> bool:
        return identity.send().status == 200 and not _is_open(identity, dead)

    eventually(back)
    well = identity.attempts(dead, "ok")
    eventually(lambda: identity.send().status == 200 and identity.attempts(dead, "ok") > well)


@pytest.mark.parametrize("wire", ["rest"])  # every refusal takes a second
def test_the_only_program_of_a_model_that_died_is_an_error_that_says_when_to_come_back(
    identity: Served, first: Triton, wire: str
) -> None:
    (name,) = identity.at(wire, first)
    assert identity.send().status == 200
    with _dead(first, identity):
        with ThreadPoolExecutor(6) as threads:
            asked = [threads.submit(identity.send) for _ in range(6)]
            assert {each.result().status for each in asked} <= {502, 503}
        assert _is_open(identity, name)
        refused = identity.send()
        assert refused.status in {502, 503}
        if refused.status == 503:
            assert int(refused.headers["retry-after"]) >= 1
    eventually(lambda: identity.send().status == 200)


@contextlib.contextmanager
def _dead(triton: Triton, model: Served) -> Iterator[None]:
    """The model's program is dead there; at the end it is loaded again, through the platform."""
    triton.kill_program(model.name)
    try:
        yield
    finally:
        # of a model whose files are as they were, Triton takes a load for done
        (triton.repository / model.name / "1" / "model.py").touch()
        path = f"/v2/repository/models/{model.name}/load"
        loaded = model.server.request("POST", path, "{}")
    assert loaded.status == 200


def _is_open(model: Served, name: str) -> bool:
    return bool(model.breaker(name)["phase"] != "closed")


# ---------------------------------------------------------------- answers that are none


@pytest.mark.parametrize(
    "fault", [Garble(), Truncate(0), Truncate(12), Reset(0), Reset(30)], ids=repr
)
def test_a_broken_answer_is_502_counted_by_the_breaker_and_ends_its_connection(
    identity: Served, proxied: TcpProxy, wire: str, fault: Fault
) -> None:
    (name,) = identity.at(wire, proxied)
    assert identity.send().status == 200
    before = identity.attempts(name)
    proxied.fault = fault
    answer = identity.send(request_timeout="5")
    proxied.fault = PASS
    assert (answer.status, answer.headers["x-error-code"]) == (502, "endpoint_failed")
    failed = identity.attempts(name, "endpoint_failed")
    assert 1 <= failed == identity.attempts(name) - before
    assert identity.breaker(name)["consecutive_failures"] == failed
    eventually(lambda: proxied.spoilt == 0)
    eventually(lambda: identity.send().status == 200)


@pytest.mark.parametrize(("by", "status"), [(-5, 502), (5, 504)])
@pytest.mark.parametrize("wire", ["rest"])
def test_an_answer_of_another_length_than_it_says_is_no_answer(
    identity: Served, proxied: TcpProxy, wire: str, by: int, status: int
) -> None:
    identity.at(wire, proxied)
    assert identity.send().status == 200
    proxied.fault = Length(by)
    answer = identity.send(request_timeout="0.7")
    assert answer.status == status
    proxied.fault = PASS
    eventually(lambda: proxied.spoilt == 0)
    assert identity.send().json()["outputs"][0]["data"] == [1.0]


@pytest.mark.parametrize("fault", [Garble(), Truncate(12), Reset(0), Refuse()], ids=repr)
def test_what_is_broken_off_on_the_way_another_triton_answers_whole(
    identity: Served, proxied: TcpProxy, second: Triton, wire: str, fault: Fault
) -> None:
    name, _ = identity.at(wire, proxied, second)
    assert identity.ask_often(40) == {OK: 40}
    well, retries = identity.attempts(name, "ok"), identity.retries()
    proxied.fault = fault
    if isinstance(fault, Refuse):
        proxied.cut()
    assert identity.ask_at_once(2, 30) == {OK: 60}
    failed = identity.attempts(name) - well
    assert 1 <= failed == identity.attempts(name, "endpoint_failed")
    assert identity.retries() - retries == failed


# ---------------------------------------------------------------- streams broken off


@BY_GRPC
def test_a_stream_reset_before_its_first_response_is_begun_elsewhere(
    served: Callable[[str], Served], proxied: TcpProxy, second: Triton, wire: str
) -> None:
    model = served("stream")
    name, other = model.at(wire, proxied, second)
    asked = 0

    def reset() -> bool:
        """Ask until a stream was lost. The reset may have hit the idle connection before."""
        nonlocal asked
        proxied.fault = PASS
        model.until_ready([name, other])
        proxied.fault = Reset(0)
        for _ in range(2):  # both have their turn
            answer = model.server.request(
                "POST", "/v2/models/stream/generate_stream", '{"count": 3}'
            )
            assert answer.status == 200
            assert answer.body.count(b'"index"') == 3
            assert b"error" not in answer.body
            asked += 1
        return model.attempts(name) > 0

    eventually(reset)
    assert model.attempts(name) == model.attempts(name, "endpoint_failed") == 1
    assert model.attempts(other) == model.attempts(other, "ok") == asked


@BY_GRPC
def test_a_stream_reset_after_its_first_response_ends_with_an_error_and_is_not_begun_again(
    served: Callable[[str], Served], proxied: TcpProxy, wire: str
) -> None:
    model = served("stream")
    (name,) = model.at(wire, proxied)
    with RawClient(model.server.port) as raw:
        raw.send(_events_of(10_000, delay_ms=20))
        assert b"200 OK" in raw.socket.recv(4096)
        proxied.cut()
        last = _rest(raw).split(b"\n\n")[-2]
    assert list(json.loads(last.rpartition(b"data: ")[2])) == ["error"]
    assert _is_discreet(last)
    assert model.attempts(name) == model.attempts(name, "endpoint_failed") == 1
    assert model.breaker(name)["consecutive_failures"] == 1


# ---------------------------------------------------------------- clients


def test_a_client_that_leaves_frees_its_permit_and_is_499_in_the_log(
    served: Callable[[str], Served], first: Triton, wire: str
) -> None:
    model, request_id = served("slow"), uuid.uuid4().hex
    (name,) = model.at(wire, first)
    body = json.loads(json.dumps(_BODIES["slow"])) | {"id": request_id}
    body["inputs"][0]["data"] = [400]
    with RawClient(model.server.port) as left:
        left.send(
            request(
                "POST", "/v2/models/slow/infer", json.dumps(body).encode(),
                {"X-Request-Id": request_id},
            )
        )  # fmt: skip
        eventually(lambda: f"{request_id} started" in first.journal("slow"))
        assert model.in_flight(name) == 1
    eventually(lambda: model.in_flight(name) == 0, timeout_s=1 + LATE_S)
    breaker = model.breaker(name)
    assert (breaker["phase"], breaker["consecutive_failures"]) == ("closed", 0)
    assert model.attempts(name, "cancelled") == model.attempts(name) == 1
    eventually(lambda: _logged(model.server, request_id) == [499])
    ended = "cancelled" if wire == "grpc" else "finished"
    eventually(lambda: f"{request_id} {ended}" in first.journal("slow"), timeout_s=1 + LATE_S)


def _logged(server: Server, request_id: str) -> list[int]:
    return [
        line["status"]
        for line in server.log()
        if line["logger"] == "headrace.access" and line.get("request_id") == request_id
    ]
