"""The RPCs that are not hot: health, metadata, configuration, statistics, repository.

Source: open-inference-protocol `open_inference_grpc.proto`; Triton `grpc_service.proto` and
`docs/protocol/extension_*.md`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

from google.protobuf.json_format import ParseDict

from headrace.domain.errors import InvalidRequest, PayloadTooLarge, Unsupported
from headrace.domain.models import TensorSpec
from headrace.domain.names import require_name
from headrace.ports.model_control import ModelControl
from headrace.transport.access import ANY, PUBLIC, READ, READ_MODEL, WRITE, Rule
from headrace.transport.oip_grpc import schema
from headrace.transport.oip_grpc.edge import Exchange, Rpc

EXTENSIONS: Final = (
    "classification",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "parameters",
    "statistics",
)
MAX_CONTROL_BYTES: Final = 4 * 1024 * 1024

_Answer: TypeAlias = Callable[[ModelControl, Any], Awaitable[Any]]


class ControlRpcs:
    """The RPCs by their paths, over the models that a caller may ask."""

    def __init__(
        self,
        models: ModelControl,
        *,
        version: str,
        ready: Callable[[], bool],
    ) -> None:
        self._models = models
        self._version = version
        self._ready = ready

    def rpcs(self) -> dict[str, Rpc]:
        """All RPCs."""
        table: dict[str, tuple[Rule, Any, _Answer]] = {
            "ServerLive": (PUBLIC, schema.ServerLiveRequest, self._live),
            "ServerReady": (PUBLIC, schema.ServerReadyRequest, self._server_ready),
            "ModelReady": (READ_MODEL, schema.ModelReadyRequest, self._model_ready),
            "ServerMetadata": (ANY, schema.ServerMetadataRequest, self._server),
            "ModelMetadata": (READ_MODEL, schema.ModelMetadataRequest, self._metadata),
            "ModelConfig": (READ_MODEL, schema.ModelConfigRequest, self._config),
            "ModelStatistics": (READ_MODEL, schema.ModelStatisticsRequest, self._statistics),
            "RepositoryIndex": (READ, schema.RepositoryIndexRequest, self._index),
            "RepositoryModelLoad": (WRITE, schema.RepositoryModelLoadRequest, self._load),
            "RepositoryModelUnload": (WRITE, schema.RepositoryModelUnloadRequest, self._unload),
        }
        return {f"/{schema.INFERENCE}/{n}": self._rpc(*each) for n, each in table.items()}

    def _rpc(self, rule: Rule, kind: Any, rpc: _Answer) -> Rpc:
        async def answer(exchange: Exchange) -> bytes:
            message = exchange.request.message
            if len(message) > MAX_CONTROL_BYTES:
                msg = f"the message is over the limit of {MAX_CONTROL_BYTES} bytes"
                raise PayloadTooLarge(msg)
            request = schema.parse(kind, message)
            if rule.or_infer:
                rule.require(exchange.principal, request.name)
            models = self._models.of(exchange.principal.tenant)
            encoded: bytes = (await rpc(models, request)).SerializeToString()
            return encoded

        return Rpc(answer, rule, on_model=rule.or_infer)

    async def _live(self, _: ModelControl, __: Any) -> Any:
        return schema.ServerLiveResponse(live=True)

    async def _server_ready(self, _: ModelControl, __: Any) -> Any:
        return schema.ServerReadyResponse(ready=self._ready())

    async def _model_ready(self, models: ModelControl, request: Any) -> Any:
        # as Triton's, this asks and does not fail: clients poll it until a model is there
        return schema.ModelReadyResponse(ready=await models.obstacle(*_names(request)) is None)

    async def _server(self, _: ModelControl, __: Any) -> Any:
        return schema.ServerMetadataResponse(
            name="headrace", version=self._version, extensions=EXTENSIONS
        )

    async def _metadata(self, models: ModelControl, request: Any) -> Any:
        model = await models.metadata(*_names(request))
        return schema.ModelMetadataResponse(
            name=model.name,
            versions=model.versions,
            platform=model.platform,
            inputs=[_tensor(spec) for spec in model.inputs],
            outputs=[_tensor(spec) for spec in model.outputs],
        )

    async def _config(self, models: ModelControl, request: Any) -> Any:
        config = dict(await models.config(*_names(request)))
        return _from_json({"config": config}, schema.ModelConfigResponse())

    async def _statistics(self, models: ModelControl, request: Any) -> Any:
        if request.version and not request.name:
            msg = "a version is named, but no model"
            raise InvalidRequest(msg)
        names = _names(request) if request.name else ("", "")
        statistics = list(await models.statistics(*names))
        return _from_json({"model_stats": statistics}, schema.ModelStatisticsResponse())

    async def _index(self, models: ModelControl, request: Any) -> Any:
        _refuse_repository(request.repository_name)
        index = schema.RepositoryIndexResponse
        entries = [e for e in await models.index() if not request.ready or e.state == "READY"]
        return index(
            models=[
                index.ModelIndex(name=e.name, version=e.version, state=e.state, reason=e.reason)
                for e in entries
            ]
        )

    async def _load(self, models: ModelControl, request: Any) -> Any:
        name = _repository_model(request)
        config = None
        for key, parameter in request.parameters.items():
            if key.startswith("file:"):
                msg = (
                    "a model's files cannot be sent with the load request: "
                    "put them into the model repository"
                )
                raise Unsupported(msg)
            if key == "config":
                if parameter.WhichOneof("parameter_choice") != "string_param":
                    msg = "parameters.config: expected a string with the configuration in JSON"
                    raise InvalidRequest(msg)
                config = parameter.string_param.encode()
        await models.load(name, config_json=config)
        return schema.RepositoryModelLoadResponse(model_name=name, isLoaded=True)

    async def _unload(self, models: ModelControl, request: Any) -> Any:
        name = _repository_model(request)
        await models.unload(name)
        return schema.RepositoryModelUnloadResponse(model_name=name, isUnloaded=True)


def _names(request: Any) -> tuple[str, str]:
    if request.version:
        require_name("version", request.version)
    return require_name("model", request.name), request.version


def _repository_model(request: Any) -> str:
    if not request.model_name:  # KServe's clients send it in this place
        return require_name("model", request.repository_name)
    _refuse_repository(request.repository_name)
    return require_name("model", request.model_name)


def _refuse_repository(name: str) -> None:
    if name:
        msg = "repositories have no names here: leave repository_name empty"
        raise Unsupported(msg)


def _tensor(spec: TensorSpec) -> Any:
    return schema.ModelMetadataResponse.TensorMetadata(
        name=spec.name, datatype=spec.datatype, shape=spec.shape
    )


def _from_json(document: dict[str, Any], message: Any) -> Any:
    # REST's answers say a little more than Triton's messages have fields for
    return ParseDict(document, message, ignore_unknown_fields=True, descriptor_pool=schema.POOL)
