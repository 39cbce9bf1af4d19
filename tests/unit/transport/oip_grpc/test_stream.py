from __future__ import annotations

import asyncio
import io
import json
import logging
import math
import random
from asyncio import Future
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc.service_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)

from headrace.domain.calls import Call, Principal
from headrace.domain.errors import DeadlineExceeded, ModelFailed, Unauthenticated, UnknownModel
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.scopes import EVERYTHING
from headrace.domain.standing import Standing
from headrace.domain.tensors import Tensor
from headrace.telemetry.access_log import AccessLog
from headrace.telemetry.api_requests import ApiRequests
from headrace.telemetry.logs import LogSettings
from headrace.telemetry.metrics import Metrics
from headrace.telemetry.trace_context import RequestIds
from headrace.transport.client_address import ClientAddress
from headrace.transport.oip_grpc.edge import Edge
from headrace.transport.oip_grpc.messages import GrpcAnswer, GrpcStream
from headrace.transport.oip_grpc.reply import GrpcReply
from headrace.transport.oip_grpc.stream import MAX_UNDER_WAY, StreamInferRpc
from headrace.transport.status import GrpcStatus
from tests.support.waiting import until

PATH = "/inference.GRPCInferenceService/ModelStreamInfer"
EMPTY_FINAL = "triton_enable_empty_final_response"
MAX_BYTES = 10_000

Responses = AsyncGenerator[InferResponse, None]


class Service:
    """Plain models answer once, at once or when told to; `words` answers as often as it is told."""

    def __init__(self) -> None:
        self.asked: list[tuple[InferRequest, Call]] = []
        self.gates: dict[str, Future[None]] = {}  # by the id of a request that waits
        self.made: list[str] = []  # id and number of each response
        self.closed: list[str] = []  # ids of requests that nobody waits for any longer
        self.ended: list[str] = []
        self.replies: dict[str, list[tuple[bytes, bool]]] = {}  # of an endpoint, by id

    async def stream(self, request: InferRequest, call: Call) -> Responses:
        self.asked.append((request, call))
        message_id = request.content.id
        try:
            if message_id in self.gates:
                await self.gates[message_id]
            async for response in self._responses(request, message_id):
                yield response
        except (asyncio.CancelledError, GeneratorExit):
            self.closed.append(message_id)
            raise
        finally:
            self.ended.append(message_id)

    async def _responses(self, request: InferRequest, message_id: str) -> Responses:
        match request.model:
            case "nobody":
                msg = "model 'nobody' is not registered"
                raise UnknownModel(msg)
            case "endless":
                yield response(request.model, message_id, 0, final=False)
                await asyncio.get_running_loop().create_future()
            case "slow":
                msg = "the deadline passed in the queue"
                raise DeadlineExceeded(msg)
            case "broken":
                raise ZeroDivisionError
            case "endpoint":
                for body, final in self.replies[message_id]:
                    reply = GrpcReply(body)
                    yield InferResponse("endpoint", "3", [], reply=reply, final=final)
            case "words" | "failing":
                for number in range(request.parameters["count"]):
                    self.made.append(f"{message_id}/{number}")
                    yield response(request.model, message_id, number, final=False)
                if request.model == "failing":
                    msg = "failed on purpose"
                    raise ModelFailed(msg)
            case _:
                self.made.append(f"{message_id}/0")
                yield response(request.model, message_id, 0, final=True)

    async def infer(self, request: InferRequest, call: Call) -> InferResponse:
        raise AssertionError((request, call))


def response(model: str, message_id: str, number: int, *, final: bool) -> InferResponse:
    y = Tensor("y", "UINT8", np.array([number], np.uint8))
    return InferResponse(model, "7", [y], message_id, final=final)


