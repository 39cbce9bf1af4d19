"""The stubs that the router's tests rely on: each fault, as it is on the wire."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Literal

import pytest

from tests.support.process import eventually
from tests.support.raw_http import RawClient, request
from tests.support.stub_faults import (
    AnswerEarly,
    Chunked,
    CloseAfterAnswer,
    Delay,
    Drip,
    Extra,
    Fault,
    Flaky,
    Garbage,
    GarbageJson,
    Hang,
    NotReady,
    Ok,
    Reset,
    ResetMidBody,
    Status,
    Truncate,
    UntilClose,
    WrongLength,
)
from tests.support.stub_fleet import StubFleet
from tests.support.stub_process import Faults, stub_process
from tests.support.stub_server import Canned, StubServer
from tests.support.waiting import until

INFER = request("POST", "/v2/models/m/infer", b'{"inputs":[]}')
READY = request("GET", "/v2/models/m/ready")
ALL = 1 << 20


class Wire:
    """One raw connection, driven in the stub's own loop."""

    def __init__(self, own: socket.socket) -> None:
        self._own = own
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._own, data)

    async def read(self, size: int = ALL) -> tuple[bytes, Literal["open", "fin", "reset"]]:
        """As much as comes until so many bytes are there or the stub ends the connection."""
        found = b""
        async with asyncio.timeout(10):
            while len(found) < size:
                try:
                    data = await self._loop.sock_recv(self._own, size - len(found))
                except ConnectionResetError:
                    return found, "reset"
                if not data:
                    return found, "fin"
                found += data
        return found, "open"

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers by their lower-case names, and a body of Content-Length."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte, state = await self.read(1)
            assert state == "open", f"{state} after {head!r}"
            head += byte
        first, *lines = head.decode("latin-1").rstrip().split("\r\n")
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
        }
        body, state = await self.read(int(headers["content-length"]))
        assert state == "open", f"{state} after {body!r}"
        return int(first.split()[1]), headers, body

    async def ask(self, data: bytes = INFER) -> tuple[int, dict[str, str], bytes]:
        await self.send(data)
        return await self.answer()

    def close(self) -> None:
        self._own.close()


@asynccontextmanager
async def connected(stub: StubServer) -> AsyncIterator[Wire]:
    own = socket.socket()
    own.setblocking(False)  # noqa: FBT003 - the library's own signature
    try:
        await asyncio.get_running_loop().sock_connect(own, ("127.0.0.1", stub.port))
        yield Wire(own)
    finally:
        own.close()


@pytest.fixture
async def stub() -> AsyncIterator[StubServer]:
    async with StubServer("a") as stub:
        yield stub


@pytest.fixture
async def wire(stub: StubServer) -> AsyncIterator[Wire]:
    async with connected(stub) as wire:
        yield wire


async def right_answer(stub: StubServer) -> bytes:
    """The bytes of an answer to INFER where nothing is wrong."""
    usual, stub.fault = stub.fault, CloseAfterAnswer()
    async with connected(stub) as wire:
        await wire.send(INFER)
        answer, _ = await wire.read()
    stub.fault = usual
    return answer


# ---- without a fault


async def test_an_answer_says_which_stub_gave_it(wire: Wire) -> None:
    status, headers, body = await wire.ask(request("POST", "/v2/models/m/versions/3/infer", b"{}"))
    assert (status, headers["stub"]) == (200, "a")
    answer = json.loads(body)
    assert (answer["model_name"], answer["model_version"]) == ("m", "3")
    assert answer["outputs"] == [{"name": "stub", "datatype": "BYTES", "shape": [1], "data": ["a"]}]


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready", "/v2/models/m/ready"])
async def test_probes_are_answered(wire: Wire, path: str) -> None:
    status, _, _ = await wire.ask(request("GET", path))
    assert status == 200


