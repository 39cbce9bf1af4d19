"""NVIDIA's gRPC client for Python, unmodified: every call that is offered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

from tests.support.process import Server, eventually
from tests.support.repositories import DATATYPES, example

Array = np.ndarray[Any, Any]


@pytest.fixture
def client(address: str) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(address) as client:
        yield client


@pytest.fixture
def spare(client: InferenceServerClient) -> Iterator[str]:
    """A model to load and unload: y = x + 1."""
    client.load_model("spare")
    yield "spare"
    client.load_model("spare")


def tensor(name: str, data: Array, datatype: str) -> InferInput:
    return InferInput(name, list(data.shape), datatype).set_data_from_numpy(data)


def floats(name: str, *values: float) -> InferInput:
    """A column of FP32: one row for each value."""
    return tensor(name, np.array(values, np.float32).reshape(-1, 1), "FP32")


def pair() -> list[InferInput]:
    """a = 1, 2, 3, 4 and b = 10, 20, 30, 40."""
    a = np.array([[1, 2, 3, 4]], np.int32)
    return [tensor("a", a, "INT32"), tensor("b", a * 10, "INT32")]


def refusal(caught: pytest.ExceptionInfo[InferenceServerException]) -> tuple[str, str]:
    return caught.value.status().removeprefix("StatusCode."), caught.value.message()


def access(server: Server, request_id: str) -> dict[str, Any]:
    """The line of a request in the access log."""

    def written() -> list[dict[str, Any]]:
        lines = [line for line in server.log() if line["logger"] == "headrace.access"]
        return [line for line in lines if line["request_id"] == request_id]

    (line,) = eventually(written)
    return dict(line)


NAP = [tensor("seconds", np.array([0.3], np.float32), "FP32")]
UNKNOWN = ("NOT_FOUND", "Request for unknown model: 'nobody' is not found")


# --- health and metadata


def test_the_server_is_live_and_ready(client: InferenceServerClient) -> None:
    assert client.is_server_live() is True
    assert client.is_server_ready() is True


def test_whether_a_model_is_ready_can_be_asked_before_it_is_there(
    client: InferenceServerClient,
) -> None:
    assert client.is_model_ready("versions") is True
    assert client.is_model_ready("versions", "10") is True
    assert client.is_model_ready("versions", "3") is False
    assert client.is_model_ready("corrupt") is False
    assert client.is_model_ready("nobody") is False


def test_the_server_tells_its_name_and_extensions(client: InferenceServerClient) -> None:
    metadata = client.get_server_metadata()
    assert metadata.name == "headrace"
    assert metadata.version
    assert {"classification", "statistics", "model_repository"} <= {*metadata.extensions}
    assert "system_shared_memory" not in metadata.extensions


def test_a_model_tells_its_versions_and_tensors(client: InferenceServerClient) -> None:
    metadata = client.get_model_metadata("versions", as_json=True)
    assert metadata == {
        "name": "versions",
        "versions": ["1", "2", "10"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": ["-1", "1"]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": ["-1", "1"]}],
    }
    assert client.get_model_metadata("versions", "2", as_json=True) == metadata


def test_a_model_tells_its_configuration(client: InferenceServerClient) -> None:
    config = client.get_model_config("animals").config
    assert (config.name, config.max_batch_size) == ("animals", 8)
    assert (config.backend, config.platform) == ("onnxruntime", "onnxruntime_onnx")
    (scores,) = config.input
    assert (scores.name, scores.data_type, [*scores.dims]) == ("scores", 11, [4])
    assert [(group.kind, group.count) for group in config.instance_group] == [(2, 1)]
    assert client.get_model_config("versions", "10").config.version_policy.HasField("all")


@pytest.mark.parametrize("call", ["get_model_metadata", "get_model_config"])
def test_an_unknown_model_has_neither_metadata_nor_configuration(
    client: InferenceServerClient, call: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        getattr(client, call)("nobody")
    assert refusal(caught) == UNKNOWN


@pytest.mark.parametrize("name", ["../etc", "a/b", " x", ""])
def test_what_cannot_be_a_models_name_is_refused(client: InferenceServerClient, name: str) -> None:
    for call in (client.is_model_ready, client.get_model_metadata, client.unload_model):
        with pytest.raises(InferenceServerException) as caught:
            call(name)
        status, message = refusal(caught)
        assert status == "INVALID_ARGUMENT"
        assert message.startswith(f"model name {name!r} is not allowed")


# --- repository


def test_the_index_names_every_version_and_what_is_wrong_with_it(
    client: InferenceServerClient,
) -> None:
    index = {(m.name, m.version): m for m in client.get_model_repository_index().models}
    assert index["versions", "10"].state == "READY"
    assert index["corrupt", "1"].state == "UNAVAILABLE"
    assert "model.onnx cannot be loaded" in index["corrupt", "1"].reason


def test_an_unloaded_model_is_gone_until_it_is_loaded_again(
    client: InferenceServerClient, spare: str
) -> None:
    client.unload_model(spare)
    assert not client.is_model_ready(spare)
    with pytest.raises(InferenceServerException) as caught:
        client.infer(spare, [floats("x", 1)])
    assert refusal(caught) == ("NOT_FOUND", "Request for unknown model: 'spare' is not found")
    client.load_model(spare)
    assert client.infer(spare, [floats("x", 1)]).as_numpy("y").tolist() == [[2]]


def test_a_configuration_sent_with_the_load_takes_the_place_of_the_stored_one(
    client: InferenceServerClient, spare: str
) -> None:
    client.load_model(spare, config=json.dumps({"max_batch_size": 3}))
    assert client.get_model_config(spare).config.max_batch_size == 3


def test_a_broken_configuration_is_refused_and_the_model_goes_on(
    client: InferenceServerClient, spare: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.load_model(spare, config="{")
    assert refusal(caught)[0] == "INVALID_ARGUMENT"
    assert client.is_model_ready(spare)


def test_a_models_files_are_not_taken_over_the_api(
    client: InferenceServerClient, spare: str
) -> None:
    config = json.dumps({"max_batch_size": 3})
    with pytest.raises(InferenceServerException) as caught:
        client.load_model(spare, config=config, files={"file:1/model.onnx": b"onnx"})
    status, message = refusal(caught)
    assert status == "UNIMPLEMENTED"
    assert "put them into the model repository" in message


def test_an_unknown_or_broken_model_cannot_be_loaded(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.load_model("nobody")
    assert refusal(caught)[0] == "INVALID_ARGUMENT"
    with pytest.raises(InferenceServerException) as caught:
        client.load_model("corrupt")
    assert refusal(caught)[0] == "FAILED_PRECONDITION"
    with pytest.raises(InferenceServerException) as caught:
        client.unload_model("nobody")
    assert refusal(caught) == UNKNOWN


# --- statistics


def test_statistics_count_requests_rows_and_runs(client: InferenceServerClient, spare: str) -> None:
    for rows in (1, 3):
        client.infer(spare, [floats("x", *range(rows))])
    (found,) = client.get_inference_statistics(spare).model_stats
    assert (found.name, found.version) == ("spare", "1")
    assert (found.inference_count, found.execution_count) == (4, 2)
    assert found.inference_stats.success.count == 2
    assert found.inference_stats.success.ns > 0
    assert found.last_inference > 0
    assert [batch.batch_size for batch in found.batch_stats] == [1, 3]
    assert found.batch_stats[0].compute_infer.ns > 0


def test_statistics_are_of_all_models_of_one_or_of_a_version(
    client: InferenceServerClient,
) -> None:
    def versions(*which: str) -> list[tuple[str, str]]:
        found = client.get_inference_statistics(*which).model_stats
        return [(stats.name, stats.version) for stats in found]

    assert versions("versions") == [("versions", "1"), ("versions", "2"), ("versions", "10")]
    assert versions("versions", "2") == [("versions", "2")]
    assert {("versions", "10"), ("animals", "1")} < {*versions()}
    with pytest.raises(InferenceServerException) as caught:
        versions("nobody")
    assert refusal(caught) == UNKNOWN
    with pytest.raises(InferenceServerException) as caught:
        versions("", "2")
    assert refusal(caught) == ("INVALID_ARGUMENT", "a version is named, but no model")


# --- inference


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_goes_both_ways(client: InferenceServerClient, datatype: str) -> None:
    data = example(datatype)
    result = client.infer(f"identity_{datatype.lower()}", [tensor("x", data, datatype)])
    answer = result.as_numpy("y")
    assert answer.dtype == data.dtype
    assert answer.tolist() == data.tolist()
    output = result.get_output("y")
    assert (output.datatype, [*output.shape]) == (datatype, [2, 3])


def test_bytes_that_are_no_text_go_both_ways(client: InferenceServerClient) -> None:
    data = np.array([b"\xff\x00\x80", b""], dtype=np.object_)
    result = client.infer("reversed_bytes", [tensor("x", data, "BYTES")])
    assert result.as_numpy("y").tolist() == [b"\x80\x00\xff", b""]


def test_a_tensor_without_elements_goes_both_ways(client: InferenceServerClient) -> None:
    result = client.infer("identity_fp32", [tensor("x", np.empty((1, 0), np.float32), "FP32")])
    assert result.as_numpy("y").shape == (1, 0)


def test_a_large_tensor_goes_both_ways(client: InferenceServerClient) -> None:
    data = np.arange(2**20, dtype=np.float32).reshape(1, -1)  # 4 MiB, grpc's usual limit
    result = client.infer("identity_fp32", [tensor("x", data, "FP32")])
    assert np.array_equal(result.as_numpy("y"), data)


def test_several_inputs_and_outputs_are_told_apart(client: InferenceServerClient) -> None:
    result = client.infer("add_sub", pair())
    assert result.as_numpy("sum").tolist() == [[11, 22, 33, 44]]
    assert result.as_numpy("difference").tolist() == [[-9, -18, -27, -36]]
    assert result.as_numpy("product") is None


def test_outputs_come_as_they_are_asked_for(client: InferenceServerClient) -> None:
    asked = [InferRequestedOutput("difference"), InferRequestedOutput("sum")]
    result = client.infer("add_sub", pair(), outputs=asked)
    assert [output.name for output in result.get_response().outputs] == ["difference", "sum"]
    assert result.as_numpy("sum").tolist() == [[11, 22, 33, 44]]
    (only,) = client.infer("add_sub", pair(), outputs=asked[:1]).get_response().outputs
    assert only.name == "difference"


def test_classes_come_with_value_index_and_label(client: InferenceServerClient) -> None:
    scores = np.array([[0.25, 0.5, 0.125, 0], [0, 0, 0, 1]], np.float32)
    asked = InferRequestedOutput("probabilities", class_count=2)
    result = client.infer("animals", [tensor("scores", scores, "FP32")], outputs=[asked])
    assert result.as_numpy("probabilities").tolist() == [
        [b"0.500000:1:dog", b"0.250000:0:cat"],
        [b"1.000000:3:fish", b"0.000000:0:cat"],
    ]


def test_the_version_asked_for_answers(client: InferenceServerClient) -> None:
    answers = {
        version: client.infer("versions", [floats("x", 40)], version)
        for version in ("1", "2", "10", "")
    }
    values = {version: float(answer.as_numpy("y")[0, 0]) for version, answer in answers.items()}
    assert values == {"1": 41, "2": 42, "10": 50, "": 50}
    assert answers[""].get_response().model_version == "10"
    assert answers[""].get_response().model_name == "versions"


def test_the_request_id_comes_back(client: InferenceServerClient) -> None:
    result = client.infer("versions", [floats("x", 1)], request_id="räquest 42")
    assert result.get_response().id == "räquest 42"
    assert client.infer("versions", [floats("x", 1)]).get_response().id == ""


@pytest.mark.parametrize("sequence_id", [7, "seven"])
def test_sequence_and_custom_parameters_do_no_harm(
    client: InferenceServerClient, sequence_id: int | str
) -> None:
    result = client.infer(
        "versions",
        [floats("x", 1)],
        "1",
        sequence_id=sequence_id,
        sequence_start=True,
        sequence_end=True,
        priority=1,
        timeout=5_000_000,
        parameters={"text": "a:b", "flag": True, "number": 7},
    )
    assert result.as_numpy("y").tolist() == [[2]]


def test_a_timeout_in_microseconds_is_the_deadline(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer("sleepy", NAP, timeout=50_000)
    status, message = refusal(caught)
    assert status == "DEADLINE_EXCEEDED"
    assert message.startswith("the deadline")


def test_metadata_reach_the_server(server: Server, client: InferenceServerClient) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    headers = {
        "x-request-id": "triton-grpc-headers",
        "traceparent": f"00-{trace_id}-b7ad6b7169203331-01",
    }
    client.infer("versions", [floats("x", 1)], "1", headers=headers)
    line = access(server, "triton-grpc-headers")
    assert (line["method"], line["route"]) == ("GRPC", "/inference.GRPCInferenceService/ModelInfer")
    assert (line["status"], line["model"], line["version"]) == (200, "versions", "1")
    assert line["trace_id"] == trace_id
    assert min(line["bytes_in"], line["bytes_out"]) > 20


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_request_may_be_compressed(
    server: Server, client: InferenceServerClient, coding: str
) -> None:
    data = np.zeros((1, 10_000), np.float32)
    result = client.infer(
        "identity_fp32",
        [tensor("x", data, "FP32")],
        compression_algorithm=coding,
        headers={"x-request-id": f"triton-grpc-{coding}"},
    )
    assert np.array_equal(result.as_numpy("y"), data)
    assert access(server, f"triton-grpc-{coding}")["bytes_in"] > 40_000


def test_asynchronous_requests_answer_each_its_own(client: InferenceServerClient) -> None:
    answers: SimpleQueue[tuple[InferResult, InferenceServerException | None]] = SimpleQueue()

    def keep(result: InferResult, error: InferenceServerException | None) -> None:
        answers.put((result, error))

    for i in range(12):
        client.async_infer("versions", [floats("x", i)], keep, "1", request_id=str(i))
    found = [answers.get(timeout=10) for _ in range(12)]
    assert [error for _, error in found] == [None] * 12
    values = {int(r.get_response().id): float(r.as_numpy("y")[0, 0]) for r, _ in found}
    assert values == {i: i + 1 for i in range(12)}


# --- errors


@pytest.mark.parametrize(
    ("model", "inputs", "expected"),
    [
        ("nobody", [floats("x", 1)], UNKNOWN),
        ("versions", [floats("z", 1)], ("INVALID_ARGUMENT", "unexpected inference input 'z'")),
        (
            "add_sub",
            pair()[:1],
            ("INVALID_ARGUMENT", "expected 2 inputs but got 1 inputs for model 'add_sub'"),
        ),
        (
            "versions",
            [tensor("x", np.zeros((1, 2), np.float32), "FP32")],
            ("INVALID_ARGUMENT", "for model 'versions'. Expected [-1,1], got [1,2]"),
        ),
        (
            "versions",
            [tensor("x", np.zeros((1, 1), np.int32), "INT32")],
            ("INVALID_ARGUMENT", "inference input data-type is 'INT32', but for model 'versions'"),
        ),
        (
            "picky",
            [tensor("x", np.array([-1]), "INT64")],
            ("INVALID_ARGUMENT", "the model refuses the input"),
        ),
        ("picky", [tensor("x", np.array([10]), "INT64")], ("INTERNAL", "ten is too much")),
        ("corrupt", [floats("x", 1)], ("UNAVAILABLE", "model 'corrupt' is not ready")),
    ],
)
def test_a_failed_inference_raises_with_status_and_sentence(
    client: InferenceServerClient, model: str, inputs: list[InferInput], expected: tuple[str, str]
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, inputs)
    status, message = refusal(caught)
    assert status == expected[0]
    assert expected[1] in message


def test_a_version_that_is_not_there_is_not_found(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer("versions", [floats("x", 1)], "3")
    status, message = refusal(caught)
    assert status == "NOT_FOUND"
    assert "'versions' version 3 is not found; it has versions 1, 2, 10" in message


def test_an_output_that_the_model_lacks_is_refused(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer("add_sub", pair(), outputs=[InferRequestedOutput("product")])
    status, message = refusal(caught)
    assert status == "INVALID_ARGUMENT"
    assert "unexpected inference output 'product' for model 'add_sub'" in message


def test_shared_memory_is_not_offered(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.get_system_shared_memory_status()
    assert refusal(caught)[0] == "UNIMPLEMENTED"
    asked = InferInput("x", [1, 1], "FP32")
    asked.set_shared_memory("region", 4)
    with pytest.raises(InferenceServerException) as caught:
        client.infer("versions", [asked])
    status, message = refusal(caught)
    assert status == "INVALID_ARGUMENT"
    assert message.startswith("'x': shared memory is not offered")
