from __future__ import annotations

import asyncio
import gzip
import io
import json
import math
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from headrace.domain.calls import ANONYMOUS, Call, Principal
from headrace.domain.errors import (
    HeadraceError,
    ModelFailed,
    RateLimited,
    UnknownModel,
)
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.models import TensorSpec
from headrace.domain.scopes import grants
from headrace.domain.standing import Standing
from headrace.domain.tensors import Tensor
from headrace.ports.inference import Responses
from headrace.ports.model_control import ModelMetadata
from headrace.telemetry.access_log import AccessLog
from headrace.telemetry.api_requests import ApiRequests
from headrace.telemetry.logs import LogSettings
from headrace.telemetry.metrics import Metrics
from headrace.telemetry.trace_context import RequestIds
from headrace.transport.application import HttpApplication
from headrace.transport.client_address import ClientAddress
from headrace.transport.oip_rest.generate import GenerateWire
from headrace.transport.oip_rest.server_settings import RequestTimelines
from tests.support.http_fakes import LIMITS, Wire, get, post, settle
from tests.support.waiting import until

GENERATE = "/v2/models/text/generate"
STREAM = "/v2/models/text/generate_stream"
BODY = b'{"text_input": "hello"}'
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
STANDING = Standing("minute", quota=10, window_s=60, remaining=9, reset_s=30)

Step = InferResponse | Exception


def answer(*words: str, **changes: Any) -> InferResponse:
    array = np.array([word.encode() for word in words], dtype=np.object_)
    return InferResponse("text", "1", [Tensor("text_output", "BYTES", array)], **changes)


class Models:
    """Tells the inputs of one model, and counts who asks."""

    def __init__(self) -> None:
        self.inputs: Sequence[TensorSpec] = (
            TensorSpec("text_input", "BYTES", (1,)),
            TensorSpec("stream", "BOOL", (1,), optional=True),
        )
        self.asked: list[tuple[str, str, str]] = []
        self.frozen: asyncio.Event | None = None
        self._tenant = ""

    def of(self, tenant: str) -> Any:
        self._tenant = tenant
        return self

    async def metadata(self, model: str, version: str = "") -> ModelMetadata:
        if self.frozen is not None:
            await self.frozen.wait()
        self.asked.append((self._tenant, model, version))
        if model != "text":
            raise UnknownModel(f"Request for unknown model: '{model}' is not found")
        return ModelMetadata("text", ("1",), "python", tuple(self.inputs), ())


class Service:
    """Behaves as the gateway: it unpacks, then answers what a test says, step by step."""

    def __init__(self) -> None:
        self.steps: Iterator[Step] = iter(())
        self.endless = False
        self.deadline = math.inf
        self.ended_by: list[str] = []
        self.waits: asyncio.Event | None = None
        self.given = 0
        self.closed = 0
        self.requests: list[InferRequest] = []
        self.calls: list[Call] = []
        self.streams: list[Responses] = []
        self.refusal: HeadraceError | None = None

    async def infer(self, request: InferRequest, call: Call) -> InferResponse:
        raise AssertionError(f"generate asks for streams: {request} {call}")

    def stream(self, request: InferRequest, call: Call) -> Responses:
        # kept, so that nothing but `aclose` ends it
        self.streams.append(self._stream(request, call))
        return self.streams[-1]

    async def _stream(self, request: InferRequest, call: Call) -> Responses:
        self.requests.append(request)
        self.calls.append(call)
        if self.refusal is not None:
            raise self.refusal
        assert request.unpack is not None
        await request.unpack(lambda _: self.deadline)
        try:
            while self.endless and self.given < 100:
                self.given += 1
                yield answer("x" * 1000, final=False)
            for step in self.steps:
                if isinstance(step, Exception):
                    raise step
                self.given += 1
                yield step
            if self.waits is not None:
                await self.waits.wait()
        except HeadraceError as error:
            self.ended_by.append(error.code)
            raise
        finally:
            self.closed += 1


class NoInfer:
    handler = staticmethod(lambda _target: None)


