from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from headrace.domain.errors import EndpointFailed, ModelLoadFailed, Unsupported
from headrace.domain.models import TensorSpec
from headrace.ports.model_control import IndexEntry, ModelMetadata
from headrace.transport.model_reports import MAX_REPORT_BYTES
from headrace.transport.oip_grpc import schema
from headrace.transport.oip_grpc.remote_models import GrpcModels


class Server:
    """Answers every method with one message, and notes what it was asked."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.path = ""
        self.message = b""

    async def ask(self, path: str, message: bytes, deadline: float) -> bytes:
        assert deadline == 7.0
        self.path, self.message = path, message
        if isinstance(self.answer, Exception):
            raise self.answer
        encoded: bytes = (
            self.answer if isinstance(self.answer, bytes) else self.answer.SerializeToString()
        )
        return encoded


def models(answer: Any) -> tuple[GrpcModels, Server]:
    server = Server(answer)
    return GrpcModels(server.ask), server


CALLS: dict[str, Callable[[GrpcModels], Awaitable[object]]] = {
    "metadata": lambda models: models.metadata("m", "", 7.0),
    "config": lambda models: models.config("m", "", 7.0),
    "statistics": lambda models: models.statistics("m", "", 7.0),
    "index": lambda models: models.index(7.0),
    "load": lambda models: models.load("m", 7.0),
    "unload": lambda models: models.unload("m", 7.0),
}


async def test_metadata_is_read() -> None:
    answer = schema.ModelMetadataResponse(name="m", versions=["1"], platform="p")
    answer.inputs.add(name="x", datatype="FP32", shape=[-1, 4])
    asked, server = models(answer)
    spec = TensorSpec("x", "FP32", (-1, 4))
    assert await asked.metadata("m", "1", 7.0) == ModelMetadata("m", ("1",), "p", (spec,), ())
    assert server.path == "/inference.GRPCInferenceService/ModelMetadata"
    request = schema.ModelMetadataRequest.FromString(server.message)
    assert (request.name, request.version) == ("m", "1")


async def test_a_configuration_has_the_form_that_it_has_over_rest() -> None:
    answer = schema.ModelConfigResponse()
    config = answer.config
    config.name = "m"
    config.input.add(name="x", data_type="TYPE_FP32", dims=[-1, 2**40])
    config.version_policy.specific.versions.append(3)
    config.dynamic_batching.priority_queue_policy[2].default_timeout_microseconds = 2**60
    config.parameters["k"].string_value = "v"
    config.model_transaction_policy.decoupled = True
    asked, _ = models(answer)
    read = await asked.config("m", "", 7.0)
    assert read["name"] == "m"
    assert read["max_batch_size"] == 0
    assert read["input"][0]["dims"] == [-1, 2**40]
    assert read["input"][0]["data_type"] == "TYPE_FP32"
    assert read["version_policy"] == {"specific": {"versions": [3]}}
    policies = read["dynamic_batching"]["priority_queue_policy"]
    assert policies["2"]["default_timeout_microseconds"] == 2**60
    assert policies["2"]["timeout_action"] == "REJECT"
    assert read["parameters"] == {"k": {"string_value": "v"}}
    assert read["model_transaction_policy"] == {"decoupled": True}
    assert "default_queue_policy" not in read["dynamic_batching"]


async def test_statistics_have_the_form_that_they_have_over_rest() -> None:
    answer = schema.ModelStatisticsResponse()
    of = answer.model_stats.add(name="m", version="1", inference_count=2**60)
    of.inference_stats.success.count = 3
    of.batch_stats.add(batch_size=2).compute_infer.ns = 5
    asked, _ = models(answer)
    (statistics,) = await asked.statistics("", "", 7.0)
    assert statistics["inference_count"] == 2**60
    assert statistics["inference_stats"]["success"] == {"count": 3, "ns": 0}
    assert statistics["batch_stats"][0]["compute_infer"] == {"count": 0, "ns": 5}
    assert statistics["batch_stats"][0]["batch_size"] == 2


async def test_the_index_tells_states_and_reasons() -> None:
    answer = schema.RepositoryIndexResponse()
    answer.models.add(name="a", version="2", state="UNAVAILABLE", reason="unloaded")
    asked, _ = models(answer)
    assert await asked.index(7.0) == [IndexEntry("a", "2", "UNAVAILABLE", "unloaded")]


async def test_a_model_is_loaded_with_a_configuration_or_without() -> None:
    asked, server = models(b"")
    await asked.load("m", 7.0)
    request = schema.RepositoryModelLoadRequest.FromString(server.message)
    assert (request.model_name, dict(request.parameters)) == ("m", {})
    await asked.load("m", 7.0, config_json=b'{"backend":"python"}')
    request = schema.RepositoryModelLoadRequest.FromString(server.message)
    assert request.parameters["config"].string_param == '{"backend":"python"}'
    await asked.unload("m", 7.0)
    assert server.path.endswith("/RepositoryModelUnload")
    assert schema.RepositoryModelUnloadRequest.FromString(server.message).model_name == "m"


async def test_what_cannot_be_loaded_is_refused_and_what_fails_is_not() -> None:
    for reason, kind in (
        ("INTERNAL: failed to load 'm', it is no model", ModelLoadFailed),
        ("UNAVAILABLE: failed to connect to all addresses", EndpointFailed),
    ):
        failed = EndpointFailed("the endpoint failed")
        failed.reason = reason
        with pytest.raises(kind):
            await models(failed)[0].load("m", 7.0)


@pytest.mark.parametrize("call", CALLS)
async def test_a_server_without_the_extension_says_so(call: str) -> None:
    with pytest.raises(Unsupported):
        await CALLS[call](models(Unsupported("the endpoint does not offer this"))[0])


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("answer", [b"\xff", b"\x0a\x05a", b"\0" * (MAX_REPORT_BYTES + 1)])
async def test_what_is_no_report_is_the_endpoints_failure(call: str, answer: bytes) -> None:
    with pytest.raises(EndpointFailed, match="not a well-formed one"):
        await CALLS[call](models(answer)[0])


async def test_a_report_without_a_configuration_is_none() -> None:
    with pytest.raises(EndpointFailed):
        await models(b"")[0].config("m", "", 7.0)
