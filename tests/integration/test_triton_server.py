"""What the real Triton does by itself, so that a platform in front of it is compared with facts."""

from __future__ import annotations

import contextlib
import json
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from tests.support.process import eventually
from tests.support.raw_http import RawClient, request
from tests.support.tls_front import authority
from tests.support.triton import Triton, running
from tests.support.triton_client import TritonClient, floats
from tests.support.triton_misfits import MISFITS, Misfit
from tests.support.triton_onnx import CASES, Case

_EMPTY_FINAL = {"triton_enable_empty_final_response": True}


@pytest.fixture(params=["http", "grpc"])
def wire(request: pytest.FixtureRequest, triton: Triton) -> Iterator[TritonClient]:
    talk = TritonClient(request.param, getattr(triton, request.param))
    yield talk
    talk.client.close()


@pytest.fixture
def grpc_wire(triton: Triton) -> Iterator[TritonClient]:
    talk = TritonClient("grpc", triton.grpc)
    yield talk
    talk.client.close()


@pytest.fixture
def http(triton: Triton) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=triton.url, timeout=20.0, trust_env=False) as client:
        yield client


def _ms(value: int) -> dict[str, np.ndarray[Any, Any]]:
    return {"ms": np.array([[value]], np.int32)}


def _stream(triton: Triton, *requests: pb.ModelInferRequest) -> list[pb.ModelStreamInferResponse]:
    """All messages of a stream that carries these requests."""
    with grpc.insecure_channel(triton.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return list(stub.ModelStreamInfer(iter(requests), timeout=20))


def _counting(
    id: str, parameters: Mapping[str, bool] | None = None, **inputs: int
) -> pb.ModelInferRequest:
    """A request to `stream`."""
    message = pb.ModelInferRequest(model_name="stream", id=id)
    for name, value in inputs.items():
        message.inputs.add(name=name, datatype="INT32", shape=[1])
        message.raw_input_contents.append(np.int32(value).tobytes())
    for name, flag in (parameters or {}).items():
        message.parameters[name].bool_param = flag
    return message


def _index(message: pb.ModelStreamInferResponse) -> int:
    return int(np.frombuffer(message.infer_response.raw_output_contents[0], np.int32)[0])


def _is_final(message: pb.ModelStreamInferResponse) -> bool:
    return bool(message.infer_response.parameters["triton_final_response"].bool_param)


def _events(answer: httpx.Response) -> list[Any]:
    """What stands after `data: ` in each event, where there is nothing else."""
    events = answer.content.split(b"\n\n")
    assert events.pop() == b""
    assert all(event.startswith(b"data: ") for event in events)
    return [json.loads(event[6:]) for event in events]


@contextlib.contextmanager
def _together(*calls: Any) -> Iterator[None]:
    """Run the calls in threads while the block runs, and wait for their end."""
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join()


@contextlib.contextmanager
def _asked(wire: TritonClient, model: str, **options: Any) -> Iterator[str]:
    """A request that runs or waits until the block ends, and is cancelled then; gives its id."""
    name = uuid.uuid4().hex
    call = wire.client.async_infer(
        model, wire.tensors(_ms(60_000)), _ignore, request_id=name, **options
    )
    try:
        yield name
    finally:
        call.cancel()


def _ignore(result: Any, error: Any) -> None:
    """What a call that is cancelled came to."""


def _until_waiting(triton: Triton, model: str, count: int) -> None:
    waiting = f'nv_inference_pending_request_count{{model="{model}",version="1"}} {count}\n'
    url = f"http://127.0.0.1:{triton.metrics_port}/metrics"
    eventually(lambda: waiting in httpx.get(url, trust_env=False).text)


def _until_noted(triton: Triton, model: str, *lines: str) -> None:
    eventually(lambda: set(lines) <= set(triton.journal(model)))


# ---------------------------------------------------------------- values


def test_a_model_answers_alike_on_both_wires(wire: TritonClient) -> None:
    answer = wire.infer("identity", {"x": floats(1.5, -2.0)}, request_id="a")
    np.testing.assert_array_equal(answer.as_numpy("y"), floats(1.5, -2.0))


def test_halves_and_strings_keep_their_bytes(wire: TritonClient) -> None:
    halves = np.array([[1.5, np.inf, 6e-8]], np.float16)
    np.testing.assert_array_equal(wire.infer("halves", {"x": halves}).as_numpy("y"), halves)
    strings = np.array([[b"ab\x00\xff", b""]], np.object_)
    answer = wire.infer("strings", {"x": strings})
    assert answer.as_numpy("y").tolist() == [[b"\xff\x00ba", b""]]


def test_bf16_passes_through_the_python_backend_as_bytes(triton: Triton) -> None:
    message = pb.ModelInferRequest(model_name="bfloats", raw_input_contents=[b"\x80\x3f\x01\x40"])
    message.inputs.add(name="x", datatype="BF16", shape=[1, 2])
    with grpc.insecure_channel(triton.grpc) as channel:
        answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=20)
    assert (answer.outputs[0].datatype, list(answer.outputs[0].shape)) == ("BF16", [1, 2])
    assert list(answer.raw_output_contents) == [b"\x80\x3f\x01\x40"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.model)
