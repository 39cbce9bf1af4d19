"""The control calls of an endpoint over gRPC. Source: Triton `grpc_service.proto`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from headrace.domain.errors import EndpointFailed, InvalidRequest, ModelLoadFailed
from headrace.ports.model_control import IndexEntry, ModelMetadata
from headrace.transport.model_reports import (
    MAX_REPORT_BYTES,
    no_report,
    read_config,
    read_index,
    read_metadata,
    read_statistics,
)
from headrace.transport.oip_grpc import schema
from headrace.transport.oip_grpc.plain import plain

#: Asks a method, by its path, with an encoded message and until a deadline.
Ask: TypeAlias = Callable[[str, bytes, float], Awaitable[bytes]]

#: The methods that are asked here.
METHODS: Final = (
    "ModelMetadata",
    "ModelConfig",
    "ModelStatistics",
    "RepositoryIndex",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
)


class GrpcModels:
    """See ports.remote_models.RemoteModels. `ask` raises as GrpcUpstream does."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    async def metadata(self, model: str, version: str, deadline: float) -> ModelMetadata:
        request = schema.ModelMetadataRequest(name=model, version=version)
        report = await self._report(
            "ModelMetadata", request, schema.ModelMetadataResponse, deadline
        )
        return read_metadata(plain(report))

    async def config(self, model: str, version: str, deadline: float) -> Mapping[str, Any]:
        """See RemoteModels.config. It holds what `model_config.proto` here has fields for."""
        request = schema.ModelConfigRequest(name=model, version=version)
        report = await self._report("ModelConfig", request, schema.ModelConfigResponse, deadline)
        if not report.HasField("config"):
            raise no_report("it has no configuration")
        return read_config(plain(report.config))

    async def statistics(
        self, model: str, version: str, deadline: float
    ) -> Sequence[dict[str, Any]]:
        request = schema.ModelStatisticsRequest(name=model, version=version)
        report = await self._report(
            "ModelStatistics", request, schema.ModelStatisticsResponse, deadline
        )
        return read_statistics(plain(report))

    async def index(self, deadline: float) -> Sequence[IndexEntry]:
        request = schema.RepositoryIndexRequest()
        report = await self._report(
            "RepositoryIndex", request, schema.RepositoryIndexResponse, deadline
        )
        return read_index(plain(report)["models"])

    async def load(self, model: str, deadline: float, *, config_json: bytes | None = None) -> None:
        request = schema.RepositoryModelLoadRequest(model_name=model)
        if config_json is not None:
            request.parameters["config"].string_param = config_json.decode()
        try:
            await self._report(
                "RepositoryModelLoad", request, schema.RepositoryModelLoadResponse, deadline
            )
        except EndpointFailed as error:
            # Triton tells of its own failures and of unusable models by one status
            _, _, text = error.reason.partition(": ")
            if text.startswith("failed to load '"):
                raise ModelLoadFailed(text) from error
            raise

    async def unload(self, model: str, deadline: float) -> None:
        request = schema.RepositoryModelUnloadRequest(model_name=model)
        await self._report(
            "RepositoryModelUnload", request, schema.RepositoryModelUnloadResponse, deadline
        )

    async def _report(self, method: str, request: Any, kind: Any, deadline: float) -> Any:
        message = request.SerializeToString()
        body = await self._ask(f"/{schema.INFERENCE}/{method}", message, deadline)
        if len(body) > MAX_REPORT_BYTES:
            raise no_report(f"it is over the limit of {MAX_REPORT_BYTES} bytes")
        try:
            return schema.parse(kind, body)
        except InvalidRequest as error:
            raise no_report(error.message) from error
