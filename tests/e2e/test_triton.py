"""A platform before a real Triton, by REST and by gRPC: what its clients see is Triton's."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import grpc
import ml_dtypes
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from tests.support.process import Answer, Server, eventually, run_cli, serving
from tests.support.raw_http import RawClient, request
from tests.support.registry_api import Api
from tests.support.tcp_proxy import (
    PASS,
    Fault,
    Garble,
    Reset,
    TcpProxy,
    Truncate,
    tcp_proxy,
)
from tests.support.triton import Triton, require, running
from tests.support.triton_client import (
    TritonClient,
    client_of,
    endpoint,
    floats,
    grpc_address,
    is_idle,
    stream_of,
    text,
)
from tests.support.triton_misfits import MISFITS, Misfit
from tests.support.triton_onnx import CASES, Case
from tests.support.triton_repository import lay_out

#: What a busy machine may add to a time; the platform itself is to be within a tenth.
LATE_S: Final = 0.25
#: A name with all that a name may have.
ODD_NAME: Final = "v1.0-rc..2_B"

_MODELS: Final = (
    "bfloats", "echo", "failing", "halves", "identity", "magika", "mlp", "slow", "stream",
    "strings", "text", "versioned",
)  # fmt: skip
_CHECKS_S: Final = 0.1
#: Each answer is that of one attempt, and what fails on purpose is asked again.
_PLAIN: Final = f"""
[health_checks]
interval_s = {_CHECKS_S}
timeout_s = 0.3
unhealthy_after = 2
[breaker]
consecutive_failures = 0
failure_rate = 1000
open_s = 0.2
[retries]
max_attempts = 1
[log]
access = "all"
"""


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    with running(tmp_path_factory.mktemp("triton"), models=_MODELS) as server:
        yield server


@contextlib.contextmanager
def _platform(
    folder: Path, *endpoints: tuple[str, Mapping[str, Any]], ready: bool = True
) -> Iterator[Server]:
    """A platform that knows these endpoints, by their names; with `ready` one of them answers."""
    folder.mkdir(exist_ok=True)
    file = folder / "settings.toml"
    lines = [_PLAIN]
    for name, content in endpoints:
        lines.append(f"[endpoints.{name}]")
        lines.extend(f"{key} = {json.dumps(value)}" for key, value in content.items())
    file.write_text("\n".join(lines), "utf-8")
    with serving(None, folder / "log", f"--settings={file}", ready=ready) as server:
        yield server


@pytest.fixture(scope="module", params=["rest", "both"])
def backend(request: pytest.FixtureRequest) -> str:
    """How Triton is asked: by REST alone, or by gRPC, which is preferred where both are given."""
    return str(request.param)


#: Of what Triton does by gRPC only: to stream, and to notice that a caller has gone.
BY_GRPC: Final = pytest.mark.parametrize("backend", ["both"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def server(
    triton: Triton, backend: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The platform before Triton, which serves whatever is asked for."""
    folder = tmp_path_factory.mktemp("platform")
    with _platform(folder, ("triton", endpoint(triton, backend))) as found:
        eventually(lambda: found.metric("headrace_endpoint_healthy", endpoint="triton") == 1)
        yield found


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, server: Server) -> Iterator[TritonClient]:
    with client_of(server, request.param) as found:
        yield found