class Client:
    """One open stream, from the other side."""

    def __init__(self, house: House, headers: dict[str, str], timeout_s: float) -> None:
        self._messages: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.read = 0  # messages that the server has taken
        self.received: list[ModelStreamInferResponse] = []
        self.reading = True
        self.idle = 0
        self._resumed: list[Future[None]] = []
        self.stream = GrpcStream(
            {name.encode(): value.encode() for name, value in headers.items()},
            self._sent(),
            self._receive,
            timeout_s=timeout_s,
            peer="10.0.0.1",
            on_idle=self._on_idle,
        )
        self.task = asyncio.ensure_future(house.edge.streams[PATH](self.stream))

    def _on_idle(self) -> None:
        self.idle += 1

    async def _sent(self) -> AsyncIterator[bytes]:
        while (message := await self._messages.get()) is not None:
            self.read += 1
            yield message

    async def _receive(self, message: bytes) -> None:
        if not self.reading:
            self._resumed.append(asyncio.get_running_loop().create_future())
            await self._resumed[-1]
        self.received.append(ModelStreamInferResponse.FromString(message))

    def resume(self) -> None:
        self.reading = True
        for future in self._resumed:
            future.set_result(None)

    def send(self, model: str, message_id: str = "", **parameters: int | bool | str) -> None:
        message = ModelInferRequest(model_name=model, id=message_id)
        for key, value in parameters.items():
            kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
            setattr(message.parameters[key], kind, value)
        self.send_bytes(message.SerializeToString())

    def send_bytes(self, message: bytes) -> None:
        self._messages.put_nowait(message)

    def close(self) -> None:
        self._messages.put_nowait(None)

    async def done(self) -> GrpcAnswer:
        """Send nothing more, and wait for the status."""
        self.close()
        return await self.task

    def ids(self) -> list[str]:
        return [each.infer_response.id for each in self.received]

    def finals(self) -> list[bool | None]:
        """The parameter of each answer; None where it has none."""
        return [final_of(each.infer_response) for each in self.received]

    def numbers(self) -> list[int]:
        """The output of each answer that has one."""
        raw = [each.infer_response.raw_output_contents for each in self.received]
        return [contents[0][0] for contents in raw if contents]


def final_of(answer: ModelInferResponse) -> bool | None:
    if "triton_final_response" not in answer.parameters:
        return None
    return bool(answer.parameters["triton_final_response"].bool_param)


class House:
    """The RPC behind its edge."""

    def __init__(self, service: Service | None = None) -> None:
        self.service = service or Service()
        self.now = 100.0
        self.known = True
        self.metrics = Metrics(version="test")
        self.log = io.StringIO()
        self.access_log = AccessLog(
            LogSettings(access="all", format="json"), stream=self.log, clock=lambda: 1e9
        )
        ids = RequestIds(rng=random.Random(1))
        self.edge = Edge(
            StreamInferRpc(self.service, ids=ids, max_bytes=MAX_BYTES).rpcs(),
            addresses=ClientAddress([]),
            authenticate=self.authenticate,
            spend=self.spend,
            ids=ids,
            access_log=self.access_log,
            api_requests=ApiRequests(self.metrics),
            clock=lambda: self.now,
        )

    def authenticate(self, _: Mapping[bytes, bytes], __: str) -> Principal:
        if not self.known:
            msg = "this request needs a valid token"
            raise Unauthenticated(msg)
        return Principal("tester", grants=EVERYTHING)

    async def spend(self, _: Principal, __: str) -> Sequence[Standing]:
        raise AssertionError

    @asynccontextmanager
    async def client(
        self, *, timeout_s: float = math.inf, **headers: str
    ) -> AsyncGenerator[Client, None]:
        named = {name.replace("__", "-"): value for name, value in headers.items()}
        client = Client(self, named, timeout_s)
        yield client
        client.task.cancel()
        await asyncio.gather(client.task, return_exceptions=True)

    def hold(self, *ids: str) -> Callable[[str], None]:
        """Let requests with these ids wait until they are released by name."""
        loop = asyncio.get_running_loop()
        self.service.gates |= {each: loop.create_future() for each in ids}
        return lambda name: self.service.gates[name].set_result(None)

    def lines(self) -> list[dict[str, Any]]:
        self.access_log.flush()
        return [json.loads(line) for line in self.log.getvalue().splitlines()]


@pytest.fixture
def house() -> House:
    return House()


async def test_a_plain_model_answers_once_and_says_that_nothing_follows(house: House) -> None:
    async with house.client() as client:
        client.send("bert", "a")
        assert (await client.done()).status is GrpcStatus.OK
    (received,) = client.received
    answer = received.infer_response
    assert not received.error_message
    assert (answer.model_name, answer.model_version, answer.id) == ("bert", "7", "a")
    assert (client.numbers(), client.finals()) == ([0], [True])


async def test_a_generator_answers_in_order_and_its_end_goes_unsaid(house: House) -> None:
    async with house.client() as client:
        client.send("words", "a", count=3)
        await client.done()
    assert client.numbers() == [0, 1, 2]
    assert client.finals() == [False, False, False]


@pytest.mark.parametrize("count", [0, 2])
async def test_who_asks_for_it_is_told_the_end_in_an_empty_answer(house: House, count: int) -> None:
    async with house.client() as client:
        client.send("words", "a", count=count, **{EMPTY_FINAL: True})
        await client.done()
    assert client.finals() == [False] * count + [True]
    last = client.received[-1].infer_response
    assert (last.model_name, last.model_version, last.id) == ("words", "", "a")
    assert not last.outputs


