"""grpc.health.v1: what load balancers and Kubernetes' probes ask, and clients that balance."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from headrace.domain.errors import InvalidRequest, Overloaded, UnknownModel
from headrace.transport.access import PUBLIC
from headrace.transport.oip_grpc import schema
from headrace.transport.oip_grpc.edge import Exchange, Opened, Rpc, StreamRpc

#: What a client may ask about: the server as a whole, or its service.
SERVICES: Final = frozenset({"", schema.INFERENCE})
#: Seconds between two looks while somebody watches: nothing tells when readiness changes.
POLL_S: Final = 0.25
#: Watchers at a time: everybody may be one, stays for as long as it likes, and costs a look each.
MAX_WATCHERS: Final = 100


class HealthRpc:
    """`ready` answers whether an inference sent now would be tried."""

    def __init__(self, *, ready: Callable[[], bool], poll_s: float = POLL_S) -> None:
        self._ready = ready
        self._poll_s = poll_s
        self._watchers = 0

    def rpcs(self) -> dict[str, Rpc | StreamRpc]:
        """The RPCs by their paths."""
        return {
            f"/{schema.HEALTH}/Check": Rpc(self.check, PUBLIC),
            f"/{schema.HEALTH}/Watch": StreamRpc(self.watch, public=True),
        }

    async def check(self, exchange: Exchange) -> bytes:
        """Answer one HealthCheckRequest."""
        service = schema.parse(schema.HealthCheckRequest, exchange.request.message).service
        if service not in SERVICES:
            # the status that the health protocol asks for here is the same as an unknown model's
            msg = f"service {service[:64]!a} is not known here; it has '{schema.INFERENCE}'"
            raise UnknownModel(msg)
        return _response("SERVING" if self._ready() else "NOT_SERVING")

    async def watch(self, opened: Opened) -> None:
        """Answer one HealthCheckRequest at once, and again whenever the answer changes.

        Raises:
            InvalidRequest, Overloaded
        """
        stream = opened.stream
        async for message in stream.messages:
            service = schema.parse(schema.HealthCheckRequest, message).service
            break
        else:
            msg = "a HealthCheckRequest is expected, but none came"
            raise InvalidRequest(msg)
        if self._watchers >= MAX_WATCHERS:
            msg = f"{MAX_WATCHERS} clients watch already: ask by Check"
            raise Overloaded(msg)
        self._watchers += 1
        try:
            if service not in SERVICES:
                # it might come, for all that the protocol knows, so the stream stays open
                await stream.send(_response("SERVICE_UNKNOWN"))
                await asyncio.get_running_loop().create_future()
            told = None
            while True:
                ready = self._ready()
                if ready is not told:
                    told = ready
                    await stream.send(_response("SERVING" if ready else "NOT_SERVING"))
                await asyncio.sleep(self._poll_s)
        finally:
            self._watchers -= 1


def _response(status: str) -> bytes:
    encoded: bytes = schema.HealthCheckResponse(status=status).SerializeToString()
    return encoded