@pytest.fixture(autouse=True)
def sane(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test: the platform lives, nothing is left under way, nothing foreign is logged."""
    yield
    if "server" in request.fixturenames:
        found: Server = request.getfixturevalue("server")
        assert found.request("GET", "/livez").status == 200
        eventually(lambda: is_idle(found))
        assert found.foreign_lines() == []


def _no_secrets(triton: Triton, body: bytes) -> bool:
    inside = (triton.http, triton.grpc, str(triton.repository), "Traceback", 'File "', "At:\n")
    return not any(part.encode() in body for part in inside)


# ---------------------------------------------------------------- initialisation


def _address(api: Api, endpoint: str) -> Any:
    """What is known of the only address of an endpoint of the settings."""
    items = api.do("GET", "configured-endpoints")["items"]
    ((address,),) = [each["state"]["addresses"] for each in items if each["name"] == endpoint]
    return address


def _events(api: Api, endpoint: str) -> list[dict[str, Any]]:
    """What became of it, the latest first."""
    items: list[dict[str, Any]] = api.do("GET", f"endpoint-events?endpoint={endpoint}")["items"]
    return items


@pytest.mark.parametrize("wire", ["rest", "grpc", "both"])
def test_an_endpoint_is_asked_as_soon_as_its_triton_is_there(tmp_path: Path, wire: str) -> None:
    require()
    triton = Triton(tmp_path / "triton", lay_out(tmp_path / "models", ["identity"]))
    here = ("triton", {"models": ["identity"], **endpoint(triton, wire)})
    with (
        _platform(tmp_path / "platform", here, ready=False) as server,
        client_of(server, "http") as client,
    ):
        api = Api(server)
        eventually(lambda: "unhealthy" in [e["kind"] for e in _events(api, "triton")])
        assert not _address(api, "triton")["healthy"]
        assert server.request("GET", "/v2/models/identity/ready").status == 503
        try:
            triton.start()
            eventually(lambda: _address(api, "triton")["healthy"], timeout_s=3)
            assert server.request("GET", "/v2/models/identity/ready").status == 200
            x = floats(1.5, -2)
            np.testing.assert_array_equal(client.output("identity", {"x": x}), x)
            assert [e["kind"] for e in _events(api, "triton")][:2] == ["healthy", "unhealthy"]
        finally:
            triton.kill()


def test_a_wrong_port_is_503_and_named_where_endpoints_are_listed(tmp_path: Path) -> None:
    with tcp_proxy(1) as proxy:
        port = proxy.port  # where nobody listens when the block has ended
    wrong = {"models": ["a"], "url": f"http://127.0.0.1:{port}"}
    by_grpc = {"models": ["b"], "url": f"grpc://127.0.0.1:{port}", "protocol": "oip-grpc"}
    with _platform(tmp_path, ("wrong", wrong), ("wrong-grpc", by_grpc), ready=False) as server:
        api = Api(server)
        for name, model in (("wrong", "a"), ("wrong-grpc", "b")):
            eventually(lambda name=name: _events(api, name)[0]["kind"] == "unhealthy")
            address = _address(api, name)
            assert (address["address"], address["healthy"]) == (f"127.0.0.1:{port}", False)
            assert _events(api, name)[0]["detail"]
            assert server.request("GET", f"/v2/models/{model}/ready").status == 503
            answer = server.infer(model, _body("x", "FP32", [1.0]), request_timeout="2")
            assert answer.status in {502, 503}
            assert str(port) not in answer.error
        assert server.request("GET", "/livez").status == 200


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ('url = "ftp://127.0.0.1:8000"', "endpoints.triton.url"),
        ('url = "http://127.0.0.1:99999"', "endpoints.triton.url"),
        ('url = "http://:8000"', "endpoints.triton.url"),
        ('url = "grpc://127.0.0.1:8001"', "endpoints.triton.url"),
        ('url = "http://127.0.0.1:8000"\nprotocol = "oip-grpc"', "endpoints.triton.url"),
        ('url = "http://127.0.0.1:8000"\ngrpc_url = "http://127.0.0.1:1"', "triton.grpc_url"),
        ('url = "https://127.0.0.1:8000"\ngrpc_url = "grpc://127.0.0.1:1"', "triton.grpc_url"),
        ('url = "http://127.0.0.1:8000"\ngrpc_url = "grpc://192.0.2.1:1"', "endpoint_networks"),
    ],
)  # fmt: skip
def test_a_url_that_cannot_be_stops_the_start_with_its_key(
    tmp_path: Path, content: str, key: str
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f"[endpoints.triton]\n{content}\n", "utf-8")
    ended = run_cli(["serve", f"--settings={file}", "--http-port=0", "--grpc-port=0"])
    assert ended.returncode != 0
    assert key in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_triton_that_does_not_answer_is_unready_after_its_checks_and_ready_after_one(
    server: Server, triton: Triton
) -> None:
    def healthy() -> float:
        return server.metric("headrace_endpoint_healthy", endpoint="triton")

    triton.freeze()
    try:
        begun = time.monotonic()
        eventually(lambda: healthy() == 0)
        # two checks, which may take 0.3 s each, and the time between them
        assert time.monotonic() - begun < 2 * (0.3 + 1.2 * _CHECKS_S) + 4 * LATE_S
        assert server.request("GET", "/livez").status == 200
    finally:
        triton.thaw()
    eventually(lambda: healthy() == 1)
    assert server.infer("identity", _body("x", "FP32", [1.0])).status == 200


# ---------------------------------------------------------------- success


def _body(name: str, datatype: str, data: list[Any], **more: Any) -> dict[str, Any]:
    tensor = {"name": name, "datatype": datatype, "shape": [1, len(data)], "data": data}
    return {"inputs": [tensor], **more}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.model)
def test_models_answer_as_they_do_without_a_server(
    client: TritonClient, triton: Triton, case: Case
) -> None:
    answer = client.infer(case.model, case.inputs, request_id="mine")
    expected = case.bare_answer(triton)
    np.testing.assert_allclose(answer.as_numpy(case.output), expected, rtol=1e-4, atol=1e-6)
    said = answer.get_response(as_json=True) if client.wire == "grpc" else answer.get_response()
    assert (said["id"], said["model_name"], said["model_version"]) == ("mine", case.model, "1")


def test_floats_halves_and_strings_keep_their_bytes(client: TritonClient) -> None:
    singles = np.array([[np.pi, -0.0, np.inf, 1e-45]], np.float32)
    assert client.output("identity", {"x": singles}).tobytes() == singles.tobytes()
    halves = np.array([[1.5, np.inf, 6e-8]], np.float16)
    assert client.output("halves", {"x": halves}).tobytes() == halves.tobytes()
    strings = np.array([[b"ab\x00\xff", b"", "grüß".encode()]], np.object_)
    backwards = [[b"\xff\x00ba", b"", "grüß".encode()[::-1]]]
    assert client.output("strings", {"x": strings}).tolist() == backwards


def test_bf16_goes_through_as_bytes(server: Server) -> None:
    x = np.array([[1.0, -2.5]], ml_dtypes.bfloat16).tobytes()
    message = pb.ModelInferRequest(model_name="bfloats", raw_input_contents=[x])
    message.inputs.add(name="x", datatype="BF16", shape=[1, 2])
    with grpc.insecure_channel(grpc_address(server)) as channel:
        answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=20)
    assert (answer.outputs[0].datatype, list(answer.outputs[0].shape)) == ("BF16", [1, 2])
    assert _raw(answer) == x
    head = {
        "inputs": [{"name": "x", "datatype": "BF16", "shape": [1, 2],
                    "parameters": {"binary_data_size": 4}}],
        "parameters": {"binary_data_output": True},
    }  # fmt: skip
    text = json.dumps(head).encode()
    answered = server.infer("bfloats", text + x, inference_header_content_length=str(len(text)))
    assert answered.status == 200
    assert answered.body.endswith(x)


def test_typed_contents_and_json_answer_as_binary_does(server: Server) -> None:
    message = pb.ModelInferRequest(model_name="identity")
    tensor = message.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    tensor.contents.fp32_contents.extend([1.5, -2.0])
    with grpc.insecure_channel(grpc_address(server)) as channel:
        answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=20)
    assert np.frombuffer(_raw(answer), np.float32).tolist() == [1.5, -2.0]
    answered = server.infer("identity", _body("x", "FP32", [1.5, -2.0], id="j"))
    assert answered.json() == {
        "id": "j", "model_name": "identity", "model_version": "1",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1.5, -2.0]}],
    }  # fmt: skip


def _raw(answer: Any) -> bytes:
    """The only output's bytes."""
    (found,) = answer.raw_output_contents
    return bytes(found)


# ---------------------------------------------------------------- names


def test_names_and_versions_lead_to_their_model(
    client: TritonClient, server: Server, triton: Triton
) -> None:
    odd = triton.repository / ODD_NAME
    if not odd.exists():
        _copy_model(triton.repository / "versioned", odd)
    assert server.request("POST", f"/v2/repository/models/{ODD_NAME}/load", "{}").status == 200
    for model in ("versioned", ODD_NAME):
        found = [
            int(client.output(model, {"x": floats(0)}, model_version=version)[0, 0])
            for version in ("", "1", "2")
        ]
        assert found == [2, 1, 2]
    assert client.client.is_model_ready(ODD_NAME, "1")
    assert client.refusal(ODD_NAME, {"x": floats(0)}, model_version="3") in {
        (code, f"Request for unknown model: '{ODD_NAME}' version 3 is not found")
        for code in ("404", "NOT_FOUND")
    }


def _copy_model(source: Path, target: Path) -> None:
    for version in source.glob("[0-9]"):
        (target / version.name).mkdir(parents=True)
        (target / version.name / "model.py").write_bytes((version / "model.py").read_bytes())
    config = (source / "config.pbtxt").read_text("utf-8")
    renamed = config.replace(f'name: "{source.name}"', f'name: "{target.name}"', 1)
    (target / "config.pbtxt").write_text(renamed, "utf-8")


@pytest.mark.parametrize(
    "name", ["..", "%2e%2e", "a%2Fb", "..%2Fidentity", "identity%00", "identity%0d%0aX:1", "%20"]
)
def test_a_name_that_could_lead_elsewhere_never_reaches_triton(server: Server, name: str) -> None:
    before = server.metric("headrace_endpoint_attempts_total")
    for path in (f"/v2/models/{name}/infer", f"/v2/models/identity/versions/{name}/infer"):
        answer = server.request("POST", path, _body("x", "FP32", [1.0]))
        assert answer.status in {400, 404}
    assert server.metric("headrace_endpoint_attempts_total") == before


# ---------------------------------------------------------------- invalid input


_MISFITS: Final = {
    **MISFITS,
    "large batch": Misfit(
        "magika", {"bytes": np.zeros((17, 2048), np.int32)},
        "[request id: r] inference request batch-size must be <= 16 for 'magika'",
    ),
    "empty batch": Misfit(
        "identity", {"x": np.zeros((0, 2), np.float32)},
        "[request id: r] input byte size mismatch for input 'x' for model 'identity'. "
        "Expected 8, got 0",
    ),
    "decoupled": Misfit(
        "stream", {"count": np.array([1], np.int32)},
        "doesn't support models with decoupled transaction policy",
        http="501", grpc="UNIMPLEMENTED",
    ),
}  # fmt: skip


@pytest.mark.parametrize("misfit", _MISFITS.values(), ids=_MISFITS)
def test_a_request_that_does_not_fit_is_refused_in_tritons_words(
    client: TritonClient, misfit: Misfit
) -> None:
    status, sentence = client.refusal(misfit.model, misfit.inputs, request_id="r", **misfit.options)
    assert status == {"http": misfit.http, "grpc": misfit.grpc}[client.wire]
    assert misfit.says in sentence


X: Final = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"inputs": [{**X, "datatype": "FP99"}]}, "datatype"),
        ({"inputs": [{**X, "data": [1.0]}]}, "data|elements"),
        ({"inputs": [{**X, "shape": [1, -1]}]}, "shape"),
        ({"inputs": [{**X, "shape": [16, 2**60 + 2]}]}, "shape|x"),
        ({"inputs": [{**X, "data": ["a", "b"]}]}, "data|input 'x'"),
        ({"inputs": [X, X]}, "'x'"),
        ({"inputs": [X], "outputs": [{"name": "nope"}]}, "unexpected inference output 'nope'"),
        ({"inputs": [X], "parameters": {"timeout": "x"}}, "timeout"),
        ({"inputs": [X], "parameters": {"a": [1]}}, "parameter"),
        ({"inputs": [X], "parameters": {"triton_x": 1}}, "triton_"),
        ({"inputs": [{**X, "parameters": {"shared_memory_region": "r"}}]}, "shared"),
        ({"inputs": "x"}, "inputs"),
        ({}, "inputs"),
        ('{"inputs": [,', "JSON"),
        ("", "JSON"),
        ('{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [NaN]}]}', ""),
    ],
)
def test_json_that_is_no_request_is_refused_and_named(
    server: Server, triton: Triton, body: Any, names: str
) -> None:
    answer = server.infer("identity", body)
    assert answer.status == 400, answer.body
    assert any(name in answer.error for name in names.split("|")), answer.error
    assert _no_secrets(triton, answer.body)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"raw_input_contents": [b"\0" * 12]}, "12"),
        ({"raw_input_contents": []}, ""),
        ({"raw_input_contents": [b"\0" * 8, b"\0" * 8]}, ""),
        ({"shape": [1, -1]}, ""),
        ({"datatype": "FP99"}, ""),
        ({"typed": [1.0, 2.0]}, "raw_input_contents"),
        ({"model_name": "strings", "datatype": "BYTES",
          "raw_input_contents": [b"\1\0\0\0a"]}, "x"),
        ({"model_name": "strings", "datatype": "BYTES",
          "raw_input_contents": [b"\xff\xff\xff\x7fa"]}, "x"),
        ({"model_version": "abc"}, "version"),
    ],
    ids=["too many bytes", "none", "one too many", "negative", "datatype", "typed and raw", "short",
         "beyond the end", "version"],
)  # fmt: skip
def test_a_message_that_is_no_request_is_an_invalid_argument(
    server: Server, triton: Triton, change: dict[str, Any], says: str, backend: str
) -> None:
    given = {"model_name": "identity", "datatype": "FP32", "shape": [1, 2], "typed": [],
             "raw_input_contents": [b"\0" * 8], "model_version": "", **change}  # fmt: skip
    message = pb.ModelInferRequest(
        model_name=given["model_name"],
        model_version=given["model_version"],
        raw_input_contents=given["raw_input_contents"],
    )
    tensor = message.inputs.add(name="x", datatype=given["datatype"], shape=given["shape"])
    if given["typed"]:
        tensor.contents.fp32_contents.extend(given["typed"])
    with grpc.insecure_channel(grpc_address(server)) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelInfer.future(message, timeout=20)
        error = call.exception()
    if len(given["raw_input_contents"]) > 1 and backend == "both":
        assert error is None, "Triton takes no offence at what is too much, and it is passed on"
        return
    assert isinstance(error, grpc.RpcError)
    wanted = {grpc.StatusCode.INVALID_ARGUMENT}
    if given["model_version"]:  # by REST it is a part of the path, where Triton has no such place
        wanted.add(grpc.StatusCode.NOT_FOUND)
    assert call.code() in wanted, call.details()
    assert says in call.details() or call.code() is grpc.StatusCode.NOT_FOUND
    assert _no_secrets(triton, call.details().encode())


