"""ModelStreamInfer, by NVIDIA's clients unmodified, and by bytes where these cannot misbehave."""

from __future__ import annotations

import asyncio
import hashlib
import queue
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
import pytest
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import InferenceServerClient, InferInput, InferResult
from tritonclient.grpc.service_pb2 import (
    ModelInferRequest,
    ModelStreamInferResponse,
)
from tritonclient.utils import InferenceServerException

from tests.support import repositories
from tests.support.process import Server, eventually, serving
from tests.support.registry_api import Api
from tests.support.waiting import settled, until

STREAM: Final = "/inference.GRPCInferenceService/ModelStreamInfer"
LIMIT_S: Final = 20
FILLER_BYTES: Final = 64 * 1024
ENDLESS: Final = 1_000_000
NUMBERS: Final = """\
import os
from pathlib import Path

import numpy as np

from headrace import Model, TensorSpec


class Numbers(Model):
    inputs = (
        TensorSpec("count", "INT64", (1,)),
        TensorSpec("fails", "BOOL", (1,), optional=True),
        TensorSpec("filler_bytes", "INT64", (1,), optional=True),
    )
    outputs = (TensorSpec("number", "INT64", (1,)), TensorSpec("filler", "UINT8", (-1,)))

    def load(self, context):
        self.journal = Path(context.parameters["journal"])

    def predict(self, inputs):
        filler = np.zeros(int(inputs.get("filler_bytes", [0])[0]), np.uint8)
        try:
            for number in range(int(inputs["count"][0])):
                self.note(str(number))
                yield {"number": np.array([number]), "filler": filler}
            if inputs.get("fails", [False])[0]:
                raise RuntimeError("failed on purpose")
        finally:
            self.note("end")

    def note(self, event):
        file = os.open(self.journal, os.O_WRONLY | os.O_APPEND)
        os.write(file, event.encode() + b"\\n")
        os.close(file)
"""


class House:
    """A platform with `numbers`, a generator that notes what it made, and `plus`, which is none."""

    def __init__(self, folder: Path, server: Server, address: str) -> None:
        self.server = server
        self.address = address
        self._journal = folder / "journal"

    def journal(self) -> list[str]:
        """What the generator made since it was forgotten: numbers, and "end"."""
        return self._journal.read_text("utf-8").split()

    def lines(self, stream: str) -> list[dict[str, Any]]:
        """Those of the requests of a stream in the access log, by its id."""
        log = self.server.log()
        return [x for x in log if str(x.get("request_id", "")).startswith(f"{stream}.")]

    def forget(self) -> None:
        self._journal.write_text("")


def build(folder: Path) -> Path:
    """The model repository."""
    journal = folder / "journal"
    journal.touch()
    config = f'instances = 4\n[parameters]\njournal = "{journal}"\n'
    repositories.python_model(folder / "models", "numbers", NUMBERS, config=config)
    repositories.plus(folder / "models", "plus", amount=1)
    return folder / "models"


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, grpc_address: Callable[[Server], str]
) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("streaming")
    environment = {"HEADRACE_LOG__ACCESS": "all"}
    with serving(build(folder), folder / "log", environment=environment) as server:
        yield House(folder, server, grpc_address(server))


@pytest.fixture
def house(running: House) -> House:
    running.forget()
    return running


def numbers(count: int, *, fails: bool = False, filler_bytes: int = 0) -> list[InferInput]:
    return [
        InferInput("count", [1], "INT64").set_data_from_numpy(np.array([count])),
        InferInput("fails", [1], "BOOL").set_data_from_numpy(np.array([fails])),
        InferInput("filler_bytes", [1], "INT64").set_data_from_numpy(np.array([filler_bytes])),
    ]


def number(value: float) -> list[InferInput]:
    x = np.array([[value]], np.float32)
    return [InferInput("x", [1, 1], "FP32").set_data_from_numpy(x)]


