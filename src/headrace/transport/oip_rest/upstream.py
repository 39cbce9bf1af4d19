"""An endpoint that speaks the Open Inference Protocol over REST.

Requests of REST clients go out as they came, and answers come back the same way: neither is
decoded here. What came over another wire is written anew, with binary tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final
from urllib.parse import quote

import msgspec

from headrace.domain.calls import Call
from headrace.domain.catalog import Endpoint
from headrace.domain.errors import (
    EndpointBusy,
    EndpointFailed,
    HeadraceError,
    InvalidRequest,
    PayloadTooLarge,
    UnknownModel,
    Unsupported,
    UnsupportedMediaType,
    why,
)
from headrace.domain.inference import InferRequest, InferResponse
from headrace.ports.upstream import Site
from headrace.transport.hops import HEADER, hop
from headrace.transport.http.client.exchange import Answer
from headrace.transport.http.client.pool import ClientPool
from headrace.transport.oip_rest.payload import RestPayload
from headrace.transport.oip_rest.reply import read
from headrace.transport.oip_rest.request import encode

_PREFIXES_KEPT: Final = 4096
_DEFAULT_PORTS: Final = {False: 80, True: 443}
_MAX_WAIT_S: Final = 86_400.0  # of a Retry-After; more tells nothing
_MAX_DIGITS: Final = 9
_ERROR_BYTES: Final = 64 * 1024  # of a body that is looked into for a sentence
_SENTENCE_CHARS: Final = 1024
_OK: Final = 200
_JSON: Final = b"content-type: application/json\r\n"
_BINARY: Final = (
    b"content-type: application/octet-stream\r\ninference-header-content-length: %d\r\n"
)
_LINES: Final = b"%bcontent-length: %d\r\nx-request-id: %b\r\n"
_HOP: Final = HEADER.encode() + b": %d\r\n\r\n"
_FIRST_HOP: Final = _HOP % 1
_TIMED_LINES: Final = _LINES + b"request-timeout: %.3f\r\n"
#: Of the statuses 4xx, those that are about this platform or the endpoint's own set-up.
_OURS: Final = frozenset({401, 402, 403, 405, 407, 408, 421, 425, 426})
_CLIENTS: Final[Mapping[int, type[HeadraceError]]] = {
    404: UnknownModel,
    413: PayloadTooLarge,
    415: UnsupportedMediaType,
    501: Unsupported,
}


class _Error(msgspec.Struct, gc=False):
    error: str = ""


_decode_error: Final = msgspec.json.Decoder(_Error).decode


class RestUpstream:
    """See ports.upstream.Upstream. `clock` is monotonic, `wall_clock` seconds since 1970."""

    def __init__(
        self,
        endpoint: Endpoint,
        site: Site,
        *,
        pool: ClientPool,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._name = endpoint.name
        self._pool = pool
        self._clock = clock
        self._wall_clock = wall_clock
        self._path = quote(site.path, safe="/%:@!$&'()*+,;=~")
        host = f"[{site.host}]" if ":" in site.host and not site.host.startswith("[") else site.host
        port = "" if site.port == _DEFAULT_PORTS[site.secure] else f":{site.port}"
        self._host_lines = f"host: {host}{port}\r\nuser-agent: headrace\r\n"
        self._prefixes: dict[tuple[str, str], bytes] = {}

    @property
    def connections(self) -> int:
        """See Upstream.connections."""
        return self._pool.connections

    @property
    def pending(self) -> int:
        """See Upstream.pending."""
        return self._pool.pending

    async def infer(self, request: InferRequest, call: Call) -> InferResponse:
        """See Upstream. `run_s` of the answer is the whole time that the endpoint took."""
        payload = request.payload
        body: Sequence[bytes | memoryview]
        passable = type(payload) is RestPayload
        if type(payload) is RestPayload:
            header_length = payload.header_length
            if header_length is not None:
                payload.text()  # refuses a length beyond the body
            received = payload.received
            body = received if isinstance(received, list) else (received,)
        else:
            header_length, body = encode(request.content)
        size_bytes = len(body[0]) if len(body) == 1 else sum(map(len, body))
        begun = self._clock()
        head = self._head(request, call, header_length, size_bytes, begun)
        answer = await self._pool.exchange(head, body, call.deadline, may_repeat=request.may_repeat)
        if answer.status != _OK:
            raise self._error(answer, request)
        reply = read(answer.headers, answer.body, passable=passable)
        return InferResponse(
            request.model,
            reply.version or request.version,
            [],
            run_s=self._clock() - begun,
            reply=reply,
        )

    async def unready(self, model: str, version: str, deadline: float) -> str:
        """See Upstream.unready."""
        target = f"{self._of(model, version)}/ready" if model else f"{self._path}/v2/health/ready"
        head = f"GET {target} HTTP/1.1\r\n{self._host_lines}\r\n".encode("ascii")
        try:
            answer = await self._pool.exchange(head, (), deadline)
        except HeadraceError as error:
            return why(error)
        return "" if answer.status == _OK else f"it answered with status {answer.status}"

    async def close(self) -> None:
        """See Upstream.close."""
        await self._pool.close()

    def _of(self, model: str, version: str) -> str:
        """The path of a model or a version."""
        path = f"{self._path}/v2/models/{quote(model, safe='')}"
        return f"{path}/versions/{quote(version, safe='')}" if version else path

    def _prefix(self, model: str, version: str) -> bytes:
        """The lines that all JSON requests for a version have."""
        line = f"POST {self._of(model, version)}/infer HTTP/1.1\r\n"
        prefix = (line + self._host_lines).encode("ascii") + _JSON
        if len(self._prefixes) >= _PREFIXES_KEPT:
            self._prefixes.clear()
        self._prefixes[model, version] = prefix
        return prefix

    def _head(
        self,
        request: InferRequest,
        call: Call,
        header_length: int | None,
        size_bytes: int,
        now: float,
    ) -> bytes:
        model, version = request.model, request.version
        prefix = self._prefixes.get((model, version)) or self._prefix(model, version)
        if header_length is not None:
            prefix = prefix.removesuffix(_JSON) + _BINARY % header_length
        request_id = call.request_id.encode("ascii", "replace")
        if call.deadline == math.inf:
            head = _LINES % (prefix, size_bytes, request_id)
        else:  # so that an endpoint that can, gives up when we do
            remaining_s = max(call.deadline - now, 0.0)
            head = _TIMED_LINES % (prefix, size_bytes, request_id, remaining_s)
        trace = call.trace
        if trace is not None:
            head += b"traceparent: %b\r\n" % trace.traceparent.encode("ascii", "replace")
            if trace.tracestate:
                head += b"tracestate: %b\r\n" % trace.tracestate.encode("ascii", "replace")
        number = hop(call)
        return head + (_FIRST_HOP if number == 1 else _HOP % number)

    def _error(self, answer: Answer, request: InferRequest) -> HeadraceError:
        status = answer.status
        said = _sentence(answer.body)
        wait_s = _wait_s(answer.headers, self._wall_clock)
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            return EndpointBusy("the endpoint has no room at this moment", retry_after_s=wait_s)
        kind = _CLIENTS.get(status)
        if kind is UnknownModel and not said:
            version = f" version '{request.version}'" if request.version else ""
            said = f"the endpoint has no model '{request.model}'{version}"
        if kind is None and 400 <= status < 500 and status not in _OURS:  # noqa: PLR2004
            kind = InvalidRequest
        if kind is not None:
            return kind(said or f"the endpoint refused the request with status {status}")
        error = EndpointFailed("the endpoint failed to answer the request", retry_after_s=wait_s)
        error.reason = f"'{self._name}' answered with status {status}: {said}"
        return error


def _sentence(parts: Sequence[bytes | memoryview]) -> str:
    """What an error's body says, on one line of printable characters; "" where it says nothing."""
    if sum(map(len, parts)) > _ERROR_BYTES:
        return ""
    try:
        text = _decode_error(b"".join(parts)).error[:_SENTENCE_CHARS]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return "".join([char if char.isprintable() else " " for char in text]).strip()


def _wait_s(headers: Mapping[bytes, bytes], wall_clock: Callable[[], float]) -> float | None:
    """Retry-After in seconds, given as such or as a date; None where it is neither."""
    value = headers.get(b"retry-after")
    if value is None:
        return None
    if value.isdigit():
        return float(value) if len(value) <= _MAX_DIGITS else None
    try:
        date = parsedate_to_datetime(value.decode("ascii"))
    except (ValueError, UnicodeDecodeError):
        return None
    if date.tzinfo is None:  # "-0000": of no zone that it would tell
        date = date.replace(tzinfo=UTC)
    return min(max(date.timestamp() - wall_clock(), 0.0), _MAX_WAIT_S)