def test_framing_of_binary_tensors_that_is_wrong_is_refused(server: Server) -> None:
    head = {"inputs": [{**X, "parameters": {"binary_data_size": 8}}]}
    del head["inputs"][0]["data"]
    body = json.dumps(head).encode()
    for length in ("-1", "9999", "99999999999", "x"):
        refused = server.infer("identity", body + b"\0" * 8, inference_header_content_length=length)
        assert refused.status == 400, length
    for data in (b"", b"\0" * 7, b"\0" * 12):
        length = str(len(body))
        refused = server.infer("identity", body + data, inference_header_content_length=length)
        assert refused.status == 400, len(data)


@pytest.mark.parametrize(
    ("how", "statuses"),
    [
        ("INVALID_ARG", {"400", "INVALID_ARGUMENT"}),
        ("NOT_FOUND", {"404", "NOT_FOUND"}),
        ("UNSUPPORTED", {"501", "UNIMPLEMENTED"}),
        ("INTERNAL", {"502", "UNAVAILABLE"}),
        ("UNAVAILABLE", {"502", "UNAVAILABLE"}),
        ("raise", {"502", "UNAVAILABLE"}),
    ],
)
def test_an_error_of_the_model_keeps_its_meaning_and_a_fault_its_reason_to_itself(
    client: TritonClient, triton: Triton, how: str, statuses: set[str]
) -> None:
    status, sentence = client.refusal("failing", {"how": np.array([[how]], np.object_)})
    assert status in statuses
    assert (sentence == "failed on purpose") is ("502" not in statuses)
    assert _no_secrets(triton, sentence.encode())
    assert "raised on purpose" not in sentence


