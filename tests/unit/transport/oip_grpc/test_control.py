from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from tritonclient.grpc import model_config_pb2, service_pb2

from headrace.adapters.model_repository import triton_json
from headrace.domain.calls import ANONYMOUS, Principal
from headrace.domain.errors import (
    Forbidden,
    HeadraceError,
    InvalidRequest,
    PayloadTooLarge,
    Unsupported,
)
from headrace.domain.models import (
    AllVersions,
    Batching,
    ModelConfig,
    QueuePolicy,
    Signature,
    SpecificVersions,
    TensorSpec,
    Warmup,
    WarmupInput,
)
from headrace.domain.scopes import EVERYTHING, grants
from headrace.ports.model_control import IndexEntry, ModelMetadata, Unfit
from headrace.transport.oip_grpc.control import MAX_CONTROL_BYTES, ControlRpcs
from headrace.transport.oip_grpc.edge import Exchange
from headrace.transport.oip_grpc.messages import GrpcRequest

SERVICE = "/inference.GRPCInferenceService/"
SIGNATURE = Signature(
    (TensorSpec("x", "BF16", (-1, 3)), TensorSpec("text", "BYTES", (-1, 1), optional=True)),
    (TensorSpec("y", "FP32", (-1, 4), labels=("cat", "dog")),),
)
RICH = ModelConfig(
    "bert",
    "python",
    batching=Batching(
        preferred_sizes=(4, 8),
        max_delay_us=100,
        preserve_ordering=True,
        priority_levels=3,
        default_priority=2,
        default_policy=QueuePolicy(7, 1000, "delay", allow_timeout_override=True),
        priority_policies={1: QueuePolicy(9)},
    ),
    instances=3,
    version_policy=SpecificVersions(("1", "3")),
    warmup=(
        Warmup(
            "first",
            {
                "x": WarmupInput("BF16", (3,), "random"),
                "text": WarmupInput("BYTES", (1,), "file", "text.bin"),
            },
            batch_size=2,
            count=5,
        ),
        Warmup("second", {"x": WarmupInput("BF16", (3,))}),
    ),
    parameters={"threshold": "0.5"},
    filename="model.py",
)


class Models:
    """One model, and what was asked of it."""

    def __init__(self, config: ModelConfig = RICH) -> None:
        self._config = config
        self.asked: list[tuple[Any, ...]] = []
        self.tenants: list[str] = []

    def of(self, tenant: str) -> Models:
        self.tenants.append(tenant)
        return self

    async def metadata(self, model: str, version: str = "") -> ModelMetadata:
        self.asked.append(("metadata", model, version))
        return ModelMetadata(model, ("1", "3"), "python", SIGNATURE.inputs, SIGNATURE.outputs)

    async def config(self, model: str, version: str = "") -> Mapping[str, Any]:
        self.asked.append(("config", model, version))
        return triton_json.to_json_object(self._config, SIGNATURE, 8)

    async def obstacle(self, model: str, version: str = "") -> HeadraceError | None:
        self.asked.append(("obstacle", model, version))
        return None

    async def unfit(self, model: str, version: str = "") -> Unfit | None:
        self.asked.append(("unfit", model, version))
        return None

    async def statistics(self, model: str = "", version: str = "") -> Sequence[dict[str, Any]]:
        self.asked.append(("statistics", model, version))
        return [{"name": "bert", "version": "3", "a_field_of_rest_alone": 1}]

    async def index(self) -> Sequence[IndexEntry]:
        return [IndexEntry("bert", "3", "READY", ""), IndexEntry("gpt", "", "UNAVAILABLE", "lost")]

    async def load(self, model: str, *, config_json: bytes | None = None) -> None:
        self.asked.append(("load", model, config_json))

    async def unload(self, model: str) -> None:
        self.asked.append(("unload", model))


async def ask(
    method: str, message: Any, models: Models | None = None, principal: Principal = ANONYMOUS
) -> Any:
    """The answer as tritonclient reads it."""
    rpcs = ControlRpcs(models or Models(), version="1.2", ready=lambda: True).rpcs()
    sent = message if isinstance(message, bytes) else message.SerializeToString()
    exchange = Exchange(GrpcRequest({}, sent), "mine-1", 0.0, 1.0, principal)
    answer = await rpcs[SERVICE + method].answer(exchange)
    return getattr(service_pb2, f"{method}Response").FromString(answer)