class Client:
    """NVIDIA's client with one open stream, whose callback puts all that it is given in a queue."""

    def __init__(self, address: str, **stream: Any) -> None:
        self._answers: queue.SimpleQueue[tuple[Any, InferenceServerException | None]] = (
            queue.SimpleQueue()
        )
        self.client = InferenceServerClient(address)
        self.client.start_stream(lambda result, error: self._answers.put((result, error)), **stream)

    def ask(self, model: str, inputs: list[InferInput], request_id: str = "", **more: Any) -> None:
        self.client.async_stream_infer(model, inputs, request_id=request_id, **more)

    def answer(self) -> InferResult:
        result, error = self._answers.get(timeout=LIMIT_S)
        assert error is None, error
        return result

    def error(self) -> InferenceServerException:
        result, error = self._answers.get(timeout=LIMIT_S)
        assert error is not None, result.get_response()
        return error

    def stop(self, *, cancel: bool = False) -> None:
        self.client.stop_stream(cancel_requests=cancel)

    def left(self) -> int:
        """How many answers nobody has looked at."""
        return self._answers.qsize()


@contextmanager
def streaming(address: str, **stream: Any) -> Iterator[Client]:
    client = Client(address, **stream)
    try:
        yield client
    finally:
        client.stop(cancel=True)
        client.client.close()


def is_final(result: InferResult) -> bool:
    parameters = result.get_response().parameters
    return bool(parameters["triton_final_response"].bool_param)


def request_id(result: InferResult) -> str:
    return str(result.get_response().id)


def test_a_generators_answers_come_in_order_and_its_end_goes_unsaid(house: House) -> None:
    with streaming(house.address) as client:
        client.ask("numbers", numbers(5), "a")
        answers = [client.answer() for _ in range(5)]
        client.stop()
        assert client.left() == 0
    assert [answer.as_numpy("number")[0] for answer in answers] == [0, 1, 2, 3, 4]
    assert not any(is_final(answer) for answer in answers)
    assert {request_id(answer) for answer in answers} == {"a"}


@pytest.mark.parametrize("count", [0, 2])
def test_the_end_is_said_in_an_empty_answer_to_who_asks_for_it(house: House, count: int) -> None:
    with streaming(house.address) as client:
        client.ask("numbers", numbers(count), "a", enable_empty_final_response=True)
        answers = [client.answer() for _ in range(count + 1)]
        client.stop()
        assert client.left() == 0
    assert [is_final(answer) for answer in answers] == [False] * count + [True]
    last = answers[-1].get_response()
    assert (last.id, last.model_name, len(last.outputs)) == ("a", "numbers", 0)


def test_a_plain_model_answers_once(house: House) -> None:
    with streaming(house.address) as client:
        client.ask("plus", number(1), "a", enable_empty_final_response=True)
        answer = client.answer()
        client.stop()
        assert client.left() == 0
    assert answer.as_numpy("y")[0, 0] == 2
    assert is_final(answer)


def test_plain_requests_over_one_stream_are_answered_in_their_order(house: House) -> None:
    with streaming(house.address) as client:
        for i in range(200):
            client.ask("plus", number(i), str(i))
        answers = [client.answer() for _ in range(200)]
    assert [request_id(answer) for answer in answers] == [str(i) for i in range(200)]
    assert [answer.as_numpy("y")[0, 0] for answer in answers] == [i + 1 for i in range(200)]


def test_requests_on_one_stream_are_answered_side_by_side(house: House) -> None:
    with streaming(house.address) as client:
        client.ask("numbers", numbers(ENDLESS, filler_bytes=FILLER_BYTES), "endless")
        client.answer()
        client.ask("numbers", numbers(3), "short")
        client.ask("plus", number(1), "plain")
        found: dict[str, list[int]] = {"endless": [], "short": [], "plain": []}
        while len(found["short"]) < 3 or not found["plain"]:
            answer = client.answer()
            output = "y" if request_id(answer) == "plain" else "number"
            found[request_id(answer)].append(int(answer.as_numpy(output).ravel()[0]))
    assert found["short"] == [0, 1, 2]
    assert found["plain"] == [2]
    assert found["endless"] == [*range(1, len(found["endless"]) + 1)]


def test_an_error_in_the_middle_ends_its_request_and_not_the_stream(house: House) -> None:
    with streaming(house.address) as client:
        client.ask("numbers", numbers(2, fails=True), "a")
        assert [client.answer().as_numpy("number")[0] for _ in range(2)] == [0, 1]
        assert "failed" in client.error().message()
        client.ask("nobody", number(1))
        assert "nobody" in client.error().message()
        client.ask("plus", numbers(1))
        assert "x" in client.error().message()
        client.ask("plus", number(1))
        assert client.answer().as_numpy("y")[0, 0] == 2


