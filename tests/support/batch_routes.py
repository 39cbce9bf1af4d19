"""The routes of files and batches alone: as the edge hands requests to them, and as one port."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from headrace.domain.calls import Principal
from headrace.domain.errors import HeadraceError
from headrace.transport.http.host import AsgiApp, AsgiMessage, AsgiReceive, AsgiSend
from headrace.transport.http.messages import Handler, HttpResponse
from headrace.transport.openai.application import is_upload
from headrace.transport.openai.errors import OPENAI
from headrace.transport.unserved import unserved

REQUEST_ID = "req-1"


def routed(routes: Sequence[BaseRoute], *, principal: Callable[[str], Principal]) -> AsgiApp:
    """An application of these routes. `principal` is who has a token; "" where there is none."""
    app = Starlette(
        routes=routes, exception_handlers={HeadraceError: _typed, HTTPException: _unserved}
    )

    async def edge(scope: AsgiMessage, receive: AsgiReceive, send: AsgiSend) -> None:
        token = dict(scope["headers"]).get(b"authorization", b"").decode().removeprefix("Bearer ")
        scope["headrace.principal"] = principal(token)
        scope["headrace.request_id"] = REQUEST_ID
        await app(scope, receive, send)

    return edge


class BatchPort:
    """What an HTTP server asks of an application that has no handlers of its own."""

    def __init__(self, asgi: AsgiApp) -> None:
        self.asgi = asgi

    def handler(self, method: str, target: bytes) -> Handler | None:
        del method, target
        return None

    def is_upload(self, method: str, target: bytes) -> bool:
        return is_upload(method, target)

    def may_send(self, headers: Mapping[bytes, bytes], peer: str) -> HeadraceError | None:
        del headers, peer
        return None

    def refuse(
        self, target: bytes, headers: Mapping[bytes, bytes], error: HeadraceError
    ) -> HttpResponse:
        del target, headers
        return OPENAI.response(error, REQUEST_ID)

    def failed(
        self, target: bytes, headers: Mapping[bytes, bytes], error: BaseException
    ) -> HttpResponse:
        del target, headers
        raise AssertionError from error


async def _typed(_: Request, error: Exception) -> Response:
    assert isinstance(error, HeadraceError)
    return OPENAI.asgi_response(error, REQUEST_ID)


async def _unserved(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return OPENAI.asgi_response(unserved(request, error), REQUEST_ID)
