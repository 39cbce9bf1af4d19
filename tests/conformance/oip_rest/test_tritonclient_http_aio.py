"""NVIDIA's HTTP client for asyncio, unmodified: every call it has outside shared memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from tritonclient.http import InferInput, InferRequestedOutput
from tritonclient.http.aio import InferenceServerClient
from tritonclient.http.auth import BasicAuth
from tritonclient.utils import InferenceServerException

from tests.support.process import Server, eventually
from tests.support.repositories import BINARY_ONLY, DATATYPES, example

Array = np.ndarray[Any, Any]


@pytest.fixture
async def client(server: Server) -> AsyncIterator[InferenceServerClient]:
    async with InferenceServerClient(server.address) as client:
        yield client


@pytest.fixture
async def spare(client: InferenceServerClient) -> AsyncIterator[str]:
    """A model to load and unload: y = x + 1."""
    await client.load_model("spare")
    yield "spare"
    await client.load_model("spare")


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


NAP = [tensor("seconds", np.array([0.3], np.float32), "FP32")]
UNKNOWN = ("404", "Request for unknown model: 'nobody' is not found")


async def test_the_server_and_its_models_are_ready(client: InferenceServerClient) -> None:
    assert await client.is_server_live() is True
    assert await client.is_server_ready() is True
    assert await client.is_model_ready("versions") is True
    assert await client.is_model_ready("versions", "10") is True
    assert await client.is_model_ready("versions", "3") is False
    assert await client.is_model_ready("corrupt") is False
    assert await client.is_model_ready("nobody") is False


async def test_server_and_models_tell_what_they_are(client: InferenceServerClient) -> None:
    assert (await client.get_server_metadata())["name"] == "headrace"
    metadata = await client.get_model_metadata("versions")
    assert metadata["versions"] == ["1", "2", "10"]
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}]
    assert await client.get_model_metadata("versions", "2") == metadata
    config = await client.get_model_config("animals")
    assert (config["name"], config["max_batch_size"]) == ("animals", 8)
    assert (await client.get_model_config("versions", "10"))["version_policy"] == {"all": {}}


@pytest.mark.parametrize(
    "call", ["get_model_metadata", "get_model_config", "get_inference_statistics", "unload_model"]
)
async def test_an_unknown_model_is_not_found(client: InferenceServerClient, call: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        await getattr(client, call)("nobody")
    assert refusal(caught) == UNKNOWN


async def test_the_index_names_every_version_and_what_is_wrong_with_it(
    client: InferenceServerClient,
) -> None:
    index = await client.get_model_repository_index()
    assert {"name": "versions", "version": "10", "state": "READY", "reason": ""} in index
    (corrupt,) = [entry for entry in index if entry["name"] == "corrupt"]
    assert corrupt["state"] == "UNAVAILABLE"


async def test_a_model_is_unloaded_and_loaded_again(
    client: InferenceServerClient, spare: str
) -> None:
    await client.unload_model(spare, unload_dependents=True)
    assert not await client.is_model_ready(spare)
    await client.load_model(spare)
    assert await client.is_model_ready(spare)


async def test_a_model_is_loaded_with_another_configuration(
    client: InferenceServerClient, spare: str
) -> None:
    config = json.dumps({"backend": "onnxruntime", "max_batch_size": 2})
    await client.load_model(spare, config=config)
    with pytest.raises(InferenceServerException) as caught:
        await client.infer(spare, [floats("x", 1, 2, 3)])
    assert refusal(caught) == ("400", "inference request batch-size must be <= 2 for 'spare'")
    with pytest.raises(InferenceServerException) as caught:
        await client.load_model(spare, config=json.dumps({"max_batch_sice": 2}))
    assert refusal(caught)[0] == "400"
    with pytest.raises(InferenceServerException) as caught:
        await client.load_model(spare, config="{}", files={"file:1/model.onnx": b"onnx"})
    assert refusal(caught)[0] == "501"


async def test_statistics_count_requests_rows_and_runs(
    client: InferenceServerClient, spare: str
) -> None:
    for rows in (1, 3):
        await client.infer(spare, [floats("x", *range(rows))])
    (found,) = (await client.get_inference_statistics(spare, "1"))["model_stats"]
    assert (found["inference_count"], found["execution_count"]) == (4, 2)
    assert found["inference_stats"]["success"]["count"] == 2
    everything = (await client.get_inference_statistics())["model_stats"]
    assert {"spare", "versions", "animals"} < {stats["name"] for stats in everything}


async def test_trace_settings_are_read_and_changed(client: InferenceServerClient) -> None:
    asked = {"trace_level": ["TIMESTAMPS"], "trace_rate": "1000000"}
    try:
        assert (await client.update_trace_settings(settings=asked)).items() >= asked.items()
        assert (await client.get_trace_settings()).items() >= asked.items()
        own = await client.update_trace_settings("mlp", {"trace_rate": "7"})
        assert own == {**await client.get_trace_settings(), "trace_rate": "7"}
        assert await client.get_trace_settings("mlp") == own
    finally:
        await client.update_trace_settings("mlp", {})
        cleared = await client.update_trace_settings(settings=dict.fromkeys(asked))
    assert cleared["trace_level"] == ["OFF"]
    assert await client.get_trace_settings("mlp") == cleared


async def test_log_settings_are_read_and_changed(client: InferenceServerClient) -> None:
    before = await client.get_log_settings()
    try:
        assert (await client.update_log_settings({"log_verbose_level": 1}))[
            "log_verbose_level"
        ] == 1
        assert (await client.get_log_settings())["log_verbose_level"] == 1
    finally:
        assert await client.update_log_settings({"log_verbose_level": 0}) == before


@pytest.mark.parametrize("datatype", DATATYPES)
async def test_every_datatype_goes_both_ways_in_binary(
    client: InferenceServerClient, datatype: str
) -> None:
    data = example(datatype)
    result = await client.infer(f"identity_{datatype.lower()}", [tensor("x", data, datatype)])
    assert result.as_numpy("y").dtype == data.dtype
    assert result.as_numpy("y").tolist() == data.tolist()
    assert result.get_output("y")["parameters"]["binary_data_size"] > 0


@pytest.mark.parametrize("datatype", [d for d in DATATYPES if d not in BINARY_ONLY])
async def test_every_datatype_with_a_json_form_goes_both_ways_in_json(
    client: InferenceServerClient, datatype: str
) -> None:
    data = example(datatype)
    result = await client.infer(
        f"identity_{datatype.lower()}",
        [tensor("x", data, datatype, binary=False)],
        outputs=[InferRequestedOutput("y", binary_data=False)],
    )
    answer = result.as_numpy("y").ravel().tolist()
    texts = [x.encode() if isinstance(x, str) else x for x in answer]
    assert texts == data.ravel().tolist()


@pytest.mark.parametrize("binary", [True, False])
async def test_several_inputs_and_outputs_are_told_apart(
    client: InferenceServerClient, *, binary: bool
) -> None:
    asked = [
        InferRequestedOutput("difference", binary_data=binary),
        InferRequestedOutput("sum", binary_data=not binary),
    ]
    result = await client.infer("add_sub", pair(binary=binary), outputs=asked)
    assert result.as_numpy("sum").tolist() == [[11, 22, 33, 44]]
    assert result.as_numpy("difference").tolist() == [[-9, -18, -27, -36]]
    names = [output["name"] for output in result.get_response()["outputs"]]
    assert names == ["difference", "sum"]


async def test_classes_come_with_value_index_and_label(client: InferenceServerClient) -> None:
    scores = np.array([[0.25, 0.5, 0.125, 0]], np.float32)
    asked = InferRequestedOutput("probabilities", class_count=2)
    result = await client.infer("animals", [tensor("scores", scores, "FP32")], outputs=[asked])
    assert result.as_numpy("probabilities").tolist() == [[b"0.500000:1:dog", b"0.250000:0:cat"]]


async def test_the_version_asked_for_answers_with_the_requests_id(
    client: InferenceServerClient,
) -> None:
    result = await client.infer(
        "versions",
        [floats("x", 40)],
        "2",
        request_id="räquest 42",
        sequence_id=7,
        sequence_start=True,
        sequence_end=True,
        priority=1,
        timeout=5_000_000,
        query_params={"a": "b"},
        parameters={"text": "a:b", "flag": True, "number": 7},
    )
    assert result.as_numpy("y").tolist() == [[42]]
    assert result.get_response()["id"] == "räquest 42"
    assert result.get_response()["model_version"] == "2"


async def test_deadlines_come_as_parameter_and_as_header(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as caught:
        await client.infer("sleepy", NAP, timeout=50_000)
    assert refusal(caught)[0] == "504"
    with pytest.raises(InferenceServerException) as caught:
        await client.infer("sleepy", NAP, headers={"Request-Timeout": "0.05"})
    assert refusal(caught)[0] == "504"


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_bodies_are_compressed_both_ways(
    server: Server, client: InferenceServerClient, coding: str
) -> None:
    data = np.zeros((4, 4096), np.float32)
    request_id = f"triton-http-aio-{coding}"
    result = await client.infer(
        "identity_fp32",
        [tensor("x", data, "FP32")],
        headers={"X-Request-Id": request_id},
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
    )
    assert np.array_equal(result.as_numpy("y"), data)

    def written() -> list[dict[str, Any]]:
        return [line for line in server.log() if line.get("request_id") == request_id]

    (line,) = eventually(written)
    assert line["bytes_in"] < data.nbytes / 10
    assert line["bytes_out"] < data.nbytes / 10


async def test_concurrent_requests_answer_each_its_own(client: InferenceServerClient) -> None:
    results = await asyncio.gather(
        *(client.infer("versions", [floats("x", i)], "1") for i in range(50))
    )
    assert [float(r.as_numpy("y")[0, 0]) for r in results] == [i + 1 for i in range(50)]


async def test_a_body_made_apart_is_answered_with_one_that_can_be_read_apart(
    server: Server,
) -> None:
    body, length = InferenceServerClient.generate_request_body(pair(), request_id="apart")
    answer = server.infer("add_sub", body, Inference_Header_Content_Length=str(length))
    result = InferenceServerClient.parse_response_body(
        answer.body, header_length=int(answer.headers["inference-header-content-length"])
    )
    assert result.as_numpy("sum").tolist() == [[11, 22, 33, 44]]
    assert result.get_response()["id"] == "apart"


async def test_a_plugin_may_add_to_the_headers(client: InferenceServerClient) -> None:
    client.register_plugin(BasicAuth("anybody", "secret"))
    result = await client.infer("versions", [floats("x", 1)], "1")
    assert result.as_numpy("y").tolist() == [[2]]


@pytest.mark.parametrize(
    ("model", "inputs", "expected"),
    [
        ("nobody", [floats("x", 1)], UNKNOWN),
        ("versions", [floats("z", 1)], ("400", "unexpected inference input 'z'")),
        ("add_sub", pair()[:1], ("400", "expected 2 inputs but got 1 inputs for model 'add_sub'")),
        ("picky", [tensor("x", np.array([-1]), "INT64")], ("400", "the model refuses the input")),
        ("picky", [tensor("x", np.array([10]), "INT64")], ("500", "ten is too much")),
        ("corrupt", [floats("x", 1)], ("503", "model 'corrupt' is not ready")),
    ],
)
async def test_a_failed_inference_raises_with_status_and_sentence(
    client: InferenceServerClient, model: str, inputs: list[InferInput], expected: tuple[str, str]
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        await client.infer(model, inputs)
    status, message = refusal(caught)
    assert status == expected[0]
    assert expected[1] in message


async def test_shared_memory_is_not_offered(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as caught:
        await client.get_cuda_shared_memory_status()
    status, message = refusal(caught)
    assert status == "501"
    assert message.startswith("shared memory is not offered")