def test_onnx_models_answer_as_they_do_without_triton(
    wire: TritonClient, triton: Triton, case: Case
) -> None:
    answer = wire.infer(case.model, case.inputs).as_numpy(case.output)
    np.testing.assert_allclose(answer, case.bare_answer(triton), rtol=1e-4, atol=1e-6)


def test_the_latest_version_answers_unless_one_is_named(wire: TritonClient) -> None:
    def answered(version: str) -> int:
        answer = wire.infer("versioned", {"x": floats(0)}, model_version=version)
        return int(answer.as_numpy("version")[0, 0])

    assert [answered(version) for version in ("", "1", "2")] == [2, 1, 2]


def test_a_model_sees_the_timeout_and_the_parameters(
    wire: TritonClient, http: httpx.Client
) -> None:
    answer = wire.infer(
        "echo", {}, request_id="r", timeout=2_000_000, priority=1, sequence_id=7,
        sequence_start=True, parameters={"text": "a", "number": 3, "flag": True},
    )  # fmt: skip
    seen = json.loads(answer.as_numpy("request")[0])
    assert seen == {
        "id": "r",
        "timeout_us": 2_000_000,
        "parameters": {"text": "a", "number": 3, "flag": True},
        "sequence": 7,
        "flags": 1,
        "outputs": ["request"],
    }
    generated = http.post("/v2/models/echo/generate", json={"timeout": 5, "priority": 1}).json()
    seen = json.loads(generated["request"])
    assert (seen["timeout_us"], seen["parameters"]) == (0, {"timeout": 5, "priority": 1})


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("misfit", MISFITS.values(), ids=MISFITS)
def test_a_request_that_does_not_fit_is_refused(wire: TritonClient, misfit: Misfit) -> None:
    status, sentence = wire.refusal(misfit.model, misfit.inputs, request_id="r", **misfit.options)
    assert status in {misfit.http, misfit.grpc}
    assert sentence.startswith(misfit.says)


@pytest.mark.parametrize(
    ("how", "http_status", "code"),
    [
        ("INVALID_ARG", "400", "INVALID_ARGUMENT"),
        ("ALREADY_EXISTS", "400", "ALREADY_EXISTS"),
        ("CANCELLED", "400", "CANCELLED"),
        ("UNKNOWN", "400", "UNKNOWN"),
        ("NOT_FOUND", "404", "NOT_FOUND"),
        ("INTERNAL", "500", "INTERNAL"),
        ("UNSUPPORTED", "501", "UNIMPLEMENTED"),
        ("UNAVAILABLE", "503", "UNAVAILABLE"),
    ],
)
def test_an_error_of_the_model_keeps_its_code(
    wire: TritonClient, how: str, http_status: str, code: str
) -> None:
    status, sentence = wire.refusal("failing", {"how": np.array([[how]], np.object_)})
    assert status in {http_status, code}
    assert sentence == "failed on purpose"


def test_an_exception_of_the_model_is_an_internal_error_with_its_traceback(
    wire: TritonClient,
) -> None:
    status, sentence = wire.refusal("failing", {"how": np.array([["raise"]], np.object_)})
    assert status in {"500", "INTERNAL"}
    assert sentence.startswith(
        "Failed to process the request(s) for model 'failing_0_0', message: "
        "ValueError: raised on purpose\n\nAt:\n"
    )