@pytest.mark.parametrize(
    "config", [RICH, ModelConfig("bert"), ModelConfig("bert", version_policy=AllVersions())]
)
async def test_a_configuration_says_all_that_its_json_form_says(config: ModelConfig) -> None:
    request = service_pb2.ModelConfigRequest(name="bert")
    document = triton_json.to_json_object(config, SIGNATURE, 8)
    expected = ParseDict(document, model_config_pb2.ModelConfig())
    found = (await ask("ModelConfig", request, Models(config))).config
    assert found == expected


async def test_names_and_versions_are_handed_on() -> None:
    models = Models()
    await ask("ModelReady", service_pb2.ModelReadyRequest(name="bert", version="3"), models)
    await ask("ModelMetadata", service_pb2.ModelMetadataRequest(name="bert"), models)
    await ask("ModelStatistics", service_pb2.ModelStatisticsRequest(name="bert"), models)
    await ask("ModelStatistics", service_pb2.ModelStatisticsRequest(), models)
    assert models.asked == [
        ("obstacle", "bert", "3"),
        ("metadata", "bert", ""),
        ("statistics", "bert", ""),
        ("statistics", "", ""),
    ]


async def test_models_are_asked_about_in_the_callers_tenant() -> None:
    models = Models()
    caller = Principal("key:1", "acme", EVERYTHING)
    await ask("ModelReady", service_pb2.ModelReadyRequest(name="bert"), models, caller)
    assert models.tenants == ["acme"]


async def test_of_a_model_are_told_those_who_may_run_it() -> None:
    caller = Principal("key:1", "acme", grants(["infer:bert"]))
    request = service_pb2.ModelReadyRequest(name="bert")
    assert (await ask("ModelReady", request, principal=caller)).ready
    for method, other in (
        ("ModelReady", service_pb2.ModelReadyRequest(name="gpt")),
        ("ModelStatistics", service_pb2.ModelStatisticsRequest()),
    ):
        with pytest.raises(Forbidden):
            await ask(method, other, principal=caller)


async def test_the_index_can_be_of_ready_models_only() -> None:
    for ready, names in ((False, ["bert", "gpt"]), (True, ["bert"])):
        index = await ask("RepositoryIndex", service_pb2.RepositoryIndexRequest(ready=ready))
        assert [model.name for model in index.models] == names


async def test_a_load_may_bring_a_configuration() -> None:
    models = Models()
    request = service_pb2.RepositoryModelLoadRequest(model_name="bert")
    await ask("RepositoryModelLoad", request, models)
    request.parameters["config"].string_param = '{"name": "bert"}'
    await ask("RepositoryModelLoad", request, models)
    assert models.asked == [("load", "bert", None), ("load", "bert", b'{"name": "bert"}')]


async def test_a_configuration_that_is_no_text_is_refused() -> None:
    request = service_pb2.RepositoryModelLoadRequest(model_name="bert")
    request.parameters["config"].bytes_param = b"{}"
    with pytest.raises(InvalidRequest, match="expected a string"):
        await ask("RepositoryModelLoad", request)


async def test_the_models_name_may_stand_where_kserves_clients_put_it() -> None:
    models = Models()
    kserves = service_pb2.RepositoryModelLoadRequest(repository_name="bert")
    await ask("RepositoryModelLoad", kserves, models)
    await ask("RepositoryModelUnload", kserves, models)
    assert models.asked == [("load", "bert", None), ("unload", "bert")]


async def test_a_repository_beside_the_models_name_is_refused() -> None:
    request = service_pb2.RepositoryModelUnloadRequest(repository_name="mine", model_name="bert")
    with pytest.raises(Unsupported, match="leave repository_name empty"):
        await ask("RepositoryModelUnload", request)


async def test_a_message_over_the_limit_is_not_parsed() -> None:
    with pytest.raises(PayloadTooLarge, match="over the limit of 4194304 bytes"):
        await ask("ModelReady", b"\xff" * (MAX_CONTROL_BYTES + 1))