async def test_a_plain_model_has_no_empty_answer(house: House) -> None:
    async with house.client() as client:
        client.send("bert", "a", **{EMPTY_FINAL: True})
        await client.done()
    assert (client.numbers(), client.finals()) == ([0], [True])


def encoded(*, final: bool | None, outputs: bool = True) -> bytes:
    """An endpoint's answer, with a field that only it knows."""
    answer = ModelInferResponse(model_name="theirs", model_version="3", id="a")
    if final is not None:
        answer.parameters["triton_final_response"].bool_param = final
    if outputs:
        answer.outputs.add(name="y", datatype="UINT8", shape=[1])
        answer.raw_output_contents.append(b"\5")
    return bytes(answer.SerializeToString()) + b"\xd2\x3e\x01!"


async def test_an_endpoints_answers_are_passed_on_as_they_are(house: House) -> None:
    house.service.replies["a"] = [(encoded(final=False), False), (encoded(final=True), True)]
    async with house.client() as client:
        client.send("endpoint", "a")
        await client.done()
    assert client.numbers() == [5, 5]
    assert client.finals() == [False, True]
    for received in client.received:
        assert received.infer_response.model_name == "theirs"
        assert received.infer_response.SerializeToString().endswith(b"\xd2\x3e\x01!")


@pytest.mark.parametrize("own", ["mine", "ä" * 100, ""])
async def test_an_endpoints_answers_have_the_id_of_their_request(house: House, own: str) -> None:
    house.service.replies[own] = [(encoded(final=False), False), (encoded(final=True), True)]
    async with house.client() as client:
        client.send("endpoint", own)
        await client.done()
    assert client.ids() == [own, own]


async def test_answers_of_another_wire_have_the_id_of_their_request() -> None:
    class Nameless(Service):
        async def _responses(self, request: InferRequest, message_id: str) -> Responses:
            yield response(request.model, "", len(message_id), final=True)

    house = House(Nameless())
    async with house.client() as client:
        client.send("bert", "mine")
        await client.done()
    assert client.ids() == ["mine"]


async def test_an_endpoint_that_does_not_know_the_parameter_is_spoken_for(house: House) -> None:
    house.service.replies["a"] = [(encoded(final=None), True)]
    async with house.client() as client:
        client.send("endpoint", "a")
        await client.done()
    assert client.finals() == [True]


async def test_an_endpoints_empty_answer_is_for_who_asked_for_it(house: House) -> None:
    last = encoded(final=True, outputs=False)
    house.service.replies = {name: [(encoded(final=False), False), (last, True)] for name in "ab"}
    async with house.client() as client:
        client.send("endpoint", "a")
        await until(lambda: house.service.ended == ["a"])
        client.send("endpoint", "b", **{EMPTY_FINAL: True})
        await client.done()
    assert client.finals() == [False, False, True]


async def test_plain_answers_keep_the_order_of_their_requests(house: House) -> None:
    release = house.hold("a", "c")
    async with house.client() as client:
        for name in "abcde":
            client.send("bert", name)
        await until(lambda: house.service.ended == ["b", "d", "e"])
        assert client.ids() == []
        release("c")
        await until(lambda: "c" in house.service.ended)
        assert client.ids() == []
        release("a")
        await client.done()
    assert client.ids() == ["a", "b", "c", "d", "e"]


async def test_a_refusal_keeps_its_place_among_plain_answers(house: House) -> None:
    release = house.hold("a")
    async with house.client() as client:
        client.send("bert", "a")
        client.send("nobody", "b")
        await until(lambda: house.service.ended == ["b"])
        release("a")
        await client.done()
    assert client.ids() == ["a", "b"]


async def test_a_generators_answers_wait_for_no_other_request(house: House) -> None:
    release = house.hold("a")
    async with house.client() as client:
        client.send("bert", "a")
        client.send("words", "b", count=2)
        client.send("bert", "c")
        await until(lambda: client.ids() == ["b", "b"])
        release("a")
        await client.done()
    assert client.ids() == ["b", "b", "a", "c"]


async def test_no_other_request_waits_for_the_end_of_a_generator(house: House) -> None:
    async with house.client() as client:
        client.send("endless", "a")
        await until(lambda: client.ids() == ["a"])
        client.send("bert", "b")
        await until(lambda: client.ids() == ["a", "b"])