def test_a_decoupled_model_refuses_the_plain_call(wire: TritonClient) -> None:
    status, sentence = wire.refusal("stream", {"count": np.array([1], np.int32)})
    assert status in {"501", "UNIMPLEMENTED"}
    assert sentence.endswith(" doesn't support models with decoupled transaction policy")


# ---------------------------------------------------------------- queues, cancellation


def test_requests_that_wait_together_run_as_one_batch(
    triton: Triton, grpc_wire: TritonClient
) -> None:
    def ask() -> None:
        grpc_wire.infer("identity", {"x": floats(1)})

    def batched() -> bool:
        with _together(*[ask] * 8):
            pass
        stats = httpx.get(f"{triton.url}/v2/models/identity/stats", trust_env=False).json()
        return any(batch["batch_size"] > 1 for batch in stats["model_stats"][0]["batch_stats"])

    eventually(batched)


def test_a_request_that_waits_longer_than_its_timeout_is_refused(
    triton: Triton, wire: TritonClient, grpc_wire: TritonClient
) -> None:
    with _asked(grpc_wire, "slow") as first:
        _until_noted(triton, "slow", f"{first} started")
        refusal = wire.refusal("slow", _ms(1), request_id="late", timeout=50_000)
    assert refusal[0] in {"503", "UNAVAILABLE"}
    assert refusal[1] == "Request timeout expired"
    _until_noted(triton, "slow", f"{first} cancelled")
    assert "late started" not in triton.journal("slow")


def test_a_full_queue_refuses(triton: Triton, wire: TritonClient, grpc_wire: TritonClient) -> None:
    with _asked(grpc_wire, "queued") as first:
        _until_noted(triton, "queued", f"{first} started")
        with _asked(grpc_wire, "queued"):
            _until_waiting(triton, "queued", 1)
            refusal = wire.refusal("queued", _ms(1), request_id="third")
    assert refusal[0] in {"503", "UNAVAILABLE"}
    assert refusal[1] == "[request id: third] Exceeds maximum queue size"
    # what was cancelled takes its place in the queue until Triton looks there
    _until_waiting(triton, "queued", 0)


def test_a_higher_priority_overtakes_in_the_queue(triton: Triton, grpc_wire: TritonClient) -> None:
    def ask(name: str, priority: int) -> Any:
        return lambda: grpc_wire.infer("slow", _ms(1), request_id=name, priority=priority)

    with contextlib.ExitStack() as waiting, _asked(grpc_wire, "slow") as first:
        _until_noted(triton, "slow", f"{first} started")
        waiting.enter_context(_together(ask("second", 2)))
        _until_waiting(triton, "slow", 1)
        waiting.enter_context(_together(ask("urgent", 1)))
        _until_waiting(triton, "slow", 2)
    lines = [x for x in triton.journal("slow") if x in {"second started", "urgent started"}]
    assert lines == ["urgent started", "second started"]


def test_a_cancelled_call_stops_the_model(triton: Triton, grpc_wire: TritonClient) -> None:
    with _asked(grpc_wire, "slow") as runs:
        _until_noted(triton, "slow", f"{runs} started")
        with _asked(grpc_wire, "slow") as waits:
            _until_waiting(triton, "slow", 1)
    _until_noted(triton, "slow", f"{runs} cancelled")
    grpc_wire.infer("slow", _ms(1))
    assert f"{waits} started" not in triton.journal("slow")


def test_a_deadline_of_grpc_cancels(triton: Triton, grpc_wire: TritonClient) -> None:
    status, _ = grpc_wire.refusal("slow", _ms(60_000), request_id="deadline", client_timeout=0.5)
    assert status == "DEADLINE_EXCEEDED"
    _until_noted(triton, "slow", "deadline cancelled")


