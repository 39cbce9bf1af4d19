"""NVIDIA's HTTP client for Python, unmodified: every call it has outside shared memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.http.auth import BasicAuth
from tritonclient.utils import InferenceServerException

from tests.support.process import Server, eventually
from tests.support.repositories import BINARY_ONLY, DATATYPES, example

Array = np.ndarray[Any, Any]


@pytest.fixture
def client(server: Server) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.address, concurrency=4) as client:
        yield client


@pytest.fixture
def spare(client: InferenceServerClient) -> Iterator[str]:
    """A model to load and unload: y = x + 1."""
    client.load_model("spare")
    yield "spare"
    client.load_model("spare")


def tensor(name: str, data: Array, datatype: str, *, binary: bool = True) -> InferInput:
    return InferInput(name, list(data.shape), datatype).set_data_from_numpy(
        data, binary_data=binary
    )


def floats(name: str, *values: float) -> InferInput:
    """A column of FP32: one row for each value."""
    return tensor(name, np.array(values, np.float32).reshape(-1, 1), "FP32")


def pair(*, binary: bool = True) -> list[InferInput]:
    """a = 1, 2, 3, 4 and b = 10, 20, 30, 40."""
    a = np.array([[1, 2, 3, 4]], np.int32)
    return [tensor("a", a, "INT32", binary=binary), tensor("b", a * 10, "INT32", binary=binary)]


def refusal(caught: pytest.ExceptionInfo[InferenceServerException]) -> tuple[str, str]:
    return caught.value.status(), caught.value.message()


def access(server: Server, request_id: str) -> dict[str, Any]:
    """The line of a request in the access log."""

    def written() -> list[dict[str, Any]]:
        lines = [line for line in server.log() if line["logger"] == "headrace.access"]
        return [line for line in lines if line["request_id"] == request_id]

    (line,) = eventually(written)
    return dict(line)


NAP = [tensor("seconds", np.array([0.3], np.float32), "FP32")]
UNKNOWN = ("404", "Request for unknown model: 'nobody' is not found")


# --- health and metadata


def test_the_server_is_live_and_ready(client: InferenceServerClient) -> None:
    assert client.is_server_live() is True
    assert client.is_server_ready() is True


def test_a_model_and_each_of_its_versions_is_ready(client: InferenceServerClient) -> None:
    assert client.is_model_ready("versions") is True
    assert client.is_model_ready("versions", "10") is True
    assert client.is_model_ready("versions", "3") is False
    assert client.is_model_ready("corrupt") is False
    assert client.is_model_ready("nobody") is False


def test_the_server_tells_its_name_and_extensions(client: InferenceServerClient) -> None:
    metadata = client.get_server_metadata()
    assert metadata["name"] == "headrace"
    assert {"binary_tensor_data", "classification", "statistics"} <= {*metadata["extensions"]}
    assert "system_shared_memory" not in metadata["extensions"]


def test_a_model_tells_its_versions_and_tensors(client: InferenceServerClient) -> None:
    metadata = client.get_model_metadata("versions")
    assert metadata["versions"] == ["1", "2", "10"]
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}]
    assert metadata["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}]
    assert client.get_model_metadata("versions", "2") == metadata


def test_a_model_tells_its_configuration(client: InferenceServerClient) -> None:
    config = client.get_model_config("animals")
    assert config["name"] == "animals"
    assert config["max_batch_size"] == 8
    (scores,) = config["input"]
    assert (scores["name"], scores["data_type"], scores["dims"]) == ("scores", "TYPE_FP32", [4])
    assert client.get_model_config("versions", "10")["version_policy"] == {"all": {}}


@pytest.mark.parametrize("call", ["get_model_metadata", "get_model_config"])
def test_an_unknown_model_has_neither_metadata_nor_configuration(
    client: InferenceServerClient, call: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        getattr(client, call)("nobody")
    assert refusal(caught) == UNKNOWN


# --- repository


def test_the_index_names_every_version_and_what_is_wrong_with_it(
    client: InferenceServerClient,
) -> None:
    index = client.get_model_repository_index()
    assert {"name": "versions", "version": "10", "state": "READY", "reason": ""} in index
    (corrupt,) = [entry for entry in index if entry["name"] == "corrupt"]
    assert corrupt["state"] == "UNAVAILABLE"
    assert "model.onnx cannot be loaded" in corrupt["reason"]


def test_an_unloaded_model_is_gone_until_it_is_loaded_again(
    client: InferenceServerClient, spare: str
) -> None:
    client.unload_model(spare)
    assert not client.is_model_ready(spare)
    with pytest.raises(InferenceServerException) as caught:
        client.infer(spare, [floats("x", 1)])
    assert refusal(caught) == ("404", "Request for unknown model: 'spare' is not found")
    client.load_model(spare)
    assert client.is_model_ready(spare)


def test_a_model_is_unloaded_with_its_dependents(client: InferenceServerClient, spare: str) -> None:
    client.unload_model(spare, unload_dependents=True)
    assert not client.is_model_ready(spare)


def test_a_configuration_sent_with_the_load_takes_the_place_of_the_stored_one(
    client: InferenceServerClient, spare: str
) -> None:
    client.load_model(spare, config=json.dumps({"backend": "onnxruntime", "max_batch_size": 2}))
    assert client.get_model_config(spare)["max_batch_size"] == 2
    with pytest.raises(InferenceServerException) as caught:
        client.infer(spare, [floats("x", 1, 2, 3)])
    assert refusal(caught) == ("400", "inference request batch-size must be <= 2 for 'spare'")


def test_a_broken_configuration_is_refused_and_the_model_goes_on(
    client: InferenceServerClient, spare: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.load_model(spare, config=json.dumps({"max_batch_sice": 2}))
    status, message = refusal(caught)
    assert status == "400"
    assert "max_batch_sice" in message
    assert client.infer(spare, [floats("x", 1)]).as_numpy("y").tolist() == [[2]]


def test_a_models_files_are_not_taken_over_the_api(
    client: InferenceServerClient, spare: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.load_model(spare, config="{}", files={"file:1/model.onnx": b"onnx"})
    status, message = refusal(caught)
    assert status == "501"
    assert "files cannot be sent" in message


def test_an_unknown_model_can_neither_be_loaded_nor_unloaded(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.load_model("nobody")
    no_model = "failed to load 'nobody', no such model in the model repository"
    assert refusal(caught) == ("400", no_model)
    with pytest.raises(InferenceServerException) as caught:
        client.unload_model("nobody")
    assert refusal(caught) == UNKNOWN


# --- statistics, trace and log settings


def test_statistics_count_requests_rows_and_runs(client: InferenceServerClient, spare: str) -> None:
    for rows in (1, 3):
        client.infer(spare, [floats("x", *range(rows))])
    (found,) = client.get_inference_statistics(spare)["model_stats"]
    assert (found["name"], found["version"]) == ("spare", "1")
    assert (found["inference_count"], found["execution_count"]) == (4, 2)
    assert found["inference_stats"]["success"]["count"] == 2
    assert found["inference_stats"]["success"]["ns"] > 0
    assert [batch["batch_size"] for batch in found["batch_stats"]] == [1, 3]


def test_statistics_are_of_all_models_of_one_or_of_a_version(
    client: InferenceServerClient,
) -> None:
    def versions(*which: str) -> list[tuple[str, str]]:
        found = client.get_inference_statistics(*which)["model_stats"]
        return [(stats["name"], stats["version"]) for stats in found]

    assert versions("versions") == [("versions", "1"), ("versions", "2"), ("versions", "10")]
    assert versions("versions", "2") == [("versions", "2")]
    assert {("versions", "10"), ("animals", "1")} < {*versions()}
    with pytest.raises(InferenceServerException) as caught:
        versions("nobody")
    assert refusal(caught) == UNKNOWN


def test_traced_requests_leave_their_time_line_in_the_log(
    server: Server, client: InferenceServerClient
) -> None:
    assert client.get_trace_settings()["trace_level"] == ["OFF"]
    asked = {"trace_level": ["TIMESTAMPS"], "trace_rate": "1", "trace_count": "1"}
    try:
        assert client.update_trace_settings(settings=asked).items() >= asked.items()
        assert client.get_trace_settings().items() >= asked.items()
        for request_id in ("traced", "one too many"):
            headers = {"X-Request-Id": request_id.replace(" ", "-")}
            client.infer("versions", [floats("x", 1)], headers=headers)
    finally:
        cleared = dict.fromkeys(asked)
        assert client.update_trace_settings(settings=cleared)["trace_level"] == ["OFF"]
    (line,) = [line for line in server.log() if line["logger"] == "headrace.timeline"]
    assert (line["request_id"], line["model"], line["version"]) == ("traced", "versions", "10")
    assert line["REQUEST_END"] > line["REQUEST_START"]


def test_trace_settings_of_a_model_are_its_own_until_they_are_cleared(
    client: InferenceServerClient,
) -> None:
    client.update_trace_settings("tiny", {"trace_rate": "7"})
    assert client.get_trace_settings("tiny")["trace_rate"] == "7"
    assert client.get_trace_settings("mlp")["trace_rate"] == "1000"
    assert client.update_trace_settings("tiny", {})["trace_rate"] == "1000"
    with pytest.raises(InferenceServerException) as caught:
        client.get_trace_settings("nobody")
    assert refusal(caught) == UNKNOWN
    with pytest.raises(InferenceServerException) as caught:
        client.update_trace_settings(settings={"trace_speed": "1"})
    assert refusal(caught)[0] == "400"


def test_log_settings_say_what_is_logged(server: Server, client: InferenceServerClient) -> None:
    before = client.get_log_settings()
    assert before["log_info"] is True
    try:
        quiet = {"log_info": False, "log_warning": False}
        assert client.update_log_settings(quiet).items() >= quiet.items()
        assert client.get_log_settings()["log_info"] is False
        lines = len([line for line in server.log() if line["logger"] != "headrace.access"])
        client.load_model("spare")  # says so, as information
        assert len([x for x in server.log() if x["logger"] != "headrace.access"]) == lines
    finally:
        after = client.update_log_settings({"log_info": True, "log_warning": True})
    assert after == before
    with pytest.raises(InferenceServerException) as caught:
        client.update_log_settings({"log_file": "/tmp/log"})  # noqa: S108 - refused
    assert refusal(caught)[0] == "400"


# --- inference


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_goes_both_ways_in_binary(
    client: InferenceServerClient, datatype: str
) -> None:
    data = example(datatype)
    result = client.infer(f"identity_{datatype.lower()}", [tensor("x", data, datatype)])
    answer = result.as_numpy("y")
    assert answer.dtype == data.dtype
    assert answer.tolist() == data.tolist()
    output = result.get_output("y")
    assert (output["datatype"], output["shape"]) == (datatype, [2, 3])
    assert output["parameters"]["binary_data_size"] > 0


@pytest.mark.parametrize("datatype", [d for d in DATATYPES if d not in BINARY_ONLY])
def test_every_datatype_with_a_json_form_goes_both_ways_in_json(
    client: InferenceServerClient, datatype: str
) -> None:
    data = example(datatype)
    result = client.infer(
        f"identity_{datatype.lower()}",
        [tensor("x", data, datatype, binary=False)],
        outputs=[InferRequestedOutput("y", binary_data=False)],
    )
    assert "parameters" not in result.get_output("y")
    answer = result.as_numpy("y").ravel().tolist()
    texts = [x.encode() if isinstance(x, str) else x for x in answer]
    assert texts == data.ravel().tolist()


def test_fp16_in_json_is_refused_with_the_way_out(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer("identity_fp16", [tensor("x", example("FP16"), "FP16", binary=False)])
    status, message = refusal(caught)
    assert status == "400"
    assert "binary" in message


def test_bytes_that_are_no_text_go_both_ways(client: InferenceServerClient) -> None:
    data = np.array([b"\xff\x00\x80", b""], dtype=np.object_)
    result = client.infer("reversed_bytes", [tensor("x", data, "BYTES")])
    assert result.as_numpy("y").tolist() == [b"\x80\x00\xff", b""]


def test_a_tensor_without_elements_goes_both_ways(client: InferenceServerClient) -> None:
    result = client.infer("identity_fp32", [tensor("x", np.empty((1, 0), np.float32), "FP32")])
    assert result.as_numpy("y").shape == (1, 0)


@pytest.mark.parametrize("binary", [True, False])
def test_several_inputs_and_outputs_are_told_apart(
    client: InferenceServerClient, *, binary: bool
) -> None:
    result = client.infer("add_sub", pair(binary=binary))
    assert result.as_numpy("sum").tolist() == [[11, 22, 33, 44]]
    assert result.as_numpy("difference").tolist() == [[-9, -18, -27, -36]]
    assert result.as_numpy("product") is None


def test_one_input_in_json_and_one_in_binary_are_told_apart(client: InferenceServerClient) -> None:
    result = client.infer("add_sub", [pair(binary=False)[0], pair()[1]])
    assert result.as_numpy("difference").tolist() == [[-9, -18, -27, -36]]


def test_outputs_come_as_they_are_asked_for(client: InferenceServerClient) -> None:
    asked = [InferRequestedOutput("difference"), InferRequestedOutput("sum", binary_data=False)]
    response = client.infer("add_sub", pair(), outputs=asked).get_response()
    assert [output["name"] for output in response["outputs"]] == ["difference", "sum"]
    assert response["outputs"][0]["parameters"] == {"binary_data_size": 16}
    assert response["outputs"][1]["data"] == [11, 22, 33, 44]
    (only,) = client.infer("add_sub", pair(), outputs=asked[:1]).get_response()["outputs"]
    assert only["name"] == "difference"


@pytest.mark.parametrize("binary", [True, False])
def test_classes_come_with_value_index_and_label(
    client: InferenceServerClient, *, binary: bool
) -> None:
    scores = np.array([[0.25, 0.5, 0.125, 0], [0, 0, 0, 1]], np.float32)
    asked = InferRequestedOutput("probabilities", binary_data=binary, class_count=2)
    result = client.infer("animals", [tensor("scores", scores, "FP32")], outputs=[asked])
    found = [x if isinstance(x, str) else x.decode() for x in result.as_numpy("probabilities").flat]
    assert found == ["0.500000:1:dog", "0.250000:0:cat", "1.000000:3:fish", "0.000000:0:cat"]
    assert result.get_output("probabilities")["shape"] == [2, 2]


def test_the_version_asked_for_answers(client: InferenceServerClient) -> None:
    answers = {
        version: client.infer("versions", [floats("x", 40)], version)
        for version in ("1", "2", "10", "")
    }
    values = {version: float(answer.as_numpy("y")[0, 0]) for version, answer in answers.items()}
    assert values == {"1": 41, "2": 42, "10": 50, "": 50}
    assert answers[""].get_response()["model_version"] == "10"


def test_the_request_id_comes_back(client: InferenceServerClient) -> None:
    result = client.infer("versions", [floats("x", 1)], request_id="räquest 42")
    assert result.get_response()["id"] == "räquest 42"
    assert "id" not in client.infer("versions", [floats("x", 1)]).get_response()


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
        parameters={"text": "a:b", "flag": True, "number": 7, "fraction": 0.5},
    )
    assert result.as_numpy("y").tolist() == [[2]]


def test_a_timeout_in_microseconds_is_the_deadline(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer("sleepy", NAP, timeout=50_000)
    status, message = refusal(caught)
    assert status == "504"
    assert "deadline" in message


def test_a_priority_that_is_no_number_is_refused(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer("versions", [floats("x", 1)], priority="urgent")
    assert refusal(caught) == ("400", "parameters.priority: expected a whole number >= 0")


def test_headers_and_query_parameters_reach_the_server(
    server: Server, client: InferenceServerClient
) -> None:
    headers = {"X-Request-Id": "triton-http-headers"}
    query = {"a": "b", "c": [1, "&/infer"]}
    result = client.infer("versions", [floats("x", 1)], "1", headers=headers, query_params=query)
    assert result.as_numpy("y").tolist() == [[2]]
    assert access(server, "triton-http-headers")["status"] == 200
    with pytest.raises(InferenceServerException) as caught:
        client.infer("versions", [floats("x", 1)], headers={"Request-Timeout": "0"})
    assert refusal(caught)[0] == "504"
    assert client.is_server_live(headers=headers, query_params=query)
    assert client.get_model_metadata("tiny", headers=headers, query_params=query)["name"] == "tiny"


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_bodies_are_compressed_both_ways(
    server: Server, client: InferenceServerClient, coding: str
) -> None:
    data = np.zeros((4, 4096), np.float32)
    result = client.infer(
        "identity_fp32",
        [tensor("x", data, "FP32")],
        headers={"X-Request-Id": f"triton-http-{coding}"},
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
    )
    assert np.array_equal(result.as_numpy("y"), data)
    line = access(server, f"triton-http-{coding}")
    assert line["bytes_in"] < data.nbytes / 10
    assert line["bytes_out"] < data.nbytes / 10


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_json_is_compressed_both_ways(client: InferenceServerClient, coding: str) -> None:
    data = np.arange(2000, dtype=np.float32).reshape(1, -1)
    result = client.infer(
        "identity_fp32",
        [tensor("x", data, "FP32", binary=False)],
        outputs=[InferRequestedOutput("y", binary_data=False)],
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
    )
    assert np.array_equal(result.as_numpy("y"), data)


def test_an_id_that_is_no_ascii_does_not_shift_the_binary_data(
    client: InferenceServerClient,
) -> None:
    # the client counts the characters of its JSON, of which rapidjson makes ASCII only
    result = client.infer("add_sub", pair(), request_id="水" * 20)
    assert result.as_numpy("sum").tolist() == [[11, 22, 33, 44]]
    assert result.get_response()["id"] == "水" * 20


def test_asynchronous_requests_answer_each_its_own(client: InferenceServerClient) -> None:
    pending = [client.async_infer("versions", [floats("x", i)], "1") for i in range(12)]
    results = [each.get_result(timeout=10) for each in pending]
    assert [float(result.as_numpy("y")[0, 0]) for result in results] == [i + 1 for i in range(12)]


def test_an_asynchronous_request_takes_what_a_synchronous_one_takes(
    server: Server, client: InferenceServerClient
) -> None:
    pending = client.async_infer(
        "add_sub",
        pair(),
        model_version="1",
        outputs=[InferRequestedOutput("sum", binary_data=False)],
        request_id="a",
        sequence_id=3,
        priority=1,
        timeout=5_000_000,
        headers={"X-Request-Id": "triton-http-async"},
        query_params={"q": 1},
        request_compression_algorithm="gzip",
        response_compression_algorithm="deflate",
        parameters={"note": "hello"},
    )
    response = pending.get_result().get_response()
    assert response["id"] == "a"
    assert response["outputs"][0]["data"] == [11, 22, 33, 44]
    assert access(server, "triton-http-async")["status"] == 200


def test_an_asynchronous_request_raises_where_its_result_is_taken(
    client: InferenceServerClient,
) -> None:
    pending = client.async_infer("nobody", [floats("x", 1)])
    with pytest.raises(InferenceServerException) as caught:
        pending.get_result()
    assert refusal(caught) == UNKNOWN


def test_a_body_made_apart_is_answered_with_one_that_can_be_read_apart(server: Server) -> None:
    body, length = InferenceServerClient.generate_request_body(pair(), request_id="apart")
    answer = server.infer("add_sub", body, Inference_Header_Content_Length=str(length))
    assert answer.status == 200
    result: InferResult = InferenceServerClient.parse_response_body(
        answer.body, header_length=int(answer.headers["inference-header-content-length"])
    )
    assert result.as_numpy("sum").tolist() == [[11, 22, 33, 44]]
    assert result.get_response()["id"] == "apart"


def test_a_plugin_may_add_to_the_headers(client: InferenceServerClient) -> None:
    client.register_plugin(BasicAuth("anybody", "secret"))
    try:
        assert client.infer("versions", [floats("x", 1)], "1").as_numpy("y").tolist() == [[2]]
    finally:
        client.unregister_plugin()


# --- errors


@pytest.mark.parametrize(
    ("model", "inputs", "expected"),
    [
        ("nobody", [floats("x", 1)], UNKNOWN),
        ("versions", [floats("z", 1)], ("400", "unexpected inference input 'z'")),
        ("add_sub", pair()[:1], ("400", "expected 2 inputs but got 1 inputs for model 'add_sub'")),
        (
            "versions",
            [tensor("x", np.zeros((1, 2), np.float32), "FP32")],
            ("400", "for model 'versions'. Expected [-1,1], got [1,2]"),
        ),
        (
            "versions",
            [tensor("x", np.zeros((1, 1), np.int32), "INT32")],
            ("400", "inference input data-type is 'INT32', but for model 'versions'"),
        ),
        ("picky", [tensor("x", np.array([-1]), "INT64")], ("400", "the model refuses the input")),
        ("picky", [tensor("x", np.array([10]), "INT64")], ("500", "ten is too much")),
        ("corrupt", [floats("x", 1)], ("503", "model 'corrupt' is not ready")),
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


def test_an_output_that_the_model_lacks_is_refused(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer("add_sub", pair(), outputs=[InferRequestedOutput("product")])
    status, message = refusal(caught)
    assert status == "400"
    assert "unexpected inference output 'product' for model 'add_sub'" in message


def test_shared_memory_is_not_offered(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.get_system_shared_memory_status()
    status, message = refusal(caught)
    assert status == "501"
    assert message.startswith("shared memory is not offered")
