"""Everything that one HTTP port serves."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from headrace.domain.calls import ANONYMOUS
from headrace.domain.errors import HeadraceError, Unauthenticated
from headrace.ports.authentication import Authenticate
from headrace.telemetry.access_log import Access, AccessLog
from headrace.telemetry.trace_context import RequestIds, valid_request_id
from headrace.transport.http.host import AsgiApp, AsgiMessage, AsgiReceive, AsgiSend
from headrace.transport.http.messages import Handler
from headrace.transport.oip_rest.errors import error_headers
from headrace.transport.oip_rest.infer import InferWire
from headrace.transport.status import CLIENT_CLOSED, http_status

#: Paths that answer everybody: probes and scrapers have no token. All others ask for one.
PROBES: Final = frozenset({"/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})
#: The page that shows the management API, and the document behind it, tell nothing of anybody.
PUBLIC: Final = PROBES | {"/healthz", "/docs", "/api/v1/openapi.json"}
_UPLOAD: Final = re.compile(rb"/api/v1/models/[^/?]+/versions/[^/?]+/artifact(?:\?.*)?")


class Management(Protocol):
    """The management API, which is made when it is first asked for."""

    async def app(self) -> AsgiApp:
        """The application under `/api` and `/docs`."""
        ...

    async def refuse(self, request: Request, error: Exception) -> Response:
        """The answer that tells a client of `error`."""
        ...


def _is_managed(path: str) -> bool:
    return path == "/docs" or path.startswith(("/api/", "/docs/"))


class HttpApplication:
    """The hot inference route at protocol level, all other routes by Starlette."""

    def __init__(
        self,
        infer: InferWire,
        routes: Sequence[BaseRoute],
        *,
        management: Management | None = None,
        authenticate: Authenticate,
        ids: RequestIds,
        access_log: AccessLog,
    ) -> None:
        self._infer = infer
        self._management = management
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
            authenticate=authenticate,
            ids=ids,
            access_log=access_log,
        )

    def handler(self, method: str, target: bytes) -> Handler | None:
        """See Application.handler."""
        return self._infer.handler(target) if method == "POST" else None

    def is_upload(self, method: str, target: bytes) -> bool:
        """See Application.is_upload."""
        return method == "PUT" and _UPLOAD.fullmatch(target) is not None


class _Edge:
    """Asks who calls, gives every answer its request id, and the access log its line."""

    def __init__(
        self,
        app: AsgiApp,
        management: Management | None,
        *,
        authenticate: Authenticate,
        ids: RequestIds,
        access_log: AccessLog,
    ) -> None:
        self._app = app
        self._management = management
        self._authenticate = authenticate
        self._ids = ids
        self._access_log = access_log

    async def __call__(self, scope: AsgiMessage, receive: AsgiReceive, send: AsgiSend) -> None:
        begun = time.monotonic()
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if valid_request_id(given) else self._ids.request_id()
        status = sent = received = 0

        async def counted() -> AsgiMessage:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def with_id(message: AsgiMessage) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                ]
            else:
                sent += len(message.get("body", b""))
            await send(message)

        principal = ANONYMOUS
        try:
            if scope["path"] not in PUBLIC:
                principal = self._authenticate(headers)
            scope["headrace.principal"] = principal
            scope["headrace.request_id"] = request_id
            app = self._app
            if self._management is not None and _is_managed(scope["path"]):
                app = await self._management.app()
            await app(scope, counted, with_id)
        except Unauthenticated as error:
            refuse: Callable[[Request, Exception], Awaitable[Response]] = _typed_error
            if self._management is not None and _is_managed(scope["path"]):
                refuse = self._management.refuse
            scope["headrace.request_id"] = request_id
            await (await refuse(Request(scope), error))(scope, receive, with_id)
        except asyncio.CancelledError:  # the connection ended, or was refused, under way
            status = status or CLIENT_CLOSED
            raise
        finally:
            status = status or 500
            probe = scope["path"] in PROBES  # asked every few seconds, to no one's interest
            if not probe and self._access_log.wants(status):
                route = scope.get("route")
                self._access_log.add(
                    Access(
                        ended_s=time.time(),
                        duration_s=time.monotonic() - begun,
                        request_id=request_id,
                        method=scope["method"],
                        route=getattr(route, "path", ""),
                        status=status,
                        bytes_in=received,
                        bytes_out=sent,
                        principal=principal.name,
                    )
                )


async def _typed_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HeadraceError)  # noqa: S101 - registered for it
    return JSONResponse({"error": error.message}, http_status(error), headers=error_headers(error))


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


async def _client_gone(_: Request, __: Exception) -> Response:
    """Nobody reads this answer; its status is for the log."""
    return Response(status_code=CLIENT_CLOSED)


async def _internal_error(_: Request, __: Exception) -> Response:
    """A defect of ours: the client learns no more; the bridge logs it with its traceback."""
    return JSONResponse({"error": "internal error"}, 500)
