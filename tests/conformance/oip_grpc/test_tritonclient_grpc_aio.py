"""NVIDIA's gRPC client for asyncio, unmodified."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from tests.support.repositories import DATATYPES, example

Array = np.ndarray[Any, Any]


@pytest.fixture
async def client(address: str) -> AsyncIterator[InferenceServerClient]:
    async with InferenceServerClient(address) as client:
        yield client


def tensor(name: str, data: Array, datatype: str) -> InferInput:
    return InferInput(name, list(data.shape), datatype).set_data_from_numpy(data)


def floats(name: str, *values: float) -> InferInput:
    """A column of FP32: one row for each value."""
    return tensor(name, np.array(values, np.float32).reshape(-1, 1), "FP32")


async def test_the_server_and_its_models_are_ready(client: InferenceServerClient) -> None:
    assert await client.is_server_live() is True
    assert await client.is_server_ready() is True
    assert await client.is_model_ready("versions", "2") is True
    assert await client.is_model_ready("nobody") is False


async def test_server_and_models_tell_about_themselves(client: InferenceServerClient) -> None:
    assert (await client.get_server_metadata()).name == "headrace"
    assert [*(await client.get_model_metadata("versions")).versions] == ["1", "2", "10"]
    assert (await client.get_model_config("animals")).config.max_batch_size == 8
    assert len((await client.get_inference_statistics("versions")).model_stats) == 3
    names = {model.name for model in (await client.get_model_repository_index()).models}
    assert {"versions", "animals", "corrupt"} <= names


async def test_a_model_is_unloaded_and_loaded(client: InferenceServerClient) -> None:
    await client.unload_model("spare")
    assert not await client.is_model_ready("spare")
    await client.load_model("spare")
    assert await client.is_model_ready("spare")


@pytest.mark.parametrize("datatype", DATATYPES)
async def test_every_datatype_goes_both_ways(client: InferenceServerClient, datatype: str) -> None:
    data = example(datatype)
    result = await client.infer(
        f"identity_{datatype.lower()}",
        [tensor("x", data, datatype)],
        outputs=[InferRequestedOutput("y")],
        request_id="42",
    )
    assert result.get_response().id == "42"
    assert result.as_numpy("y").tolist() == data.tolist()


async def test_many_requests_at_a_time_answer_each_its_own(client: InferenceServerClient) -> None:
    results = await asyncio.gather(
        *(client.infer("versions", [floats("x", i)], "1") for i in range(100))
    )
    assert [float(r.as_numpy("y")[0, 0]) for r in results] == [i + 1 for i in range(100)]


async def test_an_error_carries_status_and_sentence(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as caught:
        await client.infer("nobody", [floats("x", 1)])
    assert caught.value.status() == "StatusCode.NOT_FOUND"
    assert caught.value.message() == "Request for unknown model: 'nobody' is not found"


async def test_a_clients_own_timeout_is_the_deadline(client: InferenceServerClient) -> None:
    nap = tensor("seconds", np.array([0.3], np.float32), "FP32")
    with pytest.raises(InferenceServerException) as caught:
        await client.infer("sleepy", [nap], client_timeout=0.05)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