# ---------------------------------------------------------------- cancellation


def _slow(ms: int, **more: Any) -> dict[str, Any]:
    return _body("ms", "INT32", [ms], **more)


def _noted(triton: Triton, model: str, line: str, timeout_s: float = 10.0) -> None:
    eventually(lambda: line in triton.journal(model), timeout_s=timeout_s)


def _statuses(server: Server, request_id: str) -> list[int]:
    return [
        line["status"]
        for line in server.log()
        if line["logger"] == "headrace.access" and line.get("request_id") == request_id
    ]


def test_a_client_that_leaves_ends_its_request_at_triton_too_where_that_is_asked_by_grpc(
    server: Server, triton: Triton, backend: str
) -> None:
    name = uuid.uuid4().hex
    with RawClient(server.port) as left:
        body = json.dumps(_slow(1500, id=name)).encode()
        left.send(request("POST", "/v2/models/slow/infer", body, {"X-Request-Id": name}))
        _noted(triton, "slow", f"{name} started")
    gone = time.monotonic()
    eventually(lambda: server.metric("headrace_endpoint_in_flight") == 0, timeout_s=1 + LATE_S)
    eventually(lambda: _statuses(server, name) == [499])
    if backend == "both":
        _noted(triton, "slow", f"{name} cancelled", timeout_s=1 + LATE_S)
    else:  # its HTTP front end does not look whether anybody is there
        _noted(triton, "slow", f"{name} finished")
        assert time.monotonic() - gone > 1
        assert f"{name} cancelled" not in triton.journal("slow")


