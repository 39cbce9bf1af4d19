"""The edge of the gRPC wire: who calls, under which id, what an error becomes, what is logged."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

import msgspec

from headrace.domain.calls import UNKNOWN, Principal
from headrace.domain.errors import DeadlineExceeded, HeadraceError
from headrace.domain.standing import Standing
from headrace.ports.authentication import Authenticate
from headrace.telemetry.access_log import Access, AccessLog
from headrace.telemetry.api_requests import OK, ApiRequests
from headrace.telemetry.trace_context import RequestIds
from headrace.transport.access import PUBLIC, Rule
from headrace.transport.call_headers import read_request_id
from headrace.transport.client_address import ClientAddress
from headrace.transport.limit_headers import limit_headers
from headrace.transport.oip_grpc.messages import GrpcAnswer, GrpcRequest, Handler
from headrace.transport.status import CLIENT_CLOSED, STATUS, grpc_status, http_status

_logger = logging.getLogger(__name__)


class Exchange(msgspec.Struct):
    """One request under way. An RPC fills in what its line in the access log shall say."""

    request: GrpcRequest
    request_id: str
    received: float  # on the monotonic clock of the process, as `deadline`
    deadline: float
    principal: Principal = UNKNOWN
    address: str = ""
    model: str = ""
    version: str = ""
    trace_id: str = ""
    standings: Sequence[Standing] = ()  # how the caller stands with its limits
    run_s: float | None = None  # how long a model ran; None where none was to
    target: str = ""  # of the route, that answered


#: Counts a request that asks for no inference, see gateway.Gateway.spend.
Spend: TypeAlias = Callable[[Principal, str], Awaitable[Sequence[Standing]]]


class Rpc(msgspec.Struct, frozen=True):
    """A method, and who may call it."""

    #: Answers an encoded message, or raises a HeadraceError.
    answer: Callable[[Exchange], Awaitable[bytes]]
    rule: Rule
    #: Whether the gateway counts it and looks at its rule, as it does with inference.
    by_gateway: bool = False
    #: Whether `answer` looks at the rule, since the model is named in the message.
    on_model: bool = False


class Edge:
    """Wraps RPCs, given by their paths, into what a server serves."""

    def __init__(
        self,
        rpcs: Mapping[str, Rpc],
        *,
        addresses: ClientAddress,
        authenticate: Authenticate,
        spend: Spend,
        ids: RequestIds,
        access_log: AccessLog,
        api_requests: ApiRequests,
        clock: Callable[[], float],
    ) -> None:
        self._addresses = addresses
        self._authenticate = authenticate
        self._spend = spend
        self._api_requests = api_requests
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
        probe = rpc.rule is PUBLIC
        answer = GrpcAnswer()
        code, status = HeadraceError.code, 500
        try:
            if not probe:
                await self._let_in(rpc, exchange)
            message = await rpc.answer(exchange)
            answer = GrpcAnswer(message, trailers=(*trailers, *self._about(exchange)))
            code, status = OK, 200
        except HeadraceError as error:
            code, status = error.code, http_status(error)
            error.standings = error.standings or exchange.standings
            answer = _refusal(error, trailers)
        except asyncio.CancelledError:
            # the server cancels for both; the log tells who gave up
            late = self._clock() >= exchange.deadline
            code = DeadlineExceeded.code if late else "cancelled"
            status = STATUS[code][0] if late else CLIENT_CLOSED
            raise
        except Exception:
            _logger.exception("%s failed", path, extra={"request_id": exchange.request_id})
            answer = _refusal(HeadraceError("internal error"), trailers)
        finally:
            if not probe:
                self._api_requests.count(path, exchange.principal.kind, code)
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
                        code="" if code == OK else code,
                        model=exchange.model,
                        version=exchange.version,
                        principal=exchange.principal.name,
                        caller=exchange.principal.kind,
                        client=exchange.address,
                        trace_id=exchange.trace_id,
                    )
                )
        return answer

    async def _let_in(self, rpc: Rpc, exchange: Exchange) -> None:
        headers = exchange.request.headers
        exchange.address = self._addresses.of(headers, exchange.request.peer)
        exchange.principal = self._authenticate(headers, exchange.address)
        if not rpc.by_gateway:
            exchange.standings = await self._spend(exchange.principal, exchange.address)
            if not rpc.on_model:
                rpc.rule.require(exchange.principal)

    def _about(self, exchange: Exchange) -> list[tuple[str, str]]:
        """What a success tells beside its message."""
        about = list(limit_headers(exchange.standings)) if exchange.standings else []
        if (model_s := exchange.run_s) is not None:
            platform_s = max(self._clock() - exchange.received - model_s, 0.0)
            timing = f"model;dur={model_s * 1e3:.3f}, platform;dur={platform_s * 1e3:.3f}"
            about.append(("server-timing", timing))
        if exchange.target:
            about.append(("x-headrace-target", exchange.target))
        return about


def _refusal(error: HeadraceError, trailers: tuple[tuple[str, str], ...]) -> GrpcAnswer:
    trailers = (*trailers, ("x-error-code", error.code), *limit_headers(error.standings))
    if error.retry_after_s is not None:
        # gRPC's own Retry-After: a client with a retry policy waits as long (gRFC A6)
        pushback_ms = str(math.ceil(error.retry_after_s * 1000))
        trailers = (*trailers, ("grpc-retry-pushback-ms", pushback_ms))
    return GrpcAnswer(status=grpc_status(error), details=error.message, trailers=trailers)