def test_a_client_that_leaves_cancels_its_stream_but_not_its_plain_request(triton: Triton) -> None:
    body = {"inputs": [{"name": "ms", "datatype": "INT32", "shape": [1, 1], "data": [300]}]}
    with RawClient(triton.http_port) as client:
        plain = json.dumps({"id": "left", **body}).encode()
        client.send(request("POST", "/v2/models/slow/infer", plain))
        _until_noted(triton, "slow", "left started")
    with RawClient(triton.http_port) as client:
        stream = json.dumps({"id": "left", "count": 9999, "delay_ms": 10}).encode()
        client.send(request("POST", "/v2/models/stream/generate_stream", stream))
        _until_noted(triton, "stream", "left started")
    _until_noted(triton, "stream", "left cancelled")
    _until_noted(triton, "slow", "left finished")


# ---------------------------------------------------------------- streams


def test_a_stream_ends_with_an_empty_message_where_that_was_asked_for(triton: Triton) -> None:
    plain = _stream(triton, _counting("a", count=2))
    assert [(_index(m), _is_final(m), m.infer_response.id) for m in plain] == [
        (0, False, "a"), (1, False, "a"),
    ]  # fmt: skip
    *data, final = _stream(triton, _counting("b", _EMPTY_FINAL, count=2))
    assert [_index(m) for m in data] == [0, 1]
    assert _is_final(final)
    assert final.infer_response.id == "b"
    assert not final.infer_response.outputs
    assert _stream(triton, _counting("c", count=0)) == []


def test_an_error_in_a_stream_ends_its_request_and_not_the_stream(triton: Triton) -> None:
    failing = _counting("a", count=3, fail_after=1)
    unknown = pb.ModelInferRequest(model_name="nope", id="b")
    messages = _stream(triton, failing, unknown, _counting("c", count=1))
    a, b, c = ([m for m in messages if m.infer_response.id == name] for name in "abc")
    assert [m.error_message for m in a] == ["", "failed on purpose"]
    assert _is_final(a[1])
    assert [m.error_message for m in b] == ["Request for unknown model: 'nope' is not found"]
    assert "triton_final_response" not in b[0].infer_response.parameters
    assert [_index(m) for m in c] == [0]