@BY_GRPC
def test_a_call_that_is_cancelled_ends_its_request_at_triton_too(
    server: Server, triton: Triton
) -> None:
    runs, waits = uuid.uuid4().hex, uuid.uuid4().hex
    with client_of(server, "grpc") as client:
        tensors = client.tensors({"ms": np.array([[60_000]], np.int32)})
        calls = [client.client.async_infer("slow", tensors, _ignore, request_id=runs)]
        _noted(triton, "slow", f"{runs} started")
        calls.append(client.client.async_infer("slow", tensors, _ignore, request_id=waits))
        eventually(lambda: server.metric("headrace_endpoint_in_flight") == 2)
        for call in calls:
            call.cancel()
        _noted(triton, "slow", f"{runs} cancelled", timeout_s=1 + LATE_S)
        eventually(lambda: server.metric("headrace_endpoint_in_flight") == 0, timeout_s=1 + LATE_S)
    assert server.infer("slow", _slow(1)).status == 200
    assert f"{waits} started" not in triton.journal("slow"), "what waited was never begun"


def _ignore(result: Any, error: Any) -> None:
    """What a call that is cancelled came to."""


# ---------------------------------------------------------------- deadlines


@pytest.mark.parametrize("how", ["header", "parameter", "grpc"])
def test_a_request_that_takes_too_long_is_over_at_its_deadline(
    server: Server, triton: Triton, backend: str, how: str
) -> None:
    name, limit_s = uuid.uuid4().hex, 0.5
    assert server.infer("slow", _slow(1)).status == 200  # nothing of an earlier test runs there
    begun = time.monotonic()
    if how == "grpc":
        with client_of(server, "grpc") as client:
            status, _ = client.refusal(
                "slow",
                {"ms": np.array([[1500]], np.int32)},
                request_id=name,
                client_timeout=limit_s,
            )
        assert status == "DEADLINE_EXCEEDED"
    else:
        wish = {"parameters": {"timeout": int(limit_s * 1e6)}} if how == "parameter" else {}
        headers = {"request_timeout": str(limit_s)} if how == "header" else {}
        answer = server.infer("slow", _slow(1500, id=name, **wish), **headers)
        assert (answer.status, answer.headers["x-error-code"]) == (504, "deadline_exceeded")
    assert limit_s - 0.1 <= time.monotonic() - begun <= limit_s + 0.1 + LATE_S
    _noted(triton, "slow", f"{name} {'cancelled' if backend == 'both' else 'finished'}")