def test_who_wants_errors_as_the_status_gets_the_first_one_so(house: House) -> None:
    with streaming(house.address, headers={"triton_grpc_error": "true"}) as client:
        client.ask("nobody", number(1))
        assert client.error().status() == "StatusCode.NOT_FOUND"
        with pytest.raises(InferenceServerException, match="no longer in valid state"):
            client.ask("plus", number(1))


def test_cancelling_the_stream_stops_the_model(house: House) -> None:
    with streaming(house.address, headers={"x-request-id": "stopped"}) as client:
        client.ask("numbers", numbers(ENDLESS, filler_bytes=FILLER_BYTES))
        client.answer()
        client.stop(cancel=True)
        eventually(lambda: house.journal()[-1] == "end")
    eventually(lambda: house.server.metric("headrace_requests_in_flight") == 0)
    (line,) = eventually(lambda: house.lines("stopped"))
    assert (line["route"], line["model"], line["status"]) == (STREAM, "numbers", 499)


def test_the_deadline_of_the_stream_ends_what_is_under_way(house: House) -> None:
    with streaming(house.address, stream_timeout=0.5) as client:
        client.ask("numbers", numbers(ENDLESS, filler_bytes=FILLER_BYTES))
        result, error = None, None
        while error is None:
            result, error = client._answers.get(timeout=LIMIT_S)  # noqa: SLF001 - either will do
        assert result is None
        assert error.status() == "StatusCode.DEADLINE_EXCEEDED"
    eventually(lambda: house.journal()[-1] == "end")


def encoded(model: str, inputs: list[InferInput], message_id: str = "") -> bytes:
    message = ModelInferRequest(model_name=model, id=message_id)
    for each in inputs:
        message.inputs.append(each._get_tensor())  # noqa: SLF001 - as its client does
        message.raw_input_contents.append(each._get_content())  # noqa: SLF001
    return bytes(message.SerializeToString())


class Raw:
    """A stream of bytes."""

    def __init__(self, channel: grpc.aio.Channel, **more: Any) -> None:
        self.call = channel.stream_stream(STREAM)(timeout=LIMIT_S, **more)

    async def send(self, *messages: bytes) -> None:
        for message in messages:
            await self.call.write(message)

    async def receive(self) -> ModelStreamInferResponse:
        return ModelStreamInferResponse.FromString(await self.call.read())


