"""An endpoint that speaks the Open Inference Protocol over REST.

Requests of REST clients go out as they came, and answers come back the same way: neither is
decoded here. What came over another wire is written anew, with binary tensors.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Final

from headrace.domain.calls import Call
from headrace.domain.catalog import Endpoint
from headrace.domain.errors import HeadraceError, PayloadTooLarge, Unsupported, why
from headrace.domain.inference import InferRequest, InferResponse
from headrace.ports.inference import Responses
from headrace.ports.remote_models import RemoteModels
from headrace.ports.upstream import Site
from headrace.transport.hops import HEADER, hop
from headrace.transport.http.client.exchange import Answer, broken, never
from headrace.transport.http.client.pool import ClientPool
from headrace.transport.oip_rest.compression import compress, decompress
from headrace.transport.oip_rest.locator import Locator
from headrace.transport.oip_rest.payload import RestPayload
from headrace.transport.oip_rest.refusal import refusal
from headrace.transport.oip_rest.remote_models import RestModels
from headrace.transport.oip_rest.reply import read
from headrace.transport.oip_rest.request import encode
from headrace.transport.oip_rest.timeout import with_timeout
from headrace.transport.triton_words import DECOUPLED

_PREFIXES_KEPT: Final = 4096
_OK: Final = 200
_JSON: Final = b"content-type: application/json\r\n"
_BINARY: Final = (
    b"content-type: application/octet-stream\r\ninference-header-content-length: %d\r\n"
)
_LINES: Final = b"%bcontent-length: %d\r\nx-request-id: %b\r\n"
_HOP: Final = HEADER.encode() + b": %d\r\n\r\n"
_FIRST_HOP: Final = _HOP % 1
_TIMED_LINES: Final = _LINES + b"request-timeout: %.3f\r\n"
_CODED: Final = b"content-encoding: %b\r\n"
_COMPRESS_FROM_BYTES: Final = 1024  # below it headers and processor time cost more than is saved
_HERE_BELOW_BYTES: Final = 4096  # coding of larger bodies leaves the event loop
_NO_STREAM: Final = (
    "; over REST this endpoint answers once: give its gRPC address, too (`grpc_url`), for streams"
)


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
        self._locator = Locator(site)
        self._models = RestModels(endpoint.name, self._locator, pool=pool, wall_clock=wall_clock)
        limits = pool.limits
        self._send_timeout = limits.send_timeout
        self._coding = b"" if limits.compression == "none" else limits.compression.encode()
        self._prefixes: dict[tuple[str, str], bytes] = {}

    @property
    def connections(self) -> int:
        """See Upstream.connections."""
        return self._pool.connections

    @property
    def pending(self) -> int:
        """See Upstream.pending."""
        return self._pool.pending

    @property
    def models(self) -> RemoteModels:
        """See Upstream.models."""
        return self._models

    async def infer(self, request: InferRequest, call: Call) -> InferResponse:
        """See Upstream. `run_s` of the answer is the whole time that the endpoint took."""
        begun = self._clock()
        header_length, body = self._body(request, call.deadline, begun)
        size_bytes = len(body[0]) if len(body) == 1 else sum(map(len, body))
        coding = self._coding
        if coding:
            if size_bytes < _COMPRESS_FROM_BYTES:
                coding = b""
            else:
                body = [await _packed(list(body), coding, size_bytes)]
                size_bytes = len(body[0])
        head = self._head(
            request, call, size_bytes, begun, header_length=header_length, coding=coding
        )
        # whoever sends a row of a batch job counts how often
        may_repeat = never if call.batch else request.may_repeat
        if self._coding:
            answer = await self._pool.exchange(
                head, body, call.deadline, may_repeat=may_repeat, coded=True
            )
            await _unpack(answer, self._pool.limits.max_body_bytes)
        else:
            answer = await self._pool.exchange(head, body, call.deadline, may_repeat=may_repeat)
        if answer.status != _OK:
            raise refusal(
                answer,
                endpoint=self._name,
                model=request.model,
                version=request.version,
                wall_clock=self._wall_clock,
            )
        reply = read(answer.headers, answer.body, passable=type(request.payload) is RestPayload)
        return InferResponse(
            request.model,
            reply.version or request.version,
            [],
            run_s=self._clock() - begun,
            reply=reply,
        )

    async def stream(self, request: InferRequest, call: Call) -> Responses:
        """See Upstream.stream: one answer, as of `infer`; REST's inference has no more."""
        try:
            response = await self.infer(request, call)
        except Unsupported as error:
            if error.message.endswith(DECOUPLED):
                raise Unsupported(error.message + _NO_STREAM) from error
            raise
        yield response

    async def unready(self, model: str, version: str, deadline: float) -> str:
        """See Upstream.unready."""
        of = self._locator
        target = f"{of.model(model, version)}/ready" if model else f"{of.root}/health/ready"
        head = f"GET {target} HTTP/1.1\r\n{of.lines}\r\n".encode("ascii")
        try:
            answer = await self._pool.exchange(head, (), deadline)
        except HeadraceError as error:
            return why(error)
        return "" if answer.status == _OK else f"it answered with status {answer.status}"

    async def close(self) -> None:
        """See Upstream.close."""
        await self._pool.close()

    def _body(
        self, request: InferRequest, deadline: float, now: float
    ) -> tuple[int | None, Sequence[bytes | memoryview]]:
        """The length of the JSON, None where all is JSON, and the parts of what goes out."""
        payload = request.payload
        timed = self._send_timeout and deadline != math.inf
        left_us = max(int((deadline - now) * 1e6), 1) if timed else 0
        if type(payload) is not RestPayload:
            return encode(request.content, left_us)
        if timed:
            return with_timeout(payload, left_us)
        header_length = payload.header_length
        if header_length is not None:
            payload.text()  # refuses a length beyond the body
        received = payload.received
        return header_length, received if isinstance(received, list) else (received,)

    def _prefix(self, model: str, version: str) -> bytes:
        """The lines that all JSON requests for a version have."""
        lines = (
            f"POST {self._locator.model(model, version)}/infer HTTP/1.1\r\n{self._locator.lines}"
        )
        if self._coding:
            lines += "accept-encoding: gzip, deflate\r\n"
        prefix = lines.encode("ascii") + _JSON
        if len(self._prefixes) >= _PREFIXES_KEPT:
            self._prefixes.clear()
        self._prefixes[model, version] = prefix
        return prefix

    def _head(
        self,
        request: InferRequest,
        call: Call,
        size_bytes: int,
        now: float,
        *,
        header_length: int | None,
        coding: bytes,
    ) -> bytes:
        model, version = request.model, request.version
        prefix = self._prefixes.get((model, version)) or self._prefix(model, version)
        if header_length is not None:
            prefix = prefix.removesuffix(_JSON) + _BINARY % header_length
        if coding:
            prefix += _CODED % coding
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


async def _packed(body: list[bytes | memoryview], coding: bytes, size_bytes: int) -> bytes:
    if size_bytes <= _HERE_BELOW_BYTES:
        return compress(body, coding)
    return await asyncio.get_running_loop().run_in_executor(None, compress, body, coding)


async def _unpack(answer: Answer, limit: int) -> None:
    """Undo the answer's Content-Encoding.

    Raises:
        EndpointFailed: it is not of that coding, or larger than `limit` bytes.
    """
    coding = answer.headers.get(b"content-encoding")
    if coding is None:
        return
    body = b"".join(answer.body)
    try:
        if len(body) <= _HERE_BELOW_BYTES // 4:
            body = decompress(body, coding, limit)
        else:
            loop = asyncio.get_running_loop()
            body = await loop.run_in_executor(None, decompress, body, coding, limit)
    except PayloadTooLarge as error:
        msg = f"the endpoint's answer is over the limit of {limit} bytes"
        raise broken(msg, error.message) from error
    except HeadraceError as error:
        raise broken("the endpoint's answer is not well-formed", error.message) from error
    answer.body = [body]
