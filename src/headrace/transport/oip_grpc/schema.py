"""The messages of the .proto files beside it, as classes.

They live in a descriptor pool of their own. The default pool of a process holds each name once,
and `inference.ModelInferRequest` is what tritonclient, kserve and others register there, each in
its own version: whoever comes second fails, so none of ours may be among them.

`schema.binpb` is the compiled form. After an edit of a .proto file, from the project's root:

    .venv/bin/python -m grpc_tools.protoc --proto_path=src/headrace/transport/oip_grpc \
        --include_imports --descriptor_set_out=src/headrace/transport/oip_grpc/schema.binpb \
        inference.proto health.proto reflection.proto reflection_v1alpha.proto
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from headrace.domain.errors import InvalidRequest

INFERENCE: Final = "inference.GRPCInferenceService"
HEALTH: Final = "grpc.health.v1.Health"
REFLECTION: Final = "grpc.reflection.v1.ServerReflection"
REFLECTION_V1ALPHA: Final = "grpc.reflection.v1alpha.ServerReflection"


def _load() -> DescriptorPool:
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(
        Path(__file__).with_name("schema.binpb").read_bytes()
    ).file:
        pool.Add(file)
    return pool


POOL: Final = _load()


def _message(name: str) -> Any:
    return GetMessageClass(POOL.FindMessageTypeByName(name))


ServerLiveRequest: Final = _message("inference.ServerLiveRequest")
ServerLiveResponse: Final = _message("inference.ServerLiveResponse")
ServerReadyRequest: Final = _message("inference.ServerReadyRequest")
ServerReadyResponse: Final = _message("inference.ServerReadyResponse")
ModelReadyRequest: Final = _message("inference.ModelReadyRequest")
ModelReadyResponse: Final = _message("inference.ModelReadyResponse")
ServerMetadataRequest: Final = _message("inference.ServerMetadataRequest")
ServerMetadataResponse: Final = _message("inference.ServerMetadataResponse")
ModelMetadataRequest: Final = _message("inference.ModelMetadataRequest")
ModelMetadataResponse: Final = _message("inference.ModelMetadataResponse")
ModelInferRequest: Final = _message("inference.ModelInferRequest")
ModelInferResponse: Final = _message("inference.ModelInferResponse")
ModelStreamInferResponse: Final = _message("inference.ModelStreamInferResponse")
ModelConfigRequest: Final = _message("inference.ModelConfigRequest")
ModelConfigResponse: Final = _message("inference.ModelConfigResponse")
ModelStatisticsRequest: Final = _message("inference.ModelStatisticsRequest")
ModelStatisticsResponse: Final = _message("inference.ModelStatisticsResponse")
RepositoryIndexRequest: Final = _message("inference.RepositoryIndexRequest")
RepositoryIndexResponse: Final = _message("inference.RepositoryIndexResponse")
RepositoryModelLoadRequest: Final = _message("inference.RepositoryModelLoadRequest")
RepositoryModelLoadResponse: Final = _message("inference.RepositoryModelLoadResponse")
RepositoryModelUnloadRequest: Final = _message("inference.RepositoryModelUnloadRequest")
RepositoryModelUnloadResponse: Final = _message("inference.RepositoryModelUnloadResponse")
HealthCheckRequest: Final = _message("grpc.health.v1.HealthCheckRequest")
HealthCheckResponse: Final = _message("grpc.health.v1.HealthCheckResponse")
ReflectionRequest: Final = _message("grpc.reflection.v1.ServerReflectionRequest")
ReflectionResponse: Final = _message("grpc.reflection.v1.ServerReflectionResponse")


def parse(kind: Any, data: bytes) -> Any:
    """Parse a message of class `kind`. Raises InvalidRequest where `data` is none."""
    try:
        return kind.FromString(data)
    except DecodeError:
        msg = f"the message is not a well-formed {kind.DESCRIPTOR.full_name}"
        raise InvalidRequest(msg) from None
