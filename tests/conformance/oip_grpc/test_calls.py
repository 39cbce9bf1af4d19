"""Who may call, until when, in which order; and what becomes of work that nobody waits for."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from tritonclient.grpc.service_pb2 import ModelInferRequest

from tests.support import repositories
from tests.support.process import Server, eventually, run_cli, serving

SERVICE: Final = "/inference.GRPCInferenceService/"
PRIORITIES: Final = """\
[batching]
priority_levels = 2
default_priority = 2
"""


class House:
    """A platform with one gated model that runs one request at a time."""

    def __init__(self, server: Server, channel: grpc.Channel, model: repositories.Gated) -> None:
        self.server = server
        self.channel = channel
        self.model = model
        self.asked: list[grpc.Future] = []  # one that is forgotten is cancelled

    def ask(self, value: int, *, timeout_s: float = 30, **parameters: int) -> grpc.Future:
        """Send a request; it answers value * 10."""
        message = ModelInferRequest(model_name=self.model.name)
        tensor = message.inputs.add(name="value", datatype="INT64", shape=[1, 1])
        tensor.contents.int64_contents.append(value)
        for key, number in parameters.items():
            message.parameters[key].int64_param = number
        method = self.channel.unary_unary(f"{SERVICE}ModelInfer")
        metadata = (("x-request-id", f"ask-{value}"),)
        future = method.future(message.SerializeToString(), timeout=timeout_s, metadata=metadata)
        self.asked.append(future)
        return future

    def wait_until_running(self, *values: int) -> None:
        eventually(lambda: [row for run in self.model.runs() for row in run] == [*values])

    def wait_until_in_flight(self, count: int) -> None:
        eventually(lambda: self.server.metric("headrace_requests_in_flight") == count)

    def outcomes(self, outcome: str) -> float:
        return self.server.metric("headrace_requests_total", outcome=outcome)

    def logged(self, value: int) -> dict[str, Any]:
        """The line of a request in the access log."""

        def found() -> list[dict[str, Any]]:
            return [x for x in self.server.log() if x.get("request_id") == f"ask-{value}"]

        (line,) = eventually(found)
        return dict(line)


@pytest.fixture
def house(tmp_path: Path, grpc_address: Callable[[Server], str]) -> Iterator[House]:
    models = tmp_path / "models"
    model = repositories.Gated(models, "gated", config=PRIORITIES, max_batch_size=1)
    with (
        serving(models, tmp_path / "log") as server,
        grpc.insecure_channel(grpc_address(server)) as channel,
    ):
        yield House(server, channel, model)


def code(future: grpc.Future) -> str:
    return str(future.code().name)


def test_a_cancelled_request_never_starts(house: House) -> None:
    with house.model.shut():
        running = house.ask(1)
        house.wait_until_running(1)
        waiting = house.ask(2)
        house.wait_until_in_flight(2)
        assert waiting.cancel()
        house.wait_until_in_flight(1)
    running.result()
    assert house.ask(3).exception() is None
    assert house.model.runs() == [[1], [3]]
    assert house.outcomes("cancelled") == 1
    line = house.logged(2)
    assert (line["status"], line["model"]) == (499, "gated")


def test_a_request_whose_deadline_passes_in_the_queue_never_starts(house: House) -> None:
    with house.model.shut():
        running = house.ask(1)
        house.wait_until_running(1)
        waiting = house.ask(2, timeout_s=0.2)
        assert code(waiting) == "DEADLINE_EXCEEDED"
        house.wait_until_in_flight(1)
    running.result()
    assert house.model.runs() == [[1]]
    # the client's clock and ours may each be the first to see it
    assert house.outcomes("cancelled") + house.outcomes("deadline_exceeded") == 1
    line = house.logged(2)
    assert (line["status"], line["code"]) == (504, "deadline_exceeded")


def test_the_requests_own_timeout_is_a_deadline_too(house: House) -> None:
    with house.model.shut():
        house.ask(1)
        house.wait_until_running(1)
        late = house.ask(2, timeout=50_000)
        assert code(late) == "DEADLINE_EXCEEDED"
        assert "deadline" in late.details()
    assert house.outcomes("deadline_exceeded") == 1


def test_the_more_urgent_request_goes_first(house: House) -> None:
    with house.model.shut():
        house.ask(1)
        house.wait_until_running(1)
        for value, more in ((2, {}), (3, {"priority": 2}), (4, {"priority": 1})):
            house.ask(value, **more)
            house.wait_until_in_flight(value)
    for each in house.asked:
        each.result()
    assert house.model.runs() == [[1], [4], [2], [3]]


def test_a_channel_that_goes_away_cancels_what_it_asked_for(
    house: House, grpc_address: Callable[[Server], str]
) -> None:
    with house.model.shut():
        house.ask(1)
        house.wait_until_running(1)
        with grpc.insecure_channel(grpc_address(house.server)) as other:
            gone = House(house.server, other, house.model).ask(2)
            house.wait_until_in_flight(2)
        assert code(gone) == "CANCELLED"
        house.wait_until_in_flight(1)
    assert house.ask(3).exception() is None
    assert house.model.runs() == [[1], [3]]


def test_a_full_queue_is_unavailable_at_once(
    tmp_path: Path, grpc_address: Callable[[Server], str]
) -> None:
    models = tmp_path / "models"
    model = repositories.Gated(models, "gated", max_batch_size=1)
    limit = {"HEADRACE_ORCHESTRATOR__MAX_QUEUE_SIZE": "1"}
    with (
        serving(models, tmp_path / "log", environment=limit) as server,
        grpc.insecure_channel(grpc_address(server)) as channel,
        model.shut(),
    ):
        house = House(server, channel, model)
        house.ask(1)
        house.wait_until_running(1)
        house.ask(2)
        house.wait_until_in_flight(2)
        refused = house.ask(3)
        assert code(refused) == "UNAVAILABLE"
        assert house.outcomes("queue_full") == 1


def test_a_stopping_platform_answers_what_it_has(house: House) -> None:
    with house.model.shut():
        running = house.ask(1)
        house.wait_until_running(1)
        house.server.process.send_signal(signal.SIGTERM)
        eventually(lambda: "draining" in house.server.log_text())
        # refused on this connection, or not connected any more
        eventually(lambda: code(house.ask(2, timeout_s=5)) == "UNAVAILABLE")
        assert not running.done()
    assert running.result()
    assert house.server.process.wait(20) == 0
    assert house.model.runs() == [[1]]


def test_a_stopping_platform_cuts_off_what_takes_too_long(
    tmp_path: Path, grpc_address: Callable[[Server], str]
) -> None:
    models = tmp_path / "models"
    model = repositories.Gated(models, "gated")
    impatient = {"HEADRACE_SERVER__DRAIN_GRACE_S": "0.1", "HEADRACE_ORCHESTRATOR__DRAIN_S": "0.1"}
    with (
        serving(models, tmp_path / "log", environment=impatient) as server,
        grpc.insecure_channel(grpc_address(server)) as channel,
        model.shut(),
    ):
        house = House(server, channel, model)
        running = house.ask(1)
        house.wait_until_running(1)
        server.process.send_signal(signal.SIGTERM)
        assert code(running) == "UNAVAILABLE"
        eventually(lambda: "requests were cut off after 0.1 s" in server.log_text())


# --- who may call


@pytest.fixture(scope="module")
def guarded(
    tmp_path_factory: pytest.TempPathFactory, grpc_address: Callable[[Server], str]
) -> Iterator[grpc.Channel]:
    """To a platform that asks for the token "secret"."""
    folder = tmp_path_factory.mktemp("guarded")
    repositories.identity(folder / "models", "FP32")
    digest = hashlib.sha256(b"secret").hexdigest()
    tokens = {"HEADRACE_AUTHENTICATION__TOKENS__TESTER": digest}
    with (
        serving(folder / "models", folder / "log", environment=tokens) as server,
        grpc.insecure_channel(grpc_address(server)) as channel,
    ):
        yield channel


METHODS: Final = [
    "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer", "ModelConfig",
    "ModelStatistics", "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload",
]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer wrong"),)])
def test_every_method_but_the_probes_asks_for_a_token(
    guarded: grpc.Channel, method: str, metadata: tuple[tuple[str, str], ...]
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        guarded.unary_unary(SERVICE + method)(b"", timeout=10, metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert caught.value.details() == (
        "this request needs a valid token: Authorization: Bearer <token>"
    )


@pytest.mark.parametrize(
    "path", [f"{SERVICE}ServerLive", f"{SERVICE}ServerReady", "/grpc.health.v1.Health/Check"]
)
def test_probes_need_no_token(guarded: grpc.Channel, path: str) -> None:
    assert guarded.unary_unary(path)(b"", timeout=10)


@pytest.mark.parametrize(
    "credential",
    [("authorization", "Bearer secret"), ("authorization", "secret"), ("x-api-key", "secret")],
)
def test_a_token_is_taken_wherever_http_takes_it(
    guarded: grpc.Channel, credential: tuple[str, str]
) -> None:
    ask = guarded.unary_unary(f"{SERVICE}RepositoryIndex")
    assert b"identity_fp32" in ask(b"", timeout=10, metadata=(credential,))


# --- the port


def test_a_port_that_is_taken_stops_the_start_with_one_line(
    tmp_path: Path, house: House, grpc_address: Callable[[Server], str]
) -> None:
    (tmp_path / "none").mkdir()
    _, port = grpc_address(house.server).split(":")
    ended = run_cli(["serve", str(tmp_path / "none"), "--http-port=0", f"--grpc-port={port}"])
    assert ended.returncode == 2
    last = ended.stderr.splitlines()[-1]
    assert last == f"headrace: cannot listen on 127.0.0.1:{port}: Address already in use"


def test_the_library_is_imported_by_a_server_only() -> None:
    program = (
        "import sys, headrace.cli, headrace.compose.platform;"
        "print({'grpc', 'google.protobuf'} & {*sys.modules})"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True, timeout=30
    )
    assert ended.stdout == "set()\n"
