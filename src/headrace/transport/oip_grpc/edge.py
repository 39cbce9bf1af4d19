"""The edge of the gRPC wire: who calls, under which id, what an error becomes, what is logged."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final, TypeAlias

import msgspec

from headrace.domain.calls import ANONYMOUS, Principal
from headrace.domain.errors import DeadlineExceeded, HeadraceError
from headrace.ports.authentication import Authenticate
from headrace.telemetry.access_log import Access, AccessLog
from headrace.telemetry.trace_context import RequestIds
from headrace.transport.call_headers import read_request_id
from headrace.transport.oip_grpc.messages import GrpcAnswer, GrpcRequest, Handler
from headrace.transport.oip_grpc.schema import HEALTH, INFERENCE
from headrace.transport.status import CLIENT_CLOSED, STATUS, GrpcStatus, grpc_status, http_status

#: Methods that answer everybody: probes have no token. All others ask for one.
PUBLIC: Final = frozenset(
    {f"/{INFERENCE}/ServerLive", f"/{INFERENCE}/ServerReady", f"/{HEALTH}/Check"}
)

_logger = logging.getLogger(__name__)


class Exchange(msgspec.Struct):
    """One request under way. An RPC fills in what its line in the access log shall say."""

    request: GrpcRequest
    request_id: str
    received: float  # on the monotonic clock of the process, as `deadline`
    deadline: float
    principal: Principal = ANONYMOUS
    model: str = ""
    version: str = ""
    trace_id: str = ""


#: Answers an encoded message, or raises a HeadraceError.
Rpc: TypeAlias = Callable[[Exchange], Awaitable[bytes]]


class Edge:
    """Wraps RPCs, given by their paths, into what a server serves."""

    def __init__(
        self,
        rpcs: Mapping[str, Rpc],
        *,
        authenticate: Authenticate,
        ids: RequestIds,
        access_log: AccessLog,
        clock: Callable[[], float],
    ) -> None:
        self._authenticate = authenticate
        self._ids = ids
        self._access_log = access_log
        self._clock = clock
        self.handlers: Mapping[str, Handler] = {
            path: partial(self._answer, path, rpc) for path, rpc in rpcs.items()
        }

    async def _answer(self, path: str, rpc: Rpc, request: GrpcRequest) -> GrpcAnswer:
        received = self._clock()
        exchange = Exchange(
            request,
            read_request_id(request.headers, self._ids),
            received,
            received + request.timeout_s,
        )
        trailers = (("x-request-id", exchange.request_id),)
        probe = path in PUBLIC
        answer = GrpcAnswer()
        code, status = "", 500
        try:
            if not probe:
                exchange.principal = self._authenticate(request.headers)
            answer = GrpcAnswer(await rpc(exchange), trailers=trailers)
            status = 200
        except HeadraceError as error:
            code, status = error.code, http_status(error)
            answer = _refusal(error, trailers)
        except asyncio.CancelledError:
            # the server cancels for both; the log tells who gave up
            late = self._clock() >= exchange.deadline
            code = DeadlineExceeded.code if late else ""
            status = STATUS[code][0] if late else CLIENT_CLOSED
            raise
        except Exception:
            _logger.exception("%s failed", path, extra={"request_id": exchange.request_id})
            code = HeadraceError.code
            answer = GrpcAnswer(
                status=GrpcStatus.INTERNAL, details="internal error", trailers=trailers
            )
        finally:
            if not probe and self._access_log.wants(status):
                self._access_log.add(
                    Access(
                        ended_s=time.time(),
                        duration_s=self._clock() - received,
                        request_id=exchange.request_id,
                        method="GRPC",
                        route=path,
                        status=status,
                        bytes_in=len(request.message),
                        bytes_out=len(answer.message),
                        code=code,
                        model=exchange.model,
                        version=exchange.version,
                        principal=exchange.principal.name,
                        trace_id=exchange.trace_id,
                    )
                )
        return answer


def _refusal(error: HeadraceError, trailers: tuple[tuple[str, str], ...]) -> GrpcAnswer:
    if error.retry_after_s is not None:
        # gRPC's own Retry-After: a client with a retry policy waits as long (gRFC A6)
        pushback_ms = str(math.ceil(error.retry_after_s * 1000))
        trailers = (*trailers, ("grpc-retry-pushback-ms", pushback_ms))
    return GrpcAnswer(status=grpc_status(error), details=error.message, trailers=trailers)