def test_what_is_left_of_the_deadline_is_told_to_triton(client: TritonClient) -> None:
    def timeout_us(**options: Any) -> int:
        found = client.output("echo", {}, **options)
        return int(json.loads(found[0])["timeout_us"])

    assert 55_000_000 < timeout_us() <= 60_000_000  # the default of the gateway
    assert 1_500_000 < timeout_us(timeout=2_000_000) <= 2_000_000
    seen = json.loads(
        client.output(
            "echo", {}, request_id="r", sequence_id=7, sequence_start=True,
            parameters={"text": "a", "number": 3, "flag": True},
        )[0]
    )  # fmt: skip
    assert (seen["id"], seen["sequence"], seen["flags"]) == ("r", 7, 1)
    assert seen["parameters"] == {"text": "a", "number": 3, "flag": True}


def test_what_waits_too_long_in_tritons_queue_is_never_run(server: Server, triton: Triton) -> None:
    first, late = uuid.uuid4().hex, uuid.uuid4().hex
    runs = threading.Thread(target=server.infer, args=("slow", _slow(700, id=first)))
    runs.start()
    _noted(triton, "slow", f"{first} started")
    answer = server.infer("slow", _slow(1, id=late), request_timeout="0.3")
    assert answer.status in {503, 504}
    runs.join()
    assert server.infer("slow", _slow(1)).status == 200
    assert f"{late} started" not in triton.journal("slow")