async def test_an_answer_that_waits_for_its_turn_holds_nothing_behind_it(house: House) -> None:
    release = house.hold("a")
    async with house.client() as client:
        client.send("bert", "a")
        client.send("bert", "b")
        await until(lambda: house.service.ended == ["b"])
        assert house.service.closed == []  # it came to its end, and was not broken off
        release("a")
        await client.done()


async def test_requests_of_one_sequence_follow_each_other(house: House) -> None:
    release = house.hold("a")
    async with house.client() as client:
        client.send("words", "a", count=1, sequence_id=5)
        client.send("words", "b", count=1, sequence_id=5)
        client.send("words", "c", count=1, sequence_id=6)
        client.send("failing", "d", count=1, sequence_id=5)
        client.send("words", "e", count=1, sequence_id="5")
        await until(lambda: len(house.service.ended) == 3)
        assert {*house.service.ended} == {"c", "d", "e"}
        release("a")
        await client.done()
    assert house.service.ended[3:] == ["a", "b"]


async def test_a_sequence_goes_on_after_a_request_that_failed(house: House) -> None:
    async with house.client() as client:
        client.send("failing", "a", count=0, sequence_id=5)
        client.send("failing", "b", count=0, sequence_id=5)
        await client.done()
    assert client.ids() == ["a", "b"]


async def test_an_error_names_its_request_and_the_stream_goes_on(house: House) -> None:
    async with house.client() as client:
        client.send("failing", "a", count=1)
        await until(lambda: len(client.received) == 2)
        client.send("nobody", "b")
        client.send("bert", "c")
        assert (await client.done()).status is GrpcStatus.OK
    assert [each.error_message for each in client.received] == [
        "", "failed on purpose", "model 'nobody' is not registered", "",
    ]  # fmt: skip
    assert client.ids() == ["a", "a", "b", "c"]
    assert client.received[1].infer_response.model_name == "failing"
    assert client.finals() == [False, True, True, True]


async def test_bytes_that_are_no_request_are_named_by_their_place(house: House) -> None:
    async with house.client() as client:
        client.send("bert", "a")
        client.send_bytes(b"\xff")
        client.send("", "c")
        client.send("bert", "d")
        assert (await client.done()).status is GrpcStatus.OK
    errors = [each.error_message for each in client.received]
    what = "the message is not a well-formed inference.ModelInferRequest"
    assert errors[1] == f"message 2 of the stream: {what}"
    assert errors[2]
    assert client.ids() == ["a", "", "c", "d"]


