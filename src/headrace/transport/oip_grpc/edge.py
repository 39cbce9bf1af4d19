"""The edge of the gRPC wire: who calls, under which id, what an error becomes, what is logged."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
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
from headrace.transport.oip_grpc.messages import (
    GrpcAnswer,
    GrpcRequest,
    GrpcStream,
    Handler,
    StreamHandler,
)
from headrace.transport.status import CLIENT_CLOSED, STATUS, grpc_status, http_status

_logger = logging.getLogger(__name__)


class Exchange(msgspec.Struct):
    """One request under way, alone or on a stream.

    An RPC fills in what its line in the access log shall say.
    """

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
    bytes_out: int = 0


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


class Opened:
    """A stream whose caller may have it; each message on it is a request of its own."""

    def __init__(self, edge: Edge, path: str, stream: GrpcStream, exchange: Exchange) -> None:
        self._edge = edge
        self._path = path
        self._numbers = itertools.count(1)
        self.stream = stream
        self.exchange = exchange  # of the stream as a whole; its request has no message

    def begin(self, message: bytes) -> Exchange:
        """Take one message as a request, within the deadline of the stream.

        The credential is looked at again, since it may have been withdrawn.

        Raises:
            HeadraceError: it has been; the access log has that.
        """
        edge, whole = self._edge, self.exchange
        exchange = Exchange(
            GrpcRequest(whole.request.headers, message, whole.request.timeout_s, self.stream.peer),
            f"{whole.request_id}.{next(self._numbers)}",
            edge.clock(),
            whole.deadline,
        )
        edge.identify(self._path, exchange)
        return exchange

    @property
    def is_late(self) -> bool:
        """Whether the deadline of the stream has passed."""
        return self._edge.clock() >= self.exchange.deadline

    def accounted(self, exchange: Exchange) -> Account:
        """Account for a request by the block that answers it."""
        return Account(self._edge, self._path, exchange)


class Account:
    """Counts a request and logs it, by how its block ends; a probe is neither.

    A defect is logged, and raised as a HeadraceError that tells nothing of it. A class, since a
    generator as the context manager costs every request 4 µs.
    """

    __slots__ = ("_edge", "_exchange", "_path", "_probe")

    def __init__(self, edge: Edge, path: str, exchange: Exchange, *, probe: bool = False) -> None:
        self._edge = edge
        self._path = path
        self._exchange = exchange
        self._probe = probe

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(
        self, kind: object, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        defect: HeadraceError | None = None
        edge, exchange = self._edge, self._exchange
        code, status = OK, 200
        if isinstance(error, HeadraceError):
            code, status = error.code, http_status(error)
        elif isinstance(error, Exception):
            defect = edge.defect(self._path, exchange, error)
            code, status = defect.code, 500
        elif error is not None:
            # the server cancels for both; the log tells who gave up
            late = edge.clock() >= exchange.deadline
            code = DeadlineExceeded.code if late else "cancelled"
            status = STATUS[code][0] if late else CLIENT_CLOSED
        if not self._probe:
            edge.account(self._path, exchange, code, status)
        if defect is not None:
            raise defect from None


class StreamRpc(msgspec.Struct, frozen=True):
    """A streaming method. Whoever may open it is asked who they are, unless it is public.

    What a caller may do is looked at for each message, by the gateway.
    """

    #: Answers messages until there are no more, or raises a HeadraceError, the stream's status.
    answer: Callable[[Opened], Awaitable[None]]
    public: bool = False


class Edge:
    """Wraps RPCs, given by their paths, into what a server serves."""

    def __init__(
        self,
        rpcs: Mapping[str, Rpc | StreamRpc],
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
        self.clock = clock
        self.handlers: Mapping[str, Handler] = {
            path: partial(self._answer, path, rpc)
            for path, rpc in rpcs.items()
            if isinstance(rpc, Rpc)
        }
        self.streams: Mapping[str, StreamHandler] = {
            path: partial(self._open, path, rpc)
            for path, rpc in rpcs.items()
            if isinstance(rpc, StreamRpc)
        }

    async def _answer(self, path: str, rpc: Rpc, request: GrpcRequest) -> GrpcAnswer:
        exchange = self._exchange(request)
        trailers = (("x-request-id", exchange.request_id),)
        probe = rpc.rule is PUBLIC
        try:
            with Account(self, path, exchange, probe=probe):
                if not probe:
                    await self._let_in(rpc, exchange)
                message = await rpc.answer(exchange)
                exchange.bytes_out = len(message)
        except HeadraceError as error:
            error.standings = error.standings or exchange.standings
            return _refusal(error, trailers)
        return GrpcAnswer(message, trailers=(*trailers, *self._about(exchange)))

    async def _open(self, path: str, rpc: StreamRpc, stream: GrpcStream) -> GrpcAnswer:
        exchange = self._exchange(GrpcRequest(stream.headers, b"", stream.timeout_s, stream.peer))
        trailers = (("x-request-id", exchange.request_id),)
        try:
            if not rpc.public:
                self.identify(path, exchange)
            await rpc.answer(Opened(self, path, stream, exchange))
        except HeadraceError as error:
            return _refusal(error, trailers)
        except Exception as error:  # noqa: BLE001 - the root of a stream
            return _refusal(self.defect(path, exchange, error), trailers)
        return GrpcAnswer(trailers=trailers)

    def _exchange(self, request: GrpcRequest) -> Exchange:
        received = self.clock()
        request_id = read_request_id(request.headers, self._ids)
        return Exchange(request, request_id, received, received + request.timeout_s)

    def identify(self, path: str, exchange: Exchange) -> None:
        """Find out who calls, and account for who may not. Raises Unauthenticated and the like."""
        try:
            self._identify(exchange)
        except HeadraceError:
            with Account(self, path, exchange):
                raise

    def _identify(self, exchange: Exchange) -> None:
        headers = exchange.request.headers
        exchange.address = self._addresses.of(headers, exchange.request.peer)
        exchange.principal = self._authenticate(headers, exchange.address)

    async def _let_in(self, rpc: Rpc, exchange: Exchange) -> None:
        self._identify(exchange)
        if not rpc.by_gateway:
            exchange.standings = await self._spend(exchange.principal, exchange.address)
            if not rpc.on_model:
                rpc.rule.require(exchange.principal)

    def defect(self, path: str, exchange: Exchange, error: Exception) -> HeadraceError:
        """Log an exception that nobody foresaw; what is told in its place."""
        request_id = exchange.request_id
        _logger.error("%s failed", path, exc_info=error, extra={"request_id": request_id})
        return HeadraceError("internal error")

    def account(self, path: str, exchange: Exchange, code: str, status: int) -> None:
        """Count a request that has ended, and log it."""
        self._api_requests.count(path, exchange.principal.kind, code)
        if self._access_log.wants(status):
            self._access_log.add(
                Access(
                    ended_s=time.time(),
                    duration_s=self.clock() - exchange.received,
                    request_id=exchange.request_id,
                    method="GRPC",
                    route=path,
                    status=status,
                    bytes_in=len(exchange.request.message),
                    bytes_out=exchange.bytes_out,
                    code="" if code == OK else code,
                    model=exchange.model,
                    version=exchange.version,
                    principal=exchange.principal.name,
                    caller=exchange.principal.kind,
                    client=exchange.address,
                    trace_id=exchange.trace_id,
                )
            )

    def _about(self, exchange: Exchange) -> list[tuple[str, str]]:
        """What a success tells beside its message."""
        about = list(limit_headers(exchange.standings)) if exchange.standings else []
        if (model_s := exchange.run_s) is not None:
            platform_s = max(self.clock() - exchange.received - model_s, 0.0)
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