@pytest.fixture
async def raw(house: House) -> AsyncIterator[Raw]:
    options = [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(house.address, options=options) as channel:
        raw = Raw(channel)
        yield raw
        raw.call.cancel()


async def test_a_reader_that_stops_stops_the_model(house: House, raw: Raw) -> None:
    count = 800  # 50 MiB
    await raw.send(encoded("numbers", numbers(count, filler_bytes=FILLER_BYTES)))
    await until(house.journal)
    made = await settled(lambda: len(house.journal()), still_s=0.5)
    assert made < count / 2
    seen = [(await raw.receive()).infer_response.raw_output_contents[0] for _ in range(count)]
    assert [int.from_bytes(each, "little") for each in seen] == [*range(count)]


async def test_a_client_that_reads_nothing_is_read_no_further(house: House, raw: Raw) -> None:
    sent = 0

    async def send() -> None:
        nonlocal sent
        message = encoded("numbers", numbers(ENDLESS, filler_bytes=FILLER_BYTES))
        message += b"\xd2\x3e\x80\x80\x04" + bytes(FILLER_BYTES)  # a field that nobody knows
        while True:
            await raw.send(message)
            sent += 1

    sending = asyncio.create_task(send())
    await until(lambda: sent)
    await settled(lambda: sent, still_s=0.5)
    sending.cancel()
    assert sent < 500
    assert house.server.metric("headrace_requests_in_flight") <= 64


async def test_bytes_that_are_no_request_do_not_end_the_stream(raw: Raw) -> None:
    await raw.send(b"\xff", encoded("../etc", number(1), "a"), encoded("plus", number(1), "b"))
    first, second, third = [await raw.receive() for _ in range(3)]
    assert first.error_message.startswith("message 1 of the stream: ")
    assert (second.infer_response.id, bool(second.error_message)) == ("a", True)
    assert (third.infer_response.id, third.error_message) == ("b", "")
    await raw.call.done_writing()
    assert await raw.call.code() is grpc.StatusCode.OK


async def test_a_stream_without_a_message_ends_well(raw: Raw) -> None:
    await raw.call.done_writing()
    assert await raw.call.code() is grpc.StatusCode.OK


async def test_each_request_of_a_stream_is_in_the_access_log(house: House) -> None:
    async with grpc.aio.insecure_channel(house.address) as channel:
        raw = Raw(channel, metadata=(("x-request-id", "my-stream"),))
        await raw.send(encoded("plus", number(1)), encoded("nobody", number(1)))
        await raw.call.done_writing()
        assert len([answer async for answer in raw.call]) == 2
        assert await raw.call.code() is grpc.StatusCode.OK
        assert ("x-request-id", "my-stream") in [*await raw.call.trailing_metadata()]
    eventually(lambda: len(house.lines("my-stream")) == 2)
    lines = {line["request_id"]: line["status"] for line in house.lines("my-stream")}
    assert lines == {"my-stream.1": 200, "my-stream.2": 404}


async def test_the_client_for_asyncio_streams_too(house: House) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "numbers", "inputs": numbers(3), "request_id": "a"}
        yield {"model_name": "plus", "inputs": number(1), "request_id": "b"}
        yield {"model_name": "nobody", "inputs": number(1), "request_id": "c"}

    answers, errors = [], []
    async with triton_aio.InferenceServerClient(house.address) as client:
        async for result, error in client.stream_infer(requests(), stream_timeout=LIMIT_S):
            if error is None:
                answers.append(request_id(result))
            else:
                errors.append(error.message())
    assert sorted(answers) == ["a", "a", "a", "b"]
    assert len(errors) == 1


def test_a_credential_that_is_revoked_ends_the_stream(
    tmp_path: Path, grpc_address: Callable[[Server], str]
) -> None:
    digest = hashlib.sha256(b"operator").hexdigest()
    environment = {"HEADRACE_AUTHENTICATION__TOKENS__operator": digest}
    with serving(build(tmp_path), tmp_path / "log", environment=environment) as server:
        api = Api(server, authorization="Bearer operator")
        key = api.do("POST", "keys", {"name": "guest", "scopes": ["infer"]})
        with streaming(grpc_address(server), headers={"x-api-key": key["secret"]}) as client:
            client.ask("plus", number(1))
            assert client.answer().as_numpy("y")[0, 0] == 2
            api.do("POST", f"keys/{key['id']}/revoke")
            error = None
            until = time.monotonic() + LIMIT_S
            while error is None and time.monotonic() < until:
                client.ask("plus", number(1))
                _, error = client._answers.get(timeout=LIMIT_S)  # noqa: SLF001 - either will do
            assert error is not None
            assert error.status() == "StatusCode.UNAUTHENTICATED"


class TestDraining:
    """A platform that is told to end."""

    @pytest.fixture
    def house(self, tmp_path: Path, grpc_address: Callable[[Server], str]) -> Iterator[House]:
        with serving(build(tmp_path), tmp_path / "log") as server:
            yield House(tmp_path, server, grpc_address(server))

    def test_an_idle_stream_keeps_nobody_waiting(self, house: House) -> None:
        with streaming(house.address) as client:
            client.ask("plus", number(1))
            client.answer()
            began = time.monotonic()
            assert house.server.stop() == 0
            assert time.monotonic() - began < 5
            assert client.error().status() == "StatusCode.UNAVAILABLE"
        assert "cut off" not in house.server.log_text()

    def test_what_is_under_way_is_answered_before_the_stream_ends(self, house: House) -> None:
        with streaming(house.address) as client:
            client.ask("numbers", numbers(800, filler_bytes=FILLER_BYTES))
            client.answer()
            house.server.process.send_signal(signal.SIGTERM)
            seen = [client.answer().as_numpy("number")[0] for _ in range(799)]
            assert client.error().status() == "StatusCode.UNAVAILABLE"
            assert house.server.process.wait(LIMIT_S) == 0
        assert seen == [*range(1, 800)]
        assert "cut off" not in house.server.log_text()
