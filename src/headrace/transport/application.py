"""Everything that one HTTP port serves."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from typing import Final, Protocol, TypeAlias

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match

from headrace.domain.calls import UNKNOWN, Principal
from headrace.domain.errors import HeadraceError
from headrace.domain.standing import Standing
from headrace.ports.authentication import Authenticate
from headrace.telemetry.access_log import Access, AccessLog
from headrace.telemetry.api_requests import OK, ApiRequests
from headrace.telemetry.trace_context import RequestIds
from headrace.transport.access import GuardedRoute
from headrace.transport.call_headers import read_request_id
from headrace.transport.client_address import ClientAddress
from headrace.transport.cors import Cors, is_preflight
from headrace.transport.dialect import INTERNAL
from headrace.transport.dialects import dialect_of
from headrace.transport.http.host import AsgiApp, AsgiMessage, AsgiReceive, AsgiSend
from headrace.transport.http.messages import Handler, HttpRequest, HttpResponse, path_of
from headrace.transport.limit_headers import limit_headers
from headrace.transport.oip_rest.infer import InferWire
from headrace.transport.openai.application import is_upload as is_file_upload
from headrace.transport.status import CLIENT_CLOSED
from headrace.transport.told import Told
from headrace.transport.unserved import unserved

#: What is asked every few seconds, to no one's interest: it is neither logged nor counted.
PROBES: Final = frozenset({"/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})
#: The page that shows the management API, and the document behind it, tell nothing of anybody.
_DOCUMENTS: Final = frozenset({"/docs", "/api/v1/openapi.json"})
_MANAGED: Final = "/api"
_UPLOAD: Final = re.compile(rb"/api/v1/models/[^/?]+/versions/[^/?]+/artifact(?:\?.*)?")

#: Counts a request that asks for no inference, see gateway.Gateway.spend.
Spend: TypeAlias = Callable[[Principal, str], Awaitable[Sequence[Standing]]]

_NOTHING_TOLD: Final = Told()
_logger = logging.getLogger(__name__)


class Management(Protocol):
    """The management API, which is made when it is first asked for."""

    async def app(self) -> AsgiApp:
        """The application under `/api` and `/docs`."""
        ...


def _is_managed(path: str) -> bool:
    return path == "/docs" or path.startswith(("/api/", "/docs/"))


class HttpApplication:
    """The hot inference route at protocol level, all other routes by Starlette.

    `cors` is None where no page of another origin may call.
    """

    def __init__(
        self,
        infer: InferWire,
        routes: Sequence[GuardedRoute],
        *,
        management: Management | None = None,
        addresses: ClientAddress,
        authenticate: Authenticate,
        spend: Spend,
        ids: RequestIds,
        access_log: AccessLog,
        api_requests: ApiRequests,
        cors: Cors | None = None,
    ) -> None:
        self._infer = infer
        self._addresses = addresses
        self._authenticate = authenticate
        self._ids = ids
        self._cors = cors
        app = Starlette(
            routes=routes,
            exception_handlers={
                HeadraceError: _typed_error,
                HTTPException: _http_error,
                ClientDisconnect: _client_gone,
                Exception: _internal_error,
            },
        )
        app.router.redirect_slashes = False
        self.asgi: AsgiApp = _Edge(
            app,
            management,
            routes=routes,
            addresses=addresses,
            authenticate=authenticate,
            spend=spend,
            ids=ids,
            access_log=access_log,
            api_requests=api_requests,
            cors=cors,
        )

    def handler(self, method: str, target: bytes) -> Handler | None:
        """See Application.handler."""
        if method != "POST":
            return None
        found = self._infer.handler(target)
        if found is None or self._cors is None:
            return found
        return partial(_shared, self._cors, found)

    def is_upload(self, method: str, target: bytes) -> bool:
        """See Application.is_upload."""
        return is_file_upload(method, target) or (
            method == "PUT" and _UPLOAD.fullmatch(target) is not None
        )

    def may_send(self, headers: Mapping[bytes, bytes], peer: str) -> HeadraceError | None:
        """See Application.may_send."""
        try:
            self._authenticate(headers, self._addresses.of(headers, peer))
        except HeadraceError as error:
            return error
        return None

    def refuse(
        self, target: bytes, headers: Mapping[bytes, bytes], error: HeadraceError
    ) -> HttpResponse:
        """See Application.refuse."""
        return self._refusal(target, headers, error, read_request_id(headers, self._ids))

    def failed(
        self, target: bytes, headers: Mapping[bytes, bytes], error: BaseException
    ) -> HttpResponse:
        """See Application.failed."""
        request_id = read_request_id(headers, self._ids)
        _log_failure(error, request_id)
        return self._refusal(target, headers, INTERNAL, request_id)

    def _refusal(
        self,
        target: bytes,
        headers: Mapping[bytes, bytes],
        error: HeadraceError,
        request_id: str,
    ) -> HttpResponse:
        response = dialect_of(path_of(target)).response(error, request_id)
        if self._cors is not None:
            response.headers += self._cors.lines(headers.get(b"origin"))
        return response


class _Visit:
    """One request and what became of it; every answer leaves through `send`."""

    __slots__ = (
        "_receive", "_send", "address", "begun", "code", "headers", "more", "principal",
        "received", "request_id", "scope", "sent", "standings", "status",
    )  # fmt: skip

    def __init__(
        self, scope: AsgiMessage, receive: AsgiReceive, send: AsgiSend, ids: RequestIds
    ) -> None:
        self.begun = time.monotonic()
        self.scope = scope
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.address = scope["client"][0] if scope["client"] else ""  # the peer's, to begin with
        self.request_id = scope["headrace.request_id"] = read_request_id(self.headers, ids)
        self.principal = UNKNOWN
        self.more: Sequence[tuple[bytes, bytes]] = ()  # headers beside those of the route
        self.standings: Sequence[Standing] = ()
        self.status = 0  # until the answer has begun
        self.code = ""
        self.received = 0
        self.sent = 0
        self._receive = receive
        self._send = send

    async def receive(self) -> AsgiMessage:
        message = await self._receive()
        self.received += len(message.get("body", b""))
        return message

    async def send(self, message: AsgiMessage) -> None:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), *self.more]
            headers += [(n.encode(), v.encode()) for n, v in limit_headers(self.standings)]
            names = dict(headers)
            if b"x-request-id" not in names:  # an error brings it along
                headers.append((b"x-request-id", self.request_id.encode()))
            message["headers"] = headers
            self.status = message["status"]
            self.code = names.get(b"x-error-code", b"").decode("ascii")
        else:
            self.sent += len(message.get("body", b""))
        await self._send(message)

    async def answer(self, response: Response) -> None:
        await response(self.scope, self.receive, self.send)

    async def refuse(self, error: HeadraceError) -> None:
        dialect = dialect_of(self.scope["path"])
        await self.answer(dialect.asgi_response(error, self.request_id))


class _Edge:
    """Asks who calls, gives every answer its request id, and the access log its line.

    What the caller may do is asked by the routes.
    """

    def __init__(
        self,
        app: AsgiApp,
        management: Management | None,
        *,
        routes: Sequence[GuardedRoute],
        addresses: ClientAddress,
        authenticate: Authenticate,
        spend: Spend,
        ids: RequestIds,
        access_log: AccessLog,
        api_requests: ApiRequests,
        cors: Cors | None,
    ) -> None:
        self._app = app
        self._management = management
        self._routes = routes
        self._counted = [route for route in routes if route.by_gateway]
        self._public = _DOCUMENTS.union(route.path for route in routes if route.public)
        self._addresses = addresses
        self._authenticate = authenticate
        self._spend = spend
        self._ids = ids
        self._access_log = access_log
        self._api_requests = api_requests
        self._cors = cors

    async def __call__(self, scope: AsgiMessage, receive: AsgiReceive, send: AsgiSend) -> None:
        visit = _Visit(scope, receive, send, self._ids)
        try:
            if self._cors is None or not await self._preflight(visit, self._cors):
                await self._serve(visit)
        except HeadraceError as error:
            await visit.refuse(error)
        except asyncio.CancelledError:  # the connection ended, or was refused, under way
            visit.status = visit.status or CLIENT_CLOSED
            visit.code = visit.code or "cancelled"
            raise
        except Exception as error:  # noqa: BLE001 - the request's root, where its id is known
            _log_failure(error, visit.request_id)
            if not visit.status:
                await visit.refuse(INTERNAL)
        finally:
            self._log(visit)

    async def _preflight(self, visit: _Visit, cors: Cors) -> bool:
        """Answer a browser that asks what it may send; it never has a token to ask with."""
        if not is_preflight(visit.scope["method"], visit.headers):
            visit.more = cors.headers(visit.headers.get(b"origin"))
            return False
        visit.more = cors.refused_preflight()
        visit.more = cors.preflight(visit.headers)
        await visit.answer(Response(status_code=HTTPStatus.NO_CONTENT))
        return True

    async def _serve(self, visit: _Visit) -> None:
        scope = visit.scope
        path = scope["path"]
        if path not in self._public:
            visit.address = self._addresses.of(visit.headers, visit.address)
            visit.principal = self._authenticate(visit.headers, visit.address)
            if not any(route.matches(scope)[0] is Match.FULL for route in self._counted):
                visit.standings = await self._spend(visit.principal, visit.address)
        scope["headrace.principal"] = visit.principal
        scope["headrace.address"] = visit.address
        app = self._app
        if self._management is not None and _is_managed(path):
            app = await self._management.app()
        await app(scope, visit.receive, visit.send)

    def _route_of(self, scope: AsgiMessage) -> str:
        """The route of a request that was refused before it got there; "" where there is none."""
        if self._management is not None and _is_managed(scope["path"]):
            return _MANAGED  # which of its routes, it knows itself once it is made
        matching = (route for route in self._routes if route.matches(scope)[0] is not Match.NONE)
        return next((route.path for route in matching), "")

    def _log(self, visit: _Visit) -> None:
        scope, status = visit.scope, visit.status or 500
        if scope["path"] in PROBES:
            return
        route = getattr(scope.get("route"), "path", "") or self._route_of(scope)
        told: Told = scope.get("headrace.told", _NOTHING_TOLD)
        # a stream may fail after its status was sent, which was that of a success
        code = told.code or visit.code or ("cancelled" if status == CLIENT_CLOSED else OK)
        self._api_requests.count(route, visit.principal.kind, code)
        if self._access_log.wants(status):
            self._access_log.add(
                Access(
                    ended_s=time.time(),
                    duration_s=time.monotonic() - visit.begun,
                    request_id=visit.request_id,
                    method=scope["method"],
                    route=route,
                    status=status,
                    bytes_in=visit.received,
                    bytes_out=visit.sent,
                    code="" if code == OK else code,
                    model=told.model,
                    version=told.version,
                    trace_id=told.trace_id,
                    principal=visit.principal.name,
                    caller=visit.principal.kind,
                    client=visit.address,
                )
            )


async def _shared(cors: Cors, handler: Handler, request: HttpRequest) -> HttpResponse:
    """What `handler` answers, as pages of other origins may read it."""
    response = await handler(request)
    response.headers += cors.lines(request.headers.get(b"origin"))
    return response


def _log_failure(error: BaseException, request_id: str) -> None:
    _logger.error("a handler failed", exc_info=error, extra={"request_id": request_id})


def _told(request: Request, error: HeadraceError) -> Response:
    scope = request.scope
    return dialect_of(scope["path"]).asgi_response(error, scope["headrace.request_id"])


async def _typed_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HeadraceError)  # noqa: S101 - registered for it
    return _told(request, error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it
    return _told(request, unserved(request, error))


async def _client_gone(_: Request, __: Exception) -> Response:
    """Nobody reads this answer; its status is for the log."""
    return Response(status_code=CLIENT_CLOSED)


async def _internal_error(request: Request, _: Exception) -> Response:
    """A defect of ours: the client learns no more; the edge logs it with its traceback."""
    return _told(request, INTERNAL)