# ---------------------------------------------------------------- invalid answers


@pytest.fixture(scope="module")
def spoilt(
    triton: Triton, backend: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, TcpProxy]]:
    """A platform with a proxy before Triton that spoils what Triton says."""
    by_grpc = backend == "both"
    with tcp_proxy(triton.grpc_port if by_grpc else triton.http_port) as proxy:
        where = {"url": f"{'grpc' if by_grpc else 'http'}://127.0.0.1:{proxy.port}"}
        where |= {"protocol": "oip-grpc"} if by_grpc else {}
        with _platform(tmp_path_factory.mktemp("spoilt"), ("triton", where)) as server:
            eventually(lambda: server.metric("headrace_endpoint_healthy") == 1)
            yield server, proxy


@pytest.mark.parametrize("fault", [Garble(), Truncate(60), Reset(60)], ids=repr)
def test_an_answer_that_is_none_is_502_and_the_next_is_right(
    spoilt: tuple[Server, TcpProxy], triton: Triton, fault: Fault
) -> None:
    server, proxy = spoilt
    body = _body("x", "FP32", [1.0])
    assert server.infer("identity", body).status == 200
    proxy.fault = fault
    answer = server.infer("identity", body, request_timeout="5")
    proxy.fault = PASS
    assert answer.status == 502
    assert _no_secrets(triton, answer.body)
    again: Answer = eventually(lambda: _good(server.infer("identity", body)))
    assert again.json()["outputs"][0]["data"] == [1.0]


def _good(answer: Answer) -> Answer | None:
    return answer if answer.status == 200 else None


# ---------------------------------------------------------------- streams


def _count(count: int, **more: int) -> dict[str, Any]:
    return {name: np.array([value], np.int32) for name, value in {"count": count, **more}.items()}


@BY_GRPC
def test_a_stream_gives_the_responses_of_its_requests(server: Server) -> None:
    with client_of(server, "grpc") as client, stream_of(client) as stream:
        stream.ask("stream", _count(5), request_id="a", enable_empty_final_response=True)
        assert [stream.value("index") for _ in range(5)] == [0, 1, 2, 3, 4]
        assert stream.is_final()
        stream.ask("stream", _count(0), request_id="b", enable_empty_final_response=True)
        assert stream.is_final()
        words = {"text_input": text("a b c"), "stream": np.array([True])}
        stream.ask("text", words, request_id="c")
        assert [stream.value("text_output") for _ in range(3)] == [b"A", b"B", b"C"]
        stream.ask("identity", {"x": floats(2.5)}, request_id="d")
        assert stream.value("y") == 2.5


@BY_GRPC
def test_responses_come_when_the_model_gives_them(server: Server) -> None:
    with client_of(server, "grpc") as client, stream_of(client) as stream:
        stream.ask("stream", _count(1, delay_ms=1500), request_id="slow")
        begun = time.monotonic()
        stream.ask("stream", _count(2, delay_ms=50), request_id="quick")
        results = [stream.next()[0] for _ in range(3)]
        assert [each.get_response().id for each in results] == ["quick", "quick", "slow"]
        assert time.monotonic() - begun < 1.5 + 4 * LATE_S
    with RawClient(server.port) as raw:
        body = json.dumps({"count": 3, "delay_ms": 300}).encode()
        raw.send(request("POST", "/v2/models/stream/generate_stream", body))
        raw.socket.settimeout(0.6 + LATE_S)
        assert b'"index":0' in raw.socket.recv(4096)
        assert b'"index":1' in raw.socket.recv(4096)


@BY_GRPC
def test_an_error_ends_its_request_and_not_the_stream(server: Server, triton: Triton) -> None:
    with client_of(server, "grpc") as client, stream_of(client) as stream:
        stream.ask("stream", _count(3, fail_after=2), request_id="a")
        assert [stream.value("index") for _ in range(2)] == [0, 1]
        result, error = stream.next()
        assert result is None
        assert isinstance(error, InferenceServerException)
        assert _no_secrets(triton, error.message().encode())
        stream.ask("nope", _count(1), request_id="b")
        _, error = stream.next()
        assert "Request for unknown model: 'nope' is not found" in error.message()
        stream.ask("stream", {"z": np.array([1], np.int32)}, request_id="c")
        _, error = stream.next()
        assert "'z'" in error.message() or "'count'" in error.message()
        stream.ask("stream", _count(1), request_id="d")
        assert stream.value("index") == 0