async def test_a_defect_is_logged_and_ends_its_request_alone(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    async with house.client() as client:
        with caplog.at_level(logging.ERROR):
            client.send("broken", "a")
            client.send("bert", "b")
            assert (await client.done()).status is GrpcStatus.OK
    assert client.received[0].error_message == "internal error"
    assert client.ids() == ["a", "b"]
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


async def test_who_wants_errors_as_the_status_gets_the_first_and_the_rest_is_stopped(
    house: House,
) -> None:
    house.hold("a")
    async with house.client(triton_grpc_error="true") as client:
        client.send("words", "a", count=1)
        client.send("nobody", "b")
        answer = await client.task
    assert answer.status is GrpcStatus.NOT_FOUND
    assert answer.details == "model 'nobody' is not registered"
    assert ("x-error-code", "model_not_found") in answer.trailers
    assert client.received == []
    assert house.service.closed == ["a"]


async def test_a_slow_reader_slows_the_model_down(house: House) -> None:
    async with house.client() as client:
        client.reading = False
        client.send("words", "a", count=100)
        await until(lambda: house.service.made)
        await asyncio.sleep(0)
        assert house.service.made == ["a/0"]
        client.resume()
        await client.done()
    assert client.numbers() == [*range(100)]


async def test_a_stream_is_read_no_further_while_enough_is_under_way(house: House) -> None:
    release = house.hold("a")
    async with house.client() as client:
        client.send("bert", "a")
        for _ in range(2 * MAX_UNDER_WAY):
            client.send("bert", "b")
        await until(lambda: len(house.service.asked) == MAX_UNDER_WAY)
        assert client.read == MAX_UNDER_WAY
        release("a")
        await client.done()
    assert len(client.received) == 2 * MAX_UNDER_WAY + 1


async def test_large_messages_under_way_are_bounded_by_their_size(house: House) -> None:
    release = house.hold("a")
    async with house.client() as client:
        for name in "abc":
            client.send("bert", name, filler="x" * (MAX_BYTES // 2))
        await until(lambda: client.read == 2)
        await until(lambda: house.service.ended == ["b"])
        assert client.read == 2
        release("a")
        await client.done()
    assert client.ids() == ["a", "b", "c"]


async def test_a_client_that_goes_stops_all_that_it_has_asked(house: House) -> None:
    house.hold("a", "b")
    async with house.client() as client:
        client.send("words", "a", count=1)
        client.send("words", "b", count=1)
        await until(lambda: len(house.service.asked) == 2)
        client.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await client.task
        assert {*house.service.closed} == {"a", "b"}
    assert [(line["status"], line["code"]) for line in house.lines()] == [(499, "cancelled")] * 2


async def test_a_client_that_goes_without_reading_stops_the_model(house: House) -> None:
    async with house.client() as client:
        client.reading = False
        client.send("words", "a", count=100)
        await until(lambda: house.service.made)
        await asyncio.sleep(0)
        client.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await client.task
        assert house.service.closed == ["a"]


async def test_the_streams_deadline_is_that_of_each_request(house: House) -> None:
    async with house.client(timeout_s=5) as client:
        client.send("bert", "a")
        await until(lambda: client.received)
        house.now = 103.0
        client.send("bert", "b")
        await client.done()
    calls = [call for _, call in house.service.asked]
    assert [(call.received, call.deadline) for call in calls] == [(100, 105), (103, 105)]


@pytest.mark.parametrize(
    ("now", "status"), [(104, GrpcStatus.OK), (105, GrpcStatus.DEADLINE_EXCEEDED)]
)
async def test_a_request_that_is_late_ends_a_stream_that_is_late_too(
    house: House, now: float, status: GrpcStatus
) -> None:
    release = house.hold("a")
    async with house.client(timeout_s=5) as client:
        client.send("slow", "a")
        await until(lambda: house.service.asked)
        house.now = now
        release("a")
        assert (await client.done()).status is status
    assert len(client.received) == (status is GrpcStatus.OK)


async def test_each_request_is_counted_and_has_a_line_of_its_own(house: House) -> None:
    async with house.client(x__request__id="mine") as client:
        client.send("words", "a", count=2)
        client.send("nobody", "b")
        answer = await client.done()
    assert ("x-request-id", "mine") in answer.trailers
    done, refused = sorted(house.lines(), key=lambda line: str(line["request_id"]))
    sizes = [each.ByteSize() for each in client.received if each.infer_response.id == "a"]
    assert {
        "method": "GRPC", "route": PATH, "status": 200, "request_id": "mine.1", "model": "words",
        "version": "7", "principal": "tester", "client": "10.0.0.1", "bytes_out": sum(sizes),
    }.items() <= done.items()  # fmt: skip
    assert done["bytes_in"] > 0
    assert (refused["request_id"], refused["status"]) == ("mine.2", 404)
    assert refused["code"] == "model_not_found"
    text = house.metrics.render()[0].decode()
    for outcome in ("ok", "model_not_found"):
        labels = f'caller="token",outcome="{outcome}",route="{PATH}"'
        assert f"headrace_api_requests_total{{{labels}}} 1.0" in text
    assert [call.request_id for _, call in house.service.asked] == ["mine.1", "mine.2"]


async def test_who_is_not_known_opens_no_stream(house: House) -> None:
    house.known = False
    async with house.client() as client:
        client.send("bert", "a")
        answer = await client.task
    assert answer.status is GrpcStatus.UNAUTHENTICATED
    assert client.read == 0
    (line,) = house.lines()
    assert (line["status"], line["code"]) == (401, "unauthenticated")


async def test_a_credential_that_was_withdrawn_ends_the_stream_when_what_was_let_in_is_answered(
    house: House,
) -> None:
    release = house.hold("a")
    async with house.client() as client:
        client.send("bert", "a")
        await until(lambda: house.service.asked)
        house.known = False
        client.send("bert", "b")
        await until(lambda: client.read == 2)
        release("a")
        answer = await client.task
    assert answer.status is GrpcStatus.UNAUTHENTICATED
    assert client.ids() == ["a"]
    assert [line["status"] for line in house.lines()] == [401, 200]


async def test_the_server_is_told_when_nothing_is_under_way(house: House) -> None:
    release = house.hold("a")
    async with house.client() as client:
        client.send("words", "a", count=1)
        client.send("words", "b", count=1)
        await until(lambda: house.service.ended == ["b"])
        assert (client.stream.under_way, client.idle) == (1, 0)
        release("a")
        await until(lambda: client.idle)
        assert client.stream.under_way == 0
        assert client.ids() == ["b", "a"]  # told after the last answer was sent