def test_a_cancelled_stream_reaches_the_model(triton: Triton) -> None:
    with grpc.insecure_channel(triton.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelStreamInfer(iter([_counting("endless", count=9999, delay_ms=5)]))
        assert _index(next(call)) == 0
        call.cancel()
        _until_noted(triton, "stream", "endless cancelled")


def test_generate_answers_with_exactly_one_response(http: httpx.Client) -> None:
    def generate(**body: Any) -> tuple[int, Any]:
        answer = http.post("/v2/models/text/generate", json=body)
        assert answer.headers["content-type"] == "application/json"
        return answer.status_code, answer.json()

    several = (
        "generate expects model to produce exactly 1 response, use generate stream for model that "
        "generates various number of responses"
    )
    assert generate(text_input="good day", id="a") == (
        200, {"id": "a", "model_name": "text", "model_version": "1", "text_output": "GOOD DAY"},
    )  # fmt: skip
    assert generate(text_input="good day", stream=True) == (200, {"error": several})
    assert generate(text_input="good", stream=True, fail_after=0) == (
        400, {"error": "failed on purpose"},
    )  # fmt: skip
    status, body = generate()
    assert status == 400
    assert "missing required input(s) ['text_input']" in body["error"]


def test_generate_stream_sends_an_event_for_each_response(http: httpx.Client) -> None:
    def generate(**body: Any) -> tuple[int, list[Any]]:
        answer = http.post("/v2/models/text/generate_stream", json={"stream": True, **body})
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        return answer.status_code, _events(answer)

    def said(word: str) -> dict[str, str]:
        return {"model_name": "text", "model_version": "1", "text_output": word}

    failed = {"error": "failed on purpose"}
    assert generate(text_input="good day") == (200, [said("GOOD"), said("DAY")])
    assert generate(text_input="") == (200, [])
    assert generate(text_input="good day", fail_after=1) == (200, [said("GOOD"), failed])
    assert generate(text_input="good day", fail_after=0) == (400, [failed])


# ---------------------------------------------------------------- operation


def test_statistics_and_metrics_count_requests_and_their_time(
    triton: Triton, http: httpx.Client, grpc_wire: TritonClient
) -> None:
    def count() -> tuple[int, int]:
        (stats,) = http.get("/v2/models/mlp/stats").json()["model_stats"]
        success = stats["inference_stats"]["success"]
        return stats["inference_count"], success["count"]

    rows, requests = count()
    grpc_wire.infer("mlp", {"x": np.zeros((3, 256), np.float32)})
    assert count() == (rows + 3, requests + 1)
    url = f"http://127.0.0.1:{triton.metrics_port}/metrics"
    names = {line.partition("{")[0] for line in httpx.get(url, trust_env=False).text.splitlines()}
    assert names >= {
        "nv_inference_request_success",
        "nv_inference_request_failure",
        "nv_inference_request_duration_us",
        "nv_inference_queue_duration_us",
        "nv_inference_compute_infer_duration_us",
        "nv_inference_pending_request_count",
    }


def test_models_are_loaded_and_unloaded_on_command(tmp_path: Path) -> None:
    def index() -> dict[tuple[str, str], str]:
        entries = httpx.post(f"{server.url}/v2/repository/index", trust_env=False).json()
        return {(x["name"], x.get("version", "")): x.get("state", "") for x in entries}

    with running(tmp_path, models=("identity", "versioned"), load=("identity",)) as server:
        client = tritonclient.http.InferenceServerClient(server.http)
        assert index() == {("identity", "1"): "READY", ("versioned", ""): ""}
        client.load_model("versioned")
        assert client.is_model_ready("versioned")
        client.unload_model("versioned")
        assert not client.is_model_ready("versioned")
        eventually(lambda: index()["versioned", "1"] == "UNAVAILABLE")
        with pytest.raises(InferenceServerException, match="failed to poll from model repository"):
            client.load_model("nope")
        client.close()


def test_a_dead_program_of_a_model_answers_with_errors_until_it_is_loaded_again(
    tmp_path: Path,
) -> None:
    with running(tmp_path, models=("identity",)) as server:
        talk = TritonClient("http", server.http)
        server.kill_program("identity")
        status, sentence = talk.refusal("identity", {"x": floats(1)})
        assert (status, sentence) == ("500", "Stub process 'identity_0_0' is not healthy.")
        assert talk.client.is_model_ready("identity")
        talk.client.load_model("identity")
        assert talk.infer("identity", {"x": floats(1)}).as_numpy("y").tolist() == [[1.0]]
        talk.client.close()


def test_a_frozen_server_goes_on_and_a_killed_one_leaves_nothing_behind(tmp_path: Path) -> None:
    with running(tmp_path, models=("identity",)) as server:
        live = f"{server.url}/v2/health/live"
        server.freeze()
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(live, timeout=0.3, trust_env=False)
        server.thaw()
        assert httpx.get(live, timeout=10, trust_env=False).is_success
        server.restart()
        assert httpx.get(live, timeout=10, trust_env=False).is_success
        assert server.shared_memory()
        assert _processes_of(server)
        server.freeze()  # what is frozen cannot end by itself
    assert not server.shared_memory()
    eventually(lambda: not _processes_of(server))


def test_grpc_can_ask_for_certificates(tmp_path: Path) -> None:
    files = authority(tmp_path)
    arguments = [
        "--grpc-use-ssl-mutual=true",
        f"--grpc-server-cert={files.server_file}",
        f"--grpc-server-key={files.server_file}",
        f"--grpc-root-cert={files.ca_file}",
    ]
    mine = files.client_file.read_bytes()
    with running(tmp_path, models=("identity",), arguments=arguments) as server:
        for pair, code in (((mine, mine), None), ((None, None), grpc.StatusCode.UNAVAILABLE)):
            trust = grpc.ssl_channel_credentials(files.ca_file.read_bytes(), *pair)
            with grpc.secure_channel(server.grpc, trust) as channel:
                call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ServerLive.future(
                    pb.ServerLiveRequest(), timeout=10
                )
                assert (None if call.exception() is None else call.code()) is code


def _processes_of(server: Triton) -> list[str]:
    """Command lines of all processes that have to do with its repository."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = file.read_text(errors="replace")
            if str(server.repository) in line:
                found.append(line)
    return found
