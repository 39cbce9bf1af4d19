"""An endpoint that speaks OpenAI's API: vLLM, TEI, LiteLLM and the like.

Bodies go out as they came and come back as they are; of streams, event by event.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from ssl import SSLContext
from typing import Final

from headrace.domain.calls import Call
from headrace.domain.catalog import Endpoint
from headrace.domain.errors import EndpointBusy, HeadraceError, UnknownModel, Unsupported, why
from headrace.domain.inference import InferRequest, InferResponse
from headrace.ports.inference import Responses
from headrace.ports.remote_models import RemoteModels
from headrace.ports.upstream import Site
from headrace.transport.hops import HEADER, hop
from headrace.transport.http.client.exchange import Answer, broken, never
from headrace.transport.http.client.pool import ClientPool
from headrace.transport.http.client.site_lines import site_lines, site_path
from headrace.transport.http.client.streamed import StreamedExchange
from headrace.transport.openai import reply
from headrace.transport.openai.event_stream import DONE, EventReader
from headrace.transport.openai.payload import OpenAiPayload
from headrace.transport.openai.refusal import refusal
from headrace.transport.openai.remote_models import OpenAiModels

_OK: Final = 200
_WIRE: Final = "/v1"
_EVENTS: Final = b"text/event-stream"
_REFUSAL_BYTES: Final = 1024 * 1024


class OpenAiUpstream:
    """See ports.upstream.Upstream. `clock` is monotonic, `wall_clock` seconds since 1970.

    `secret` is what the endpoint knows this platform by, "" where it asks for nothing. `tls` is
    the pool's, for streams, which have connections of their own.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        site: Site,
        *,
        pool: ClientPool,
        tls: SSLContext | None = None,
        secret: str = "",
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._name = endpoint.name
        self._site = site
        self._pool = pool
        self._tls = tls
        self._clock = clock
        self._wall_clock = wall_clock
        self._root = site_path(site).removesuffix(_WIRE)
        self._lines = site_lines(site)
        if secret:
            self._lines += f"authorization: Bearer {secret}\r\n"
        self._models = OpenAiModels(
            f"GET {self._root}/v1/models HTTP/1.1\r\n{self._lines}", pool=pool
        )
        self._streams = 0
        self._closed = False

    @property
    def connections(self) -> int:
        """See Upstream.connections."""
        return self._pool.connections + self._streams

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
        payload = _payload(request)
        if payload.stream:
            raise Unsupported(f"{payload.path} was asked to stream, where one answer is awaited")
        begun = self._clock()
        body = payload.body(request.model)
        head = self._head(payload, call, len(body), begun)
        # whoever sends a row of a batch job counts how often
        may_repeat = never if call.batch else request.may_repeat
        answer = await self._pool.exchange(head, (body,), call.deadline, may_repeat=may_repeat)
        if answer.status != _OK:
            raise self._refusal(answer, payload, request.model)
        told = reply.whole(payload.path, b"".join(answer.body))
        return InferResponse(request.model, "", [], run_s=self._clock() - begun, reply=told)

    async def stream(self, request: InferRequest, call: Call) -> Responses:
        """See Upstream.stream: one response for each event, but not for the one that ends it.

        A request that does not ask to stream has one answer, as of `infer`.
        """
        payload = _payload(request)
        if not payload.stream:
            yield await self.infer(request, call)
            return
        limits = self._pool.limits
        if self._closed:
            raise broken("the endpoint is asked no more", "its connections were closed")
        if self._streams >= limits.max_connections:
            raise EndpointBusy("the endpoint has as many streams as it may")
        body = payload.body(request.model)
        head = self._head(payload, call, len(body), self._clock())
        exchange = StreamedExchange(
            self._site, limits=limits, deadline=call.deadline, tls=self._tls
        )
        self._streams += 1
        try:
            await exchange.ask(head, body)
            if exchange.status != _OK:
                said = await exchange.rest(_REFUSAL_BYTES)
                answer = Answer(exchange.status, exchange.headers, [said])
                raise self._refusal(answer, payload, request.model)
            kind = exchange.headers.get(b"content-type", b"")
            if kind.partition(b";")[0].strip().lower() != _EVENTS:
                raise broken("the endpoint's answer is no stream of events", f"it is {kind!r}")
            events = EventReader(limit_bytes=limits.max_body_bytes)
            while piece := await exchange.piece():
                for data in events.feed(piece):
                    if data == DONE:
                        return
                    yield InferResponse(request.model, "", [], reply=reply.event(data), final=False)
            raise broken("the endpoint broke off its answer", "its stream has no [DONE]")
        finally:
            self._streams -= 1
            exchange.close()

    async def unready(self, model: str, version: str, deadline: float) -> str:
        """See Upstream.unready."""
        del version
        try:
            names = await self._models.names(deadline)
        except HeadraceError as error:
            return why(error)
        if not model or names is None or model in names:
            return ""
        return f"it does not list the model '{model}'"

    async def close(self) -> None:
        """See Upstream.close."""
        self._closed = True
        await self._pool.close()

    def _refusal(self, answer: Answer, payload: OpenAiPayload, model: str) -> HeadraceError:
        return refusal(
            answer,
            endpoint=self._name,
            path=payload.path,
            model=model,
            wall_clock=self._wall_clock,
        )

    def _head(self, payload: OpenAiPayload, call: Call, size_bytes: int, now: float) -> bytes:
        lines = (
            f"POST {self._root}{payload.path} HTTP/1.1\r\n{self._lines}"
            f"content-type: application/json\r\ncontent-length: {size_bytes}\r\n"
            f"x-request-id: {call.request_id}\r\n{HEADER}: {hop(call)}\r\n"
        )
        if call.deadline != math.inf:  # so that an endpoint that can, gives up when we do
            lines += f"request-timeout: {max(call.deadline - now, 0.0):.3f}\r\n"
        if call.trace is not None:
            lines += f"traceparent: {call.trace.traceparent}\r\n"
            if call.trace.tracestate:
                lines += f"tracestate: {call.trace.tracestate}\r\n"
        return f"{lines}\r\n".encode("ascii", "replace")


def _payload(request: InferRequest) -> OpenAiPayload:
    """What is asked. Raises Unsupported, UnknownModel."""
    payload = request.payload
    model = request.model
    if not isinstance(payload, OpenAiPayload):
        raise Unsupported(
            f"model '{model}' is at an endpoint that speaks OpenAI's API: ask it at "
            "/v1/embeddings, /v1/chat/completions or /v1/completions"
        )
    if request.version:
        raise UnknownModel(
            f"model '{model}' has no version '{request.version}' at an endpoint that speaks "
            "OpenAI's API, which knows no versions"
        )
    return payload