async def test_requests_are_counted_by_kind_and_kept_with_headers_and_body(
    stub: StubServer, wire: Wire
) -> None:
    await wire.ask(READY)
    await wire.ask(request("POST", "/v2/models/m/infer", b"12345", {"X-Own": "yes"}))
    assert stub.requests == {"model_ready": 1, "infer": 1}
    assert stub.inferences == {("m", ""): 1}
    seen = stub.seen[-1]
    assert (seen.headers["x-own"], seen.body, seen.complete) == ("yes", b"12345", True)
    assert stub.connections == 1


async def test_of_a_large_body_only_the_beginning_is_kept(stub: StubServer, wire: Wire) -> None:
    stub.kept_body_bytes = 10
    await wire.ask(request("POST", "/v2/models/m/infer", b"x" * 1_000_000))
    assert (len(stub.seen[-1].body), stub.seen[-1].body_bytes) == (10, 1_000_000)


async def test_a_chunked_upload_is_understood(stub: StubServer, wire: Wire) -> None:
    head = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    status, _, _ = await wire.ask(head + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    assert (status, stub.seen[-1].body) == (200, b"abcde")


async def test_pipelined_requests_are_answered_in_their_order(stub: StubServer, wire: Wire) -> None:
    stub.model_faults["x"] = Delay(0.05)
    await wire.send(b"".join(request("POST", f"/v2/models/{m}/infer", b"{}") for m in "xyz"))
    answers = [json.loads((await wire.answer())[2])["model_name"] for _ in range(3)]
    assert answers == ["x", "y", "z"]


async def test_a_model_that_a_stub_does_not_have_is_not_found() -> None:
    async with StubServer("a", models=frozenset({"m"})) as stub, connected(stub) as wire:
        assert (await wire.ask())[0] == 200
        status, _, body = await wire.ask(request("POST", "/v2/models/other/infer", b"{}"))
        assert (status, b"other" in body) == (404, True)


async def test_an_answer_can_be_given_beforehand(stub: StubServer, wire: Wire) -> None:
    stub.canned = Canned(b"\0\1\2", {"Inference-Header-Content-Length": "1"})
    _, headers, body = await wire.ask()
    assert (headers["inference-header-content-length"], body) == ("1", b"\0\1\2")


async def test_what_is_no_http_is_counted_and_refused(stub: StubServer, wire: Wire) -> None:
    await wire.send(b"nonsense\r\n\r\n")
    answer, state = await wire.read()
    assert (answer[:12], state, stub.malformed) == (b"HTTP/1.1 400", "fin", 1)


# ---- faults


async def test_a_delayed_answer_comes_later_and_is_right(stub: StubServer, wire: Wire) -> None:
    stub.fault = Delay(0.1)
    began = time.monotonic()
    status, _, _ = await wire.ask()
    assert status == 200
    assert time.monotonic() - began >= 0.1


async def test_a_status_comes_with_its_retry_after(stub: StubServer, wire: Wire) -> None:
    stub.fault = Status(503, retry_after="7", body=b"busy")
    status, headers, body = await wire.ask()
    assert (status, headers["retry-after"], body) == (503, "7", b"busy")


async def test_garbage_is_no_http(stub: StubServer, wire: Wire) -> None:
    stub.fault = Garbage(b"\x16\x03garbage")
    await wire.send(INFER)
    assert await wire.read(9) == (b"\x16\x03garbage", "open")


async def test_garbage_json_is_http_and_no_json(stub: StubServer, wire: Wire) -> None:
    stub.fault = GarbageJson()
    status, _, body = await wire.ask()
    assert status == 200
    with pytest.raises(json.JSONDecodeError):
        json.loads(body)


@pytest.mark.parametrize("by", [5, -5])
async def test_a_wrong_length_differs_from_the_body(stub: StubServer, wire: Wire, by: int) -> None:
    stub.fault = WrongLength(by)
    await wire.send(INFER)
    answer, state = await wire.read()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Content-Length: %d" % (len(body) + by) in head
    assert state == "fin"


async def test_a_wrong_length_can_leave_the_connection_open(stub: StubServer, wire: Wire) -> None:
    stub.fault = WrongLength(-5, then_close=False)
    await wire.ask()
    assert await wire.read(5) == (b'a"]}]}'[-5:], "open")
    stub.fault = Ok()
    assert (await wire.ask())[0] == 200


@pytest.mark.parametrize("part", ["head", "body"])
async def test_a_truncated_answer_ends_orderly_in_its_midst(
    stub: StubServer, wire: Wire, part: Literal["head", "body"]
) -> None:
    right = await right_answer(stub)
    stub.fault = Truncate(7, part)
    await wire.send(INFER)
    answer, state = await wire.read()
    kept = 7 if part == "head" else right.index(b"\r\n\r\n") + 4 + 7
    assert (answer, state) == (right[:kept], "fin")


async def test_a_reset_comes_before_any_byte(stub: StubServer, wire: Wire) -> None:
    stub.fault = Reset()
    await wire.send(INFER)
    assert await wire.read() == (b"", "reset")
    assert stub.seen[-1].complete


async def test_a_reset_can_come_during_the_upload(stub: StubServer, wire: Wire) -> None:
    stub.fault = Reset(during_upload=True)
    await wire.send(INFER[:-3])
    assert await wire.read() == (b"", "reset")
    assert not stub.seen[-1].complete


async def test_a_reset_in_the_body_comes_after_its_first_bytes(
    stub: StubServer, wire: Wire
) -> None:
    right = await right_answer(stub)
    stub.fault = ResetMidBody(3)
    await wire.send(INFER)
    answer, state = await wire.read()
    assert (answer, state) == (right[: right.index(b"\r\n\r\n") + 4 + 3], "reset")


@pytest.mark.parametrize("part", ["head", "body"])
async def test_a_drip_is_slow_and_complete(
    stub: StubServer, wire: Wire, part: Literal["head", "body"]
) -> None:
    right = await right_answer(stub)
    slow = len(right) if part == "head" else len(right) - right.index(b"\r\n\r\n") - 4
    stub.fault = Drip(bytes_per_s=1000, part=part)
    began = time.monotonic()
    await wire.send(INFER)
    assert await wire.read(len(right)) == (right, "open")
    # the first ten bytes come at once
    assert time.monotonic() - began >= (slow - 20) / 1000


async def test_a_drip_at_a_byte_a_second_begins_with_the_whole_head(
    stub: StubServer, wire: Wire
) -> None:
    right = await right_answer(stub)
    stub.fault = Drip(bytes_per_s=1)
    await wire.send(INFER)
    begun = right[: right.index(b"\r\n\r\n") + 5]
    assert await wire.read(len(begun)) == (begun, "open")
    assert stub.in_flight == 1


async def test_a_hanging_stub_takes_the_request_and_says_nothing(
    stub: StubServer, wire: Wire
) -> None:
    stub.fault = Hang()
    await wire.send(INFER)
    await until(lambda: stub.seen and stub.seen[-1].complete)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(wire.read(1), 0.1)
    assert stub.in_flight == 1


async def test_a_hanging_stub_can_leave_the_upload_unread(stub: StubServer, wire: Wire) -> None:
    stub.fault = Hang(read_upload=False)
    large = request("POST", "/v2/models/m/infer", b"x" * 50_000_000)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(wire.send(large), 0.3)
    assert stub.seen[-1].body_bytes < 1_000_000


@pytest.mark.parametrize("announced", [False, True])
async def test_a_stub_closes_behind_its_answer(
    stub: StubServer, wire: Wire, *, announced: bool
) -> None:
    stub.fault = CloseAfterAnswer(announced=announced)
    status, headers, _ = await wire.ask()
    assert (status, "connection" in headers) == (200, announced)
    assert await wire.read() == (b"", "fin")


async def test_an_early_answer_comes_before_the_upload_ended(stub: StubServer, wire: Wire) -> None:
    stub.fault = AnswerEarly(413)
    await wire.send(INFER[:-3])
    assert (await wire.answer())[0] == 413
    assert not stub.seen[-1].complete
    await wire.send(INFER[-3:])
    stub.fault = Ok()
    _, _, body = await wire.ask(request("POST", "/v2/models/next/infer", b"{}"))
    assert json.loads(body)["model_name"] == "next"
    assert [received.complete for received in stub.seen] == [True, True]
    assert stub.in_flight == 0


async def test_a_stub_that_is_not_ready_says_so_to_probes_only(
    stub: StubServer, wire: Wire
) -> None:
    stub.fault = NotReady()
    assert (await wire.ask(READY))[0] == 503
    assert (await wire.ask(request("GET", "/v2/health/ready")))[0] == 503
    assert (await wire.ask())[0] == 200


async def test_one_model_can_be_not_ready_alone(stub: StubServer, wire: Wire) -> None:
    stub.model_faults["m"] = NotReady()
    assert (await wire.ask(READY))[0] == 503
    assert (await wire.ask(request("GET", "/v2/models/other/ready")))[0] == 200
    assert (await wire.ask(request("GET", "/v2/health/ready")))[0] == 200


async def test_probes_meet_a_fault_of_their_own(stub: StubServer, wire: Wire) -> None:
    stub.fault = Status(500)
    assert (await wire.ask(READY))[0] == 200
    stub.fault, stub.probe_fault = Ok(), Status(500)
    assert (await wire.ask(READY))[0] == 500
    assert (await wire.ask())[0] == 200


async def test_one_model_can_fail_alone(stub: StubServer, wire: Wire) -> None:
    stub.model_faults["m"] = Status(500)
    assert (await wire.ask())[0] == 500
    assert (await wire.ask(request("POST", "/v2/models/other/infer", b"{}")))[0] == 200


async def test_a_flaky_stub_fails_the_same_share_in_the_same_order_each_time() -> None:
    async def statuses() -> list[int]:
        async with StubServer("a", random=Random(7)) as stub, connected(stub) as wire:
            stub.fault = Flaky(0.3, Status(500))
            return [(await wire.ask())[0] for _ in range(200)]

    first = await statuses()
    assert 40 <= first.count(500) <= 80
    assert first == await statuses()


async def test_extra_bytes_follow_the_answer(stub: StubServer, wire: Wire) -> None:
    stub.fault = Extra(b"extra")
    assert (await wire.ask())[0] == 200
    assert await wire.read(5) == (b"extra", "open")


async def test_a_chunked_answer_is_framed_in_chunks(stub: StubServer, wire: Wire) -> None:
    right = await right_answer(stub)
    body = right.partition(b"\r\n\r\n")[2]
    stub.fault = Chunked(chunk_bytes=40)

    def ask() -> bytes:
        with RawClient(stub.port) as client:
            return client.ask(INFER).body

    assert await asyncio.to_thread(ask) == body
    await wire.send(INFER)
    head, _ = await wire.read(right.index(b"Content-Length"))
    assert b"Content-Length" not in head


async def test_an_answer_can_end_with_its_connection(stub: StubServer, wire: Wire) -> None:
    right = await right_answer(stub)
    stub.fault = UntilClose()
    await wire.send(INFER)
    answer, state = await wire.read()
    assert b"Content-Length" not in answer
    assert (answer.partition(b"\r\n\r\n")[2], state) == (right.partition(b"\r\n\r\n")[2], "fin")


# ---- connections


async def test_a_refusing_stub_is_back_on_its_port(stub: StubServer, wire: Wire) -> None:
    assert (await wire.ask())[0] == 200
    await stub.refuse()
    assert await wire.read() == (b"", "reset")
    with pytest.raises(ConnectionRefusedError):
        async with connected(stub):
            pass
    await stub.accept()
    async with connected(stub) as again:
        assert (await again.ask())[0] == 200


async def test_a_refusing_stub_can_keep_the_connections_it_has(
    stub: StubServer, wire: Wire
) -> None:
    await wire.ask()
    await stub.refuse(keep_connections=True)
    assert (await wire.ask())[0] == 200


async def test_idle_connections_are_closed_and_busy_ones_are_not(
    stub: StubServer, wire: Wire
) -> None:
    await wire.ask()
    async with connected(stub) as busy:
        stub.fault = Hang()
        await busy.send(INFER)
        await until(lambda: stub.in_flight == 1)
        assert stub.close_idle() == 1
        assert await wire.read() == (b"", "fin")
        assert stub.open_connections == 1


async def test_a_client_that_gives_up_is_counted(stub: StubServer, wire: Wire) -> None:
    stub.fault = Hang()
    async with connected(stub) as another:
        await wire.send(INFER)
        await another.send(INFER)
        await until(lambda: stub.in_flight == 2)
        wire.close()
        await until(lambda: stub.aborted == 1)
        assert (stub.in_flight, stub.most_in_flight) == (1, 2)


async def test_what_a_client_gave_up_is_not_answered_later(stub: StubServer, wire: Wire) -> None:
    stub.fault = Delay(0.05)
    async with connected(stub) as another:
        await another.send(INFER)
        await until(lambda: stub.in_flight == 1)
    await wire.ask()  # begun later, so answered later
    assert (stub.in_flight, stub.aborted) == (0, 1)


async def test_a_client_that_has_its_answer_gives_nothing_up(stub: StubServer, wire: Wire) -> None:
    await wire.ask()
    wire.close()
    await until(lambda: not stub.open_connections)
    assert stub.aborted == 0


async def test_a_client_that_closes_on_garbage_gives_nothing_up(
    stub: StubServer, wire: Wire
) -> None:
    stub.fault = Garbage()
    await wire.send(INFER)
    await wire.read(1)
    wire.close()
    await until(lambda: not stub.open_connections)
    assert (stub.aborted, stub.in_flight) == (0, 0)


@pytest.mark.parametrize("fault", [Reset(), Truncate(1), ResetMidBody()])
async def test_what_the_stub_ends_itself_is_no_client_giving_up(
    stub: StubServer, wire: Wire, fault: Fault
) -> None:
    stub.fault = fault
    await wire.send(INFER)
    assert (await wire.read())[1] != "open"
    await until(lambda: not stub.open_connections)
    assert (stub.aborted, stub.in_flight) == (0, 0)


# ---- several, and one apart


async def test_a_fleet_counts_attempts_and_says_who_got_them() -> None:
    async with StubFleet(3) as fleet:
        assert len(set(fleet.urls)) == 3
        fleet.fail(Status(500))
        for stub in fleet.stubs[:2]:
            async with connected(stub) as wire:
                assert (await wire.ask())[0] == 500
        assert fleet.infers == 2
        assert fleet.shares() == {"stub-0": 1, "stub-1": 1, "stub-2": 0}


def test_a_stub_process_is_killed_and_started_again_on_its_port() -> None:
    with stub_process("a") as stub:
        with RawClient(stub.port) as client:
            assert client.ask(INFER).status == 200
            stub.kill()
            assert client.closed()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", stub.port))
        stub.start()
        with RawClient(stub.port) as client:
            assert client.ask(INFER).status == 200


def test_a_paused_stub_process_answers_when_it_is_resumed() -> None:
    with stub_process("a") as stub:
        stub.pause()
        with RawClient(stub.port, timeout_s=0.2) as client:  # the kernel accepts
            client.send(INFER)
            with pytest.raises(TimeoutError):
                client.answer()
            stub.resume()
            client.socket.settimeout(10)
            answer = client.answer()
            assert answer is not None
            assert answer.status == 200


def test_a_stub_process_is_told_its_fault_and_tells_its_counts() -> None:
    with stub_process("a") as stub:
        stub.tell(Faults(Flaky(1.0, Status(503, "1")), model_faults={"m": Status(500)}))
        with RawClient(stub.port) as client:
            assert client.ask(INFER).status == 500
            assert client.ask(request("POST", "/v2/models/n/infer", b"{}")).status == 503
        counts = stub.counts()
        assert (counts.requests, counts.connections) == ({"infer": 2}, 1)


def test_a_stub_process_ends_with_the_test_that_started_it() -> None:
    with stub_process("a") as stub:
        process = stub._process  # noqa: SLF001 - as if this process had ended
        assert process is not None
        assert process.stdin is not None
        process.stdin.close()
        assert eventually(lambda: process.poll() is not None)