@BY_GRPC
def test_a_stream_that_is_cancelled_ends_at_triton_too(server: Server, triton: Triton) -> None:
    name = uuid.uuid4().hex
    with client_of(server, "grpc") as client:
        with contextlib.suppress(InferenceServerException), stream_of(client) as stream:
            stream.ask("stream", _count(10_000, delay_ms=20), request_id=name)
            assert stream.value("index") == 0
            stream.cancel()
        _noted(triton, "stream", f"{name} cancelled", timeout_s=1 + LATE_S)
    left = uuid.uuid4().hex
    with RawClient(server.port) as raw:
        body = json.dumps({"id": left, "count": 10_000, "delay_ms": 20}).encode()
        raw.send(request("POST", "/v2/models/stream/generate_stream", body))
        assert b"200 OK" in raw.socket.recv(4096)
    _noted(triton, "stream", f"{left} cancelled", timeout_s=1 + LATE_S)


@BY_GRPC
def test_a_stream_beyond_its_deadline_ends_with_an_error_and_at_triton(
    server: Server, triton: Triton
) -> None:
    name = uuid.uuid4().hex
    begun = time.monotonic()
    answer = server.request(
        "POST", "/v2/models/stream/generate_stream",
        json.dumps({"id": name, "count": 10_000, "delay_ms": 50}), {"request-timeout": "0.6"},
    )  # fmt: skip
    assert 0.5 <= time.monotonic() - begun <= 0.7 + LATE_S
    *good, last, end = answer.body.split(b"\n\n")
    assert (answer.status, end) == (200, b"")
    assert len(good) > 3
    assert "deadline" in json.loads(last.removeprefix(b"data: "))["error"]
    _noted(triton, "stream", f"{name} cancelled", timeout_s=1 + LATE_S)


@BY_GRPC
def test_a_slow_reader_loses_nothing_and_holds_up_nobody(server: Server) -> None:
    words = [letter * 300_000 for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"]  # no buffer takes all
    body = json.dumps({"text_input": " ".join(words), "stream": True}).encode()
    with RawClient(server.port, receive_bytes=4096, timeout_s=60) as raw:
        raw.send(request("POST", "/v2/models/text/generate_stream", body))
        eventually(lambda: server.metric("headrace_endpoint_in_flight") == 1)
        for _ in range(20):
            assert server.infer("identity", _body("x", "FP32", [1.0])).status == 200
        assert server.metric("headrace_endpoint_in_flight") == 1, "its answers wait for it"
        raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1_000_000)
        answer = raw.answer()
    assert answer is not None
    events = [json.loads(event[6:]) for event in answer.body.split(b"\n\n")[:-1]]
    assert [event["text_output"] for event in events] == words


def test_generate_answers_once(server: Server, backend: str) -> None:
    def generate(verb: str, **body: Any) -> Answer:
        return server.request("POST", f"/v2/models/text/{verb}", json.dumps(body))

    if backend == "rest":
        for verb in ("generate", "generate_stream"):
            refused = generate(verb, text_input="a")
            assert refused.status == 501
            assert "grpc_url" in refused.error
        return
    said = {"id": "a", "model_name": "text", "model_version": "1", "text_output": "GOOD DAY"}
    assert generate("generate", text_input="good day", id="a").json() == said
    several = generate("generate", text_input="good day", stream=True)
    assert (several.status, "exactly 1 response" in several.error) == (400, True)
    events = generate("generate_stream", text_input="good day", stream=True).body.split(b"\n\n")
    assert [json.loads(e[6:])["text_output"] for e in events[:-1]] == ["GOOD", "DAY"]
    broken = generate("generate_stream", text_input="good day", stream=True, fail_after=1)
    *good, last, _ = broken.body.split(b"\n\n")
    assert (broken.status, len(good), list(json.loads(last[6:]))) == (200, 1, ["error"])
    refused = generate("generate_stream", text_input="good day", stream=True, fail_after=0)
    assert refused.status >= 400
    assert refused.error
