"""grpc.health.v1: what load balancers and Kubernetes' probes ask. Watch is not offered."""

from __future__ import annotations

from collections.abc import Callable

from headrace.domain.errors import UnknownModel
from headrace.transport.access import PUBLIC
from headrace.transport.oip_grpc import schema
from headrace.transport.oip_grpc.edge import Exchange, Rpc

#: What a client may ask about: the server as a whole, or its service.
SERVICES = frozenset({"", schema.INFERENCE})


class HealthRpc:
    """`ready` answers whether an inference sent now would be tried."""

    def __init__(self, *, ready: Callable[[], bool]) -> None:
        self._ready = ready

    def rpcs(self) -> dict[str, Rpc]:
        """The RPC by its path."""
        return {f"/{schema.HEALTH}/Check": Rpc(self.check, PUBLIC)}

    async def check(self, exchange: Exchange) -> bytes:
        """Answer one HealthCheckRequest."""
        service = schema.parse(schema.HealthCheckRequest, exchange.request.message).service
        if service not in SERVICES:
            # the status that the health protocol asks for here is the same as an unknown model's
            msg = f"service {service[:64]!a} is not known here; it has '{schema.INFERENCE}'"
            raise UnknownModel(msg)
        status = "SERVING" if self._ready() else "NOT_SERVING"
        encoded: bytes = schema.HealthCheckResponse(status=status).SerializeToString()
        return encoded
