"""The hot route: `POST /v2/models/{model}[/versions/{version}]/infer`."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NoReturn
from urllib.parse import unquote_to_bytes

from headrace.domain.calls import UNKNOWN, Call
from headrace.domain.errors import HeadraceError, InvalidRequest
from headrace.domain.inference import DeadlineOf, InferRequest, InferResponse
from headrace.domain.names import require_name
from headrace.ports.authentication import Authenticate
from headrace.ports.inference import InferenceService
from headrace.telemetry.access_log import Access, AccessLog
from headrace.telemetry.api_requests import OK, ApiRequests
from headrace.telemetry.trace_context import RequestIds
from headrace.transport.call_headers import read_call, read_request_id
from headrace.transport.client_address import ClientAddress
from headrace.transport.dialect import INTERNAL
from headrace.transport.http.messages import Handler, HttpRequest, HttpResponse
from headrace.transport.limit_headers import limit_lines
from headrace.transport.oip_rest.compression import choose, compress, decompressed
from headrace.transport.oip_rest.errors import error_response
from headrace.transport.oip_rest.payload import RestPayload
from headrace.transport.oip_rest.reply import RestReply
from headrace.transport.oip_rest.response import encode
from headrace.transport.oip_rest.server_settings import RequestTimelines
from headrace.transport.status import CLIENT_CLOSED, http_status

_logger = logging.getLogger(__name__)

ROUTE: Final = "/v2/models/{model}/infer"
_TARGET: Final = re.compile(
    rb"(?i:https?://[^/?]*)?"  # in absolute form, as sent to a proxy
    rb"/v2/models/([^/?]+)(?:/versions/([^/?]+))?/infer(?:\?.*)?"
)
_TARGETS_KEPT: Final = 4096
_TARGET_BYTES_KEPT: Final = 512
_COMPRESS_FROM_BYTES: Final = 1024  # below it headers and processor time cost more than is saved
_HERE_BELOW_BYTES: Final = 4096  # coding of larger bodies leaves the event loop
_UNSENT: Final = HttpResponse(500, b"")
# of the whole time, how much the model ran, and how much the platform added to that
_LINES: Final = b"%b%bserver-timing: model;dur=%.3f, platform;dur=%.3f\r\nx-request-id: %b\r\n"


class InferWire:
    """Turns HTTP requests into calls of an InferenceService, and its answers into HTTP."""

    def __init__(
        self,
        service: InferenceService,
        *,
        max_body_bytes: int,
        clock: Callable[[], float],
        addresses: ClientAddress,
        authenticate: Authenticate,
        ids: RequestIds,
        access_log: AccessLog,
        api_requests: ApiRequests,
        timelines: RequestTimelines,
    ) -> None:
        self._service = service
        self._addresses = addresses
        self._api_requests = api_requests
        self._max_body_bytes = max_body_bytes
        self._clock = clock
        self._authenticate = authenticate
        self._ids = ids
        self._access_log = access_log
        self._timelines = timelines
        self._handlers: dict[bytes, Handler] = {}

    def handler(self, target: bytes) -> Handler | None:
        """The handler of a request target; None where it is not this route."""
        found = self._handlers.get(target)
        if found is None and (match := _TARGET.fullmatch(target)) is not None:
            model, version = (_unquoted(part or b"") for part in match.groups())
            found = partial(self._answer, model, version, _odd_name(model, version))
            if len(target) <= _TARGET_BYTES_KEPT:  # clients name targets: bound what is kept
                if len(self._handlers) >= _TARGETS_KEPT:
                    self._handlers.clear()
                self._handlers[target] = found
        return found

    async def _answer(
        self, model: str, version: str, odd_name: str, http: HttpRequest
    ) -> HttpResponse:
        received = self._clock()
        headers = http.headers
        payload, bytes_in = _take(http)
        request_id = read_request_id(headers, self._ids)
        begun_ns = time.time_ns() if self._timelines.active else 0
        code, status, trace_id = "internal", 500, ""
        principal, address = UNKNOWN, ""
        answer = _UNSENT
        try:
            address = self._addresses.of(headers, http.peer)
            principal = self._authenticate(headers, address)
            if odd_name:
                _refuse(odd_name)
            if b"traceparent" in headers or b"request-timeout" in headers or b"priority" in headers:
                call = read_call(
                    headers,
                    self._ids,
                    received=received,
                    request_id=request_id,
                    principal=principal,
                    address=address,
                )
                if call.trace is not None:
                    trace_id = call.trace.trace_id
            else:
                call = Call(request_id, principal, received, address=address, headers=headers)
            if b"inference-header-content-length" in headers:
                payload.header_length = _header_length(headers)
            request = InferRequest(model, version, payload)
            if b"content-encoding" in headers:
                request.unpack = partial(self._unpack, payload, headers[b"content-encoding"])
            response = await self._service.infer(request, call)
            lines, body = _form(response, request)
            version = response.version
            if b"accept-encoding" in headers:
                lines, body = await self._compressed(headers[b"accept-encoding"], lines, body)
            model_s, total_s = response.run_s, self._clock() - received
            lines = _LINES % (
                lines,
                limit_lines(response.standings) if response.standings else b"",
                model_s * 1e3,
                max(total_s - model_s, 0.0) * 1e3,
                request_id.encode(),
            )
            answer = HttpResponse(200, lines, body)
            code, status = OK, 200
            if begun_ns:
                self._timelines.record(model, version, request_id, begun_ns)
        except HeadraceError as error:
            code, status = error.code, http_status(error)
            answer = error_response(error, request_id)
        except asyncio.CancelledError:
            code, status = "cancelled", CLIENT_CLOSED
            raise
        except Exception:  # the request's root, where its id is known
            _logger.exception("a handler failed", extra={"request_id": request_id})
            answer = error_response(INTERNAL, request_id)
        finally:
            self._api_requests.count(ROUTE, principal.kind, code)
            if self._access_log.wants(status):
                self._access_log.add(
                    Access(
                        ended_s=time.time(),
                        duration_s=self._clock() - received,
                        request_id=request_id,
                        method=http.method,
                        route=ROUTE,
                        status=status,
                        bytes_in=bytes_in,
                        bytes_out=sum(map(len, answer.body)),
                        code="" if code == OK else code,
                        model=model,
                        version=version,
                        principal=principal.name,
                        caller=principal.kind,
                        client=address,
                        trace_id=trace_id,
                    )
                )
        return answer

    async def _unpack(self, payload: RestPayload, coding: bytes, _: DeadlineOf) -> None:
        payload.received = await decompressed(payload.body, coding, self._max_body_bytes)

    async def _compressed(
        self, accepted: bytes, lines: bytes, body: Sequence[bytes | memoryview]
    ) -> tuple[bytes, Sequence[bytes | memoryview]]:
        size = sum(map(len, body))
        coding = choose(accepted) if size >= _COMPRESS_FROM_BYTES else None
        if coding is None:
            return lines, body
        if size <= _HERE_BELOW_BYTES:
            packed = compress(list(body), coding)
        else:
            loop = asyncio.get_running_loop()
            packed = await loop.run_in_executor(None, compress, list(body), coding)
        return b"%bcontent-encoding: %b\r\nvary: accept-encoding\r\n" % (lines, coding), [packed]


def _form(
    response: InferResponse, request: InferRequest
) -> tuple[bytes, Sequence[bytes | memoryview]]:
    """The header lines and the body of an answer: an endpoint's own, where it has this form."""
    reply = response.reply
    body: Sequence[bytes | memoryview]
    if type(reply) is RestReply and reply.passable:
        lines, body = reply.lines, reply.parts
    else:
        response.unpack()
        lines, body = encode(response, request.content)
    if response.target:
        target = response.target.encode("ascii", "replace")
        lines = b"%bx-headrace-target: %b\r\n" % (lines, target)
    return lines, body


def _take(http: HttpRequest) -> tuple[RestPayload, int]:
    """The body, and its size in bytes; of parts that will be joined nobody else is to hold any."""
    body = http.body
    if isinstance(body, bytes):
        return RestPayload(body), len(body)
    http.body = b""
    return RestPayload(body), sum(len(part) for part in body)


def _refuse(message: str) -> NoReturn:
    raise InvalidRequest(message)


def _unquoted(part: bytes) -> str:
    return unquote_to_bytes(part).decode("utf-8", "replace")


def _odd_name(model: str, version: str) -> str:
    """What is wrong with the names of a target; "" where nothing is."""
    try:
        require_name("model", model)
        if version:
            require_name("version", version)
    except InvalidRequest as error:
        return error.message
    return ""


def _header_length(headers: dict[bytes, bytes]) -> int:
    value = headers[b"inference-header-content-length"]
    if not value.isdigit() or len(value) > 18:  # noqa: PLR2004 - more is beyond any body
        msg = "Inference-Header-Content-Length must be a whole number of bytes within the body"
        raise InvalidRequest(msg)
    return int(value)
