from __future__ import annotations

import pytest

from headrace.domain.errors import InvalidRequest, UnknownModel
from headrace.transport.oip_grpc import schema
from headrace.transport.oip_grpc.edge import Exchange
from headrace.transport.oip_grpc.health import HealthRpc
from headrace.transport.oip_grpc.messages import GrpcRequest


async def check(message: bytes, *, ready: bool = True) -> str:
    health = HealthRpc(ready=lambda: ready)
    answer = await health.check(Exchange(GrpcRequest({}, message), "mine-1", 0.0, 1.0))
    status = schema.HealthCheckResponse.FromString(answer).status
    return str(schema.HealthCheckResponse.ServingStatus.Name(status))


def asked(service: str) -> bytes:
    return bytes(schema.HealthCheckRequest(service=service).SerializeToString())


@pytest.mark.parametrize("service", ["", "inference.GRPCInferenceService"])
async def test_a_service_is_serving_while_the_platform_is_ready(service: str) -> None:
    assert await check(asked(service)) == "SERVING"
    assert await check(asked(service), ready=False) == "NOT_SERVING"


async def test_a_service_that_is_not_here_is_not_found() -> None:
    with pytest.raises(UnknownModel, match="'bert' is not known here"):
        await check(asked("bert"))


async def test_bytes_that_are_no_message_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"well-formed grpc\.health\.v1"):
        await check(b"\xff")
