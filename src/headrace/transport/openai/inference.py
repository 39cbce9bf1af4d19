"""`POST /v1/embeddings`, `/v1/chat/completions` and `/v1/completions`.

What a client is told before the first event of a stream is an error like any other, with its
status; after it the status is sent, an error is the last event, and there is no `[DONE]`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Final, TypeAlias

from starlette.requests import Request
from starlette.responses import Response

from headrace.domain.calls import Call
from headrace.domain.errors import DeadlineExceeded, HeadraceError, Unsupported
from headrace.domain.inference import DeadlineOf, InferRequest, InferResponse
from headrace.domain.tensors import NO_PARAMETERS
from headrace.ports.inference import InferenceService
from headrace.telemetry.trace_context import RequestIds
from headrace.transport.access import ANY, GuardedRoute, caller_of
from headrace.transport.call_headers import read_call
from headrace.transport.dialect import INTERNAL
from headrace.transport.error_headers import error_headers
from headrace.transport.held_bodies import HeldBodies
from headrace.transport.http.host import AsgiMessage, AsgiReceive, AsgiSend
from headrace.transport.in_time import in_time
from headrace.transport.limit_headers import limit_headers
from headrace.transport.openai.errors import OPENAI
from headrace.transport.openai.event_stream import DONE, event
from headrace.transport.openai.payload import PATHS, OpenAiPayload, read
from headrace.transport.openai.refusal import Refusal
from headrace.transport.openai.reply import OpenAiReply
from headrace.transport.openai.requests import require_plain
from headrace.transport.told import Told

_logger = logging.getLogger(__name__)

_JSON: Final = "application/json"
#: A proxy that gathers an answer before it passes it on would make a stream pointless.
_STREAM: Final = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}

_Headers: TypeAlias = dict[str, str]


class _Asked:
    """One request, and until when it may take, which the gateway says."""

    def __init__(self, payload: OpenAiPayload, call: Call, told: Told) -> None:
        self.call = call
        self.told = told
        self.streams = payload.stream
        self.deadline = math.inf
        self.request = InferRequest(payload.model, "", payload, unpack=self._unpack)

    async def _unpack(self, deadline_of: DeadlineOf) -> None:
        self.deadline = deadline_of(NO_PARAMETERS)


class InferenceWire:
    """Turns requests of OpenAI's API into calls of an InferenceService.

    Bodies of all requests under way hold `max_buffered_bytes` at most.
    """

    def __init__(
        self,
        service: InferenceService,
        *,
        max_body_bytes: int,
        max_buffered_bytes: int,
        clock: Callable[[], float],
        ids: RequestIds,
    ) -> None:
        self._service = service
        self._bodies = HeldBodies(
            max_body_bytes=max_body_bytes, max_buffered_bytes=max_buffered_bytes
        )
        self._clock = clock
        self._ids = ids

    def routes(self) -> list[GuardedRoute]:
        """All routes. Which models a caller may run, the gateway knows: the body names them."""
        return [
            GuardedRoute(path, {"POST": (ANY, partial(self._ask, path))}, by_gateway=True)
            for path in sorted(PATHS)
        ]

    async def _ask(self, path: str, request: Request) -> Response:
        require_plain(request)
        return _Answer(partial(self._answer, path, request))

    async def _answer(self, path: str, request: Request, send: AsgiSend) -> None:
        try:
            async with self._asked(path, request) as asked:
                if asked.streams:
                    await self._stream(asked, send)
                else:
                    await self._whole(asked, send)
        except Refusal as error:
            await _refuse(error, _id_of(request), send)

    @asynccontextmanager
    async def _asked(self, path: str, request: Request) -> AsyncIterator[_Asked]:
        told = request.scope["headrace.told"] = Told()
        async with self._bodies.read(request) as body:
            call = read_call(
                dict(request.scope["headers"]),
                self._ids,
                received=self._clock(),
                request_id=_id_of(request),
                principal=caller_of(request.scope),
                address=request.scope.get("headrace.address", ""),
            )
            if call.trace is not None:
                told.trace_id = call.trace.trace_id
            payload = read(path, body)
            del body
            told.model = payload.model
            yield _Asked(payload, call, told)

    async def _whole(self, asked: _Asked, send: AsgiSend) -> None:
        response = await self._service.infer(asked.request, asked.call)
        model_s, total_s = response.run_s, self._clock() - asked.call.received
        platform_s = max(total_s - model_s, 0.0)
        headers = {
            "content-type": _JSON,
            "server-timing": f"model;dur={model_s * 1e3:.3f}, platform;dur={platform_s * 1e3:.3f}",
            **_about(response),
        }
        await _send_whole(send, 200, headers, _body(response))

    async def _stream(self, asked: _Asked, send: AsgiSend) -> None:
        begun, last = False, event(DONE)
        async with aclosing(self._service.stream(asked.request, asked.call)) as responses:
            try:
                async for response in responses:
                    part = event(_body(response))
                    if not begun:
                        begun = True
                        await _begin(send, 200, {**_STREAM, **_about(response)})
                    try:
                        async with in_time(asked.deadline, self._clock):
                            await send(_part(part))
                    except DeadlineExceeded as error:  # nobody reads
                        await responses.athrow(error)  # which raises it: all count it as it is
            except HeadraceError as error:
                if not begun:
                    raise
                last = self._broken(asked, error)
            except Exception:
                if not begun:
                    raise
                told = {"request_id": asked.call.request_id}
                _logger.exception("a stream broke off", extra=told)
                last = self._broken(asked, INTERNAL)
        if not begun:
            await _begin(send, 200, _STREAM)
        # the last piece waits for no reader, and the request holds nothing any more
        await send({"type": "http.response.body", "body": last, "more_body": False})

    def _broken(self, asked: _Asked, error: HeadraceError) -> bytes:
        asked.told.code = error.code
        return event(OPENAI.body(error, asked.call.request_id))


class _Answer(Response):
    """An answer that is written by the one who makes it."""

    def __init__(self, write: Callable[[AsgiSend], Awaitable[None]]) -> None:
        super().__init__()
        self._write = write

    async def __call__(self, scope: AsgiMessage, receive: AsgiReceive, send: AsgiSend) -> None:
        del scope, receive
        await self._write(send)


def _body(response: InferResponse) -> bytes:
    """What the endpoint said. Raises Unsupported where what answered has another form."""
    reply = response.reply
    if not isinstance(reply, OpenAiReply):
        raise Unsupported(f"model '{response.model}' does not answer by OpenAI's API")
    return reply.body


def _about(response: InferResponse) -> _Headers:
    """What a success tells beside its body."""
    headers = dict(limit_headers(response.standings))
    if response.target:
        headers["x-headrace-target"] = response.target.encode("ascii", "replace").decode()
    return headers


async def _refuse(error: Refusal, request_id: str, send: AsgiSend) -> None:
    """Pass on what an endpoint said of the request."""
    headers = {"content-type": _JSON, **dict(error_headers(error, request_id))}
    body = error.body or OPENAI.body(error, request_id)
    await _send_whole(send, error.status, headers, body)


async def _send_whole(send: AsgiSend, status: int, headers: _Headers, body: bytes) -> None:
    await _begin(send, status, {**headers, "content-length": str(len(body))})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _begin(send: AsgiSend, status: int, headers: _Headers) -> None:
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})


def _part(body: bytes) -> AsgiMessage:
    return {"type": "http.response.body", "body": body, "more_body": True}


def _id_of(request: Request) -> str:
    request_id: str = request.scope["headrace.request_id"]
    return request_id
