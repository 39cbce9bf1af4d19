"""Triton's generate extension: `POST /v2/models/{model}[/versions/{version}]/generate[_stream]`.

`generate` answers with one response, `generate_stream` with a server-sent event for each. What a
client is told before the first response is an error like any other, with its status; after it the
status is sent, and an error is the last event.
Source: Triton `docs/protocol/extension_generate.md`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Final, TypeAlias

from starlette.requests import Request
from starlette.responses import Response

from headrace.domain.calls import Call
from headrace.domain.errors import (
    DeadlineExceeded,
    HeadraceError,
    InvalidRequest,
)
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.names import require_name
from headrace.ports.inference import InferenceService, Responses
from headrace.ports.model_control import ModelControl
from headrace.telemetry.trace_context import RequestIds
from headrace.transport.access import RUN_MODEL, GuardedRoute, caller_of
from headrace.transport.call_headers import read_call
from headrace.transport.dialect import INTERNAL
from headrace.transport.held_bodies import HeldBodies
from headrace.transport.http.host import AsgiMessage, AsgiReceive, AsgiSend
from headrace.transport.in_time import in_time
from headrace.transport.limit_headers import limit_headers
from headrace.transport.oip_rest.generate_payload import GeneratePayload
from headrace.transport.oip_rest.generate_response import error_json, event, to_json
from headrace.transport.oip_rest.learnt_inputs import LearntInputs
from headrace.transport.oip_rest.server_settings import RequestTimelines
from headrace.transport.told import Told

_logger = logging.getLogger(__name__)

_OTHER_NUMBER: Final = (
    "generate expects model to produce exactly 1 response, use generate stream for model that "
    "generates various number of responses"
)
#: A proxy that gathers an answer before it passes it on would make a stream pointless.
_STREAM: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"x-accel-buffering", b"no"),
)

#: What is answered, to what, and what the access log is to know of it.
_Asked: TypeAlias = tuple[Responses, Call, GeneratePayload, Told]
_Headers: TypeAlias = list[tuple[bytes, bytes]]


class GenerateWire:
    """Turns generate requests into streams of an InferenceService, for an ASGI application.

    Bodies of all requests under way hold `max_buffered_bytes` at most.
    """

    def __init__(
        self,
        service: InferenceService,
        models: ModelControl,
        *,
        max_body_bytes: int,
        max_buffered_bytes: int,
        clock: Callable[[], float],
        ids: RequestIds,
        timelines: RequestTimelines,
    ) -> None:
        self._service = service
        self._learnt = LearntInputs(models, clock=clock)
        self._max_body_bytes = max_body_bytes
        self._bodies = HeldBodies(
            max_body_bytes=max_body_bytes, max_buffered_bytes=max_buffered_bytes
        )
        self._clock = clock
        self._ids = ids
        self._timelines = timelines

    def routes(self) -> list[GuardedRoute]:
        """Both routes, with a version and without."""
        model = "/v2/models/{model}"
        return [
            GuardedRoute(path, {"POST": (RUN_MODEL, endpoint)}, by_gateway=True)
            for prefix in (model, f"{model}/versions/{{version}}")
            for path, endpoint in (
                (f"{prefix}/generate", self._generate),
                (f"{prefix}/generate_stream", self._generate_stream),
            )
        ]

    async def _generate(self, request: Request) -> Response:
        async with self._asked(request) as (responses, call, _, told):
            found: InferResponse | None = None
            document = b""
            async for response in responses:
                text = to_json(response)
                if text is None:
                    continue
                if found is not None:
                    raise _other_number(found)
                found, document = response, text
                told.version = response.version
        if found is None:
            raise _other_number(None)
        model_s, total_s = found.run_s, self._clock() - call.received
        platform_s = max(total_s - model_s, 0.0)
        timing = f"model;dur={model_s * 1e3:.3f}, platform;dur={platform_s * 1e3:.3f}"
        headers = {name.decode(): value.decode() for name, value in _about(found)}
        headers["server-timing"] = timing
        return Response(document, headers=headers, media_type="application/json")

    async def _generate_stream(self, request: Request) -> Response:
        return _Streamed(lambda send: self._stream(request, send))

    async def _stream(self, request: Request, send: AsgiSend) -> None:
        head, last = _Head(send), b""
        async with self._asked(request) as (responses, _, payload, told):
            try:
                async for response in responses:
                    told.version = response.version
                    document = to_json(response)
                    await head.begin(response)
                    if document is None:
                        continue
                    try:
                        async with in_time(payload.deadline, self._clock):
                            await send(_part(event(document)))
                    except DeadlineExceeded as error:  # nobody reads
                        await responses.athrow(error)  # which raises it: all count it as what it is
            except HeadraceError as error:
                if not head.sent:
                    raise
                told.code = error.code
                last = event(error_json(error))
            except Exception:
                if not head.sent:
                    raise
                _logger.exception("a stream broke off", extra={"request_id": _id_of(request)})
                told.code = INTERNAL.code
                last = event(error_json(INTERNAL))
        await head.begin(None)
        # the last piece waits for no reader, and the request holds nothing any more
        await send({"type": "http.response.body", "body": last, "more_body": False})

    @asynccontextmanager
    async def _asked(self, request: Request) -> AsyncIterator[_Asked]:
        """What the model answers to a request; it is told to stop where nobody reads on."""
        parameters = request.path_params
        told = request.scope["headrace.told"] = Told()
        model = require_name("model", parameters["model"])
        version = parameters.get("version", "")
        if "version" in parameters:
            require_name("version", version)
        told.model, told.version = model, version
        begun_ns = time.time_ns() if self._timelines.active else 0
        async with self._bodies.read(request) as body:
            headers = dict(request.scope["headers"])
            principal = caller_of(request.scope)
            call = read_call(
                headers,
                self._ids,
                received=self._clock(),
                request_id=_id_of(request),
                principal=principal,
                address=request.scope.get("headrace.address", ""),
            )
            if call.trace is not None:
                told.trace_id = call.trace.trace_id
            payload = GeneratePayload(
                body,
                coding=headers.get(b"content-encoding", b""),
                max_body_bytes=self._max_body_bytes,
                asked=(principal.tenant, model, version),
                learnt=self._learnt,
            )
            del body  # the payload lets it go
            asked = InferRequest(model, version, payload, unpack=payload.unpack)
            async with aclosing(self._service.stream(asked, call)) as responses:
                yield responses, call, payload, told
        if begun_ns and not told.code:
            self._timelines.record(model, told.version, call.request_id, begun_ns)


class _Head:
    """The head of a stream's answer, which goes out with its first response."""

    def __init__(self, send: AsgiSend) -> None:
        self.sent = False
        self._send = send

    async def begin(self, first: InferResponse | None) -> None:
        """Begin, where that was not done yet. None: there is no response at all."""
        if not self.sent:
            self.sent = True
            headers = [*_STREAM, *(() if first is None else _about(first))]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})


class _Streamed(Response):
    """An answer that is written by the one who makes it."""

    def __init__(self, write: Callable[[AsgiSend], Awaitable[None]]) -> None:
        super().__init__()
        self._write = write

    async def __call__(self, scope: AsgiMessage, receive: AsgiReceive, send: AsgiSend) -> None:
        del scope, receive
        await self._write(send)


def _other_number(first: InferResponse | None) -> InvalidRequest:
    error = InvalidRequest(_OTHER_NUMBER)
    error.standings = () if first is None else first.standings
    return error


def _about(response: InferResponse) -> _Headers:
    """What a success tells beside its body."""
    headers = [(n.encode(), v.encode()) for n, v in limit_headers(response.standings)]
    if response.target:
        headers.append((b"x-headrace-target", response.target.encode("ascii", "replace")))
    return headers


def _part(body: bytes) -> AsgiMessage:
    return {"type": "http.response.body", "body": body, "more_body": True}


def _id_of(request: Request) -> str:
    request_id: str = request.scope["headrace.request_id"]
    return request_id