class House:
    """Everything around the wire, and a client of it."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.service, self.models = Service(), Models()
        self.now = 100.0
        self.principal = ANONYMOUS
        self.spent = 0
        self.metrics = Metrics()
        self._lines = io.StringIO()
        self._log = AccessLog(LogSettings(access="all"), stream=self._lines, clock=lambda: 0.0)
        generate = GenerateWire(
            self.service,
            self.models,  # type: ignore[arg-type] # as much of it as is asked
            max_body_bytes=600,
            max_buffered_bytes=1000,
            clock=lambda: self.now,
            ids=RequestIds(),
            timelines=RequestTimelines(),
        )
        application = HttpApplication(
            NoInfer(),  # type: ignore[arg-type] # as much of it as is asked
            generate.routes(),
            addresses=ClientAddress([]),
            authenticate=lambda _headers, _address: self.principal,
            spend=self._spend,
            ids=RequestIds(),
            access_log=self._log,
            api_requests=ApiRequests(self.metrics),
        )
        self.wire = Wire(
            application,  # type: ignore[arg-type] # what serves instead of a fake
            loop=asyncio.get_running_loop(),
            tasks=tasks,
            limits=LIMITS,
        )

    async def ask(self, path: str, body: bytes = BODY, *headers: str) -> Answer:
        self.wire.transport.written = b""
        self.wire.send(post(path, body, *headers))
        await settle()
        return Answer(self.wire.transport.written)

    def says(self, *steps: Step) -> None:
        self.service.steps = iter(steps)

    def log(self) -> list[dict[str, Any]]:
        self._log.flush()
        return [json.loads(line) for line in self._lines.getvalue().splitlines()]

    async def _spend(self, principal: Principal, address: str) -> Sequence[Standing]:
        del principal, address
        self.spent += 1
        return ()


class Answer:
    """What was written, taken apart."""

    def __init__(self, written: bytes) -> None:
        head, _, rest = written.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        self.status = int(first.split()[1])
        self.headers: Mapping[str, str] = dict(line.split(": ", 1) for line in lines)
        self.ended = True
        if self.headers.get("transfer-encoding") == "chunked":
            self.body = b""
            while rest and not rest.startswith(b"0\r\n\r\n"):
                size, _, rest = rest.partition(b"\r\n")
                self.body += rest[: int(size, 16)]
                rest = rest[int(size, 16) + 2 :]
            self.ended = bool(rest)
        else:
            self.body = rest

    @property
    def events(self) -> list[Any]:
        assert self.headers["content-type"] == "text/event-stream; charset=utf-8"
        *events, last = self.body.split(b"\n\n")
        assert last == b""
        assert all(e.startswith(b"data: ") for e in events)
        return [json.loads(e.removeprefix(b"data: ")) for e in events]

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with asyncio.TaskGroup() as tasks:
        house = House(tasks)
        yield house
        for connection in list(house.wire.host.connections):
            connection.connection_lost(None)


# --- generate ------------------------------------------------------------------------------------


async def test_one_response_is_a_flat_object_in_the_order_of_tritons(house: House) -> None:
    house.says(answer("HELLO", id="r1", parameters={"tokens": 3}))

    answered = await house.ask(GENERATE, b'{"text_input": "hello", "id": "r1", "n": 2}')

    assert answered.status == 200
    assert answered.body == (
        b'{"id":"r1","model_name":"text","model_version":"1","text_output":"HELLO","tokens":3}'
    )
    (request,) = house.service.requests
    assert (request.model, request.version, request.content.id) == ("text", "", "r1")
    assert request.content.inputs[0].array.tolist() == [b"hello"]
    assert (request.parameters, request.rows) == ({"n": 2}, 1)
    assert house.service.closed == 1


async def test_the_version_of_the_path_is_asked(house: House) -> None:
    house.says(answer("A"))
    answered = await house.ask("/v2/models/text/versions/7/generate")
    assert answered.status == 200
    assert house.service.requests[0].version == "7"
    assert house.models.asked == [("default", "text", "7")]


@pytest.mark.parametrize(
    "responses",
    [
        [],
        [
            answer("A", final=False, standings=[STANDING]),
            answer("B", final=False, standings=[STANDING]),
            answer("C", standings=[STANDING]),
        ],
    ],
)
async def test_any_other_number_of_responses_is_an_error_and_the_model_is_told_to_stop(
    house: House, responses: list[Step]
) -> None:
    house.says(*responses)
    answered = await house.ask(GENERATE)
    assert answered.status == 400
    assert answered.json["error"].startswith("generate expects model to produce exactly 1 response")
    assert house.service.given <= 2
    assert ("x-ratelimit-remaining" in answered.headers) == bool(responses)
    assert house.service.closed == 1


async def test_a_response_that_only_ends_the_stream_is_none(house: House) -> None:
    end = InferResponse("text", "", [], parameters={"triton_final_response": True})
    house.says(answer("A", final=False), end)
    answered = await house.ask(GENERATE)
    assert answered.json["text_output"] == "A"

    house.says(answer("A", final=False), end)
    assert len((await house.ask(STREAM)).events) == 1


@pytest.mark.parametrize("path", [GENERATE, STREAM])
async def test_an_error_before_the_first_response_has_its_status(house: House, path: str) -> None:
    house.says(ModelFailed("the model raised ValueError: no"))
    answered = await house.ask(path)
    assert answered.status == 500
    assert answered.headers["x-error-code"] == "model_failed"
    assert answered.json == {"error": "the model raised ValueError: no"}


# --- generate_stream -----------------------------------------------------------------------------


async def test_every_response_is_an_event_as_soon_as_it_is_there(house: House) -> None:
    house.service.waits = asyncio.Event()
    house.says(answer("A", final=False), answer("B", "C", final=False))

    answered = await house.ask(STREAM)

    assert answered.status == 200
    assert [e["text_output"] for e in answered.events] == ["A", ["B", "C"]]
    assert not answered.ended

    house.service.waits.set()
    await settle()
    assert Answer(house.wire.transport.written).ended
    house.service.waits = None
    house.says(answer("D"))
    assert (await house.ask(STREAM)).status == 200, "the connection goes on"


async def test_the_bytes_of_an_event_are_tritons(house: House) -> None:
    house.says(answer("HELLO\n"))
    answered = await house.ask(STREAM)
    assert answered.body == (
        b'data: {"model_name":"text","model_version":"1","text_output":"HELLO\\n"}\n\n'
    )


async def test_no_response_at_all_is_an_empty_stream(house: House) -> None:
    answered = await house.ask(STREAM)
    assert (answered.status, answered.events, answered.ended) == (200, [], True)


@pytest.mark.parametrize(
    ("error", "says", "code"),
    [
        (ModelFailed("failed on purpose"), "failed on purpose", "model_failed"),
        (ValueError("a secret"), "internal error", "internal"),
    ],
)
async def test_an_error_after_the_first_response_is_the_last_event(
    house: House, error: Exception, says: str, code: str
) -> None:
    house.says(answer("A", final=False), error)

    answered = await house.ask(STREAM)

    assert answered.status == 200
    assert answered.events[1:] == [{"error": says}]
    assert answered.ended
    assert house.log()[-1]["code"] == code
    assert f'outcome="{code}"' in house.metrics.render()[0].decode()


async def test_a_response_that_json_cannot_hold_is_an_error_before_and_an_event_after(
    house: House,
) -> None:
    half = InferResponse("text", "1", [Tensor("y", "FP16", np.zeros(1, dtype=np.float16))])
    house.says(half)
    assert (await house.ask(STREAM)).status == 400

    house.says(answer("A", final=False), half)
    answered = await house.ask(STREAM)
    assert "no JSON form" in answered.events[1]["error"]


async def test_the_model_is_told_to_stop_when_the_client_goes(house: House) -> None:
    house.service.waits = asyncio.Event()
    house.says(answer("A", final=False))
    await house.ask(STREAM)
    assert house.service.closed == 0

    house.wire.hang_up()
    await settle()

    assert house.service.closed == 1
    line = house.log()[-1]
    assert (line["code"], line["model"], line["version"]) == ("cancelled", "text", "1")


async def test_a_stream_that_the_end_of_the_process_cuts_off_does_not_look_whole(
    house: House,
) -> None:
    house.service.waits = asyncio.Event()
    house.says(answer("A", final=False))
    await house.ask(STREAM)

    house.wire.connection.cancel()  # as the server does before it drops its connections
    await settle()

    assert house.service.closed == 1
    assert not Answer(house.wire.transport.written).ended


async def test_a_client_that_takes_nothing_holds_the_model_up(house: House) -> None:
    house.service.endless = True
    house.wire.transport.stall()

    await house.ask(STREAM)
    assert house.service.given == 1
    await settle()
    assert house.service.given == 1

    house.wire.transport.stalled = False
    house.wire.transport.take()
    house.wire.transport.stall()
    await settle()
    assert house.service.given == 2

    house.wire.wait(61)  # it has not taken anything for too long
    assert house.wire.transport.aborted
    house.wire.hang_up()
    await settle()
    assert house.service.closed == 1


async def test_a_client_that_takes_nothing_ends_its_request_at_the_deadline(house: House) -> None:
    house.service.endless = True
    house.service.deadline = house.now + 0.02
    house.wire.transport.stall()
    await house.ask(STREAM)
    await until(lambda: house.service.closed)
    assert house.service.ended_by == ["deadline_exceeded"]

    house.wire.transport.stalled = False
    house.wire.transport.take()
    await settle()
    assert "deadline" in Answer(house.wire.transport.written).events[-1]["error"]


@pytest.mark.parametrize("path", [GENERATE, STREAM])
async def test_what_a_model_takes_is_waited_for_until_the_deadline(house: House, path: str) -> None:
    house.models.frozen = asyncio.Event()
    house.service.deadline = house.now + 0.02
    house.wire.send(post(path, BODY))
    await until(lambda: house.wire.transport.written)
    assert Answer(house.wire.transport.written).status == 504


async def test_a_client_of_http_1_0_gets_events_until_the_connection_ends(house: House) -> None:
    house.says(answer("A", final=False), answer("B", final=False))
    house.wire.send(post(STREAM, BODY).replace(b"HTTP/1.1", b"HTTP/1.0"))
    await settle()
    answered = Answer(house.wire.transport.written)
    assert [e["text_output"] for e in answered.events] == ["A", "B"]
    assert answered.headers["connection"] == "close"
    assert house.wire.ended


# --- around both ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [GENERATE, STREAM])
async def test_the_gateway_counts_it_and_nobody_else(house: House, path: str) -> None:
    house.says(answer("A", standings=[STANDING], target="canary"))
    answered = await house.ask(path)
    assert answered.headers["x-ratelimit-remaining"] == "9"
    assert answered.headers["x-headrace-target"] == "canary"
    assert house.spent == 0

    refusal = house.service.refusal = RateLimited("slow down", retry_after_s=2)
    refusal.standings = [STANDING]
    answered = await house.ask(path)
    assert (answered.status, answered.headers["retry-after"]) == (429, "2")
    assert answered.headers["x-ratelimit-remaining"] == "9"
    assert house.spent == 0


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
@pytest.mark.parametrize("path", [GENERATE, STREAM])
async def test_other_methods_are_refused_and_counted(house: House, path: str, method: str) -> None:
    house.wire.send(get(path).replace(b"GET", method.encode()))
    await settle()
    answered = Answer(house.wire.transport.written)
    assert (answered.status, answered.headers["allow"]) == (405, "POST")
    assert house.spent == 1


async def test_a_caller_may_ask_the_models_of_its_scopes(house: House) -> None:
    house.principal = Principal("a", grants=grants(["infer:other"]))
    answered = await house.ask(GENERATE)
    assert answered.status == 403
    assert house.service.requests == []

    house.principal = Principal("a", grants=grants(["infer:text"]))
    house.says(answer("A"))
    assert (await house.ask(GENERATE)).status == 200


async def test_the_call_is_that_of_an_inference(house: House) -> None:
    house.says(answer("A"))
    answered = await house.ask(
        GENERATE,
        BODY,
        "Request-Timeout: 2.5",
        f"Traceparent: 00-{TRACE}-00f067aa0ba902b7-01",
        "Priority: u=7",
        "X-Request-Id: mine",
    )
    (call,) = house.service.calls
    assert (call.deadline, call.batch, call.request_id) == (102.5, True, "mine")
    assert call.trace is not None
    assert call.trace.trace_id == TRACE
    assert call.address == "192.0.2.7"
    assert answered.headers["x-request-id"] == "mine"
    assert answered.headers["server-timing"].startswith("model;dur=0.000, platform;dur=")
    line = house.log()[-1]
    assert (line["route"], line["model"], line["version"], line["trace_id"]) == (
        "/v2/models/{model}/generate", "text", "1", TRACE,
    )  # fmt: skip

    assert (await house.ask(GENERATE, BODY, "Request-Timeout: soon")).status == 400


async def test_an_unknown_model_is_not_found_and_an_odd_name_refused(house: House) -> None:
    assert (await house.ask("/v2/models/nope/generate")).status == 404
    assert (await house.ask("/v2/models/no%20pe/generate")).status == 400
    assert (await house.ask("/v2/models/text/versions/..a/generate_stream")).status == 400


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=x"]
)
async def test_the_content_type_says_nothing(house: House, kind: str) -> None:
    house.says(answer("A"))
    assert (await house.ask(GENERATE, BODY, f"Content-Type: {kind}")).status == 200


async def test_a_compressed_body_is_read_within_the_limit(house: House) -> None:
    house.says(answer("A"))
    coding = "Content-Encoding: gzip"
    assert (await house.ask(GENERATE, gzip.compress(BODY), coding)).status == 200
    bomb = gzip.compress(b'{"text_input": "%b"}' % (b"a" * 5000))
    assert (await house.ask(GENERATE, bomb, coding)).status == 413
    assert (await house.ask(GENERATE, BODY, coding)).status == 400
    assert (await house.ask(GENERATE, BODY, "Content-Encoding: br")).status == 415


async def test_bodies_are_bounded_each_and_all_together(house: House) -> None:
    assert (await house.ask(GENERATE, b"{" + b" " * 700 + b"}")).status == 413
    _, others = house.wire.connect()
    house.service.waits = asyncio.Event()
    large = b'{"text_input": "%b"}' % (b"a" * 500)
    others.data_received(post(STREAM, large))
    await settle()
    house.wire.transport, house.wire.connection = house.wire.connect()
    assert (await house.ask(GENERATE, large)).status == 503

    house.service.waits.set()
    await settle()
    house.says(answer("A"))
    assert (await house.ask(GENERATE, large)).status == 200


async def test_what_a_model_takes_is_asked_once_in_a_while(house: House) -> None:
    for _ in range(3):
        house.says(answer("A"))
        assert (await house.ask(GENERATE)).status == 200
    assert len(house.models.asked) == 1
    house.now += 10
    house.says(answer("A"))
    assert (await house.ask(GENERATE)).status == 200
    assert len(house.models.asked) == 2


async def test_what_does_not_fit_is_tried_once_more_with_what_the_model_takes_now(
    house: House,
) -> None:
    house.says(answer("A"))
    assert (await house.ask(GENERATE)).status == 200
    house.models.inputs = (TensorSpec("text_input", "INT32", (1,)),)

    house.says(answer("A"))
    assert (await house.ask(GENERATE, b'{"text_input": 5}')).status == 200
    assert len(house.models.asked) == 2

    assert (await house.ask(GENERATE)).status == 400
    assert len(house.models.asked) == 3

    house.now += 10
    assert (await house.ask(GENERATE)).status == 400
    assert len(house.models.asked) == 4, "what was just learnt is not asked for again"
