"""The streaming RPC: ModelStreamInfer.

Source: Triton `grpc_service.proto`; its `docs/user_guide/decoupled_models.md` for the parameters by
which a client knows the last response, `docs/customization_guide/inference_protocols.md` for errors
that end a stream.
"""

from __future__ import annotations

import asyncio
import itertools
from asyncio import Future, TaskGroup
from contextlib import aclosing
from typing import Any, Final

from headrace.domain.errors import DeadlineExceeded, HeadraceError
from headrace.domain.inference import InferRequest, InferResponse
from headrace.ports.inference import InferenceService
from headrace.telemetry.trace_context import RequestIds
from headrace.transport.oip_grpc import schema
from headrace.transport.oip_grpc.edge import Exchange, Opened, StreamRpc
from headrace.transport.oip_grpc.infer import read_message, to_call
from headrace.transport.oip_grpc.reply import GrpcReply
from headrace.transport.oip_grpc.response import encode, varint
from headrace.transport.oip_grpc.structure import fields

#: Requests of one stream that are answered at a time; the next is read when one is done.
MAX_UNDER_WAY: Final = 64

_FINAL: Final = "triton_final_response"
_WANTS_EMPTY_FINAL: Final = "triton_enable_empty_final_response"
_WANTS_STATUS: Final = b"triton_grpc_error"  # a header: errors end the stream, as its status

_INFER_RESPONSE: Final = bytes([2 << 3 | 2])  # its number in ModelStreamInferResponse
_ID: Final = bytes([3 << 3 | 2])  # its number in ModelInferResponse
_OUTPUTS: Final = 5  # of ModelInferResponse


def _mark(*, final: bool) -> bytes:
    """The parameter alone. Of a map's entries with one key the last counts, so it is appended."""
    message = schema.ModelInferResponse()
    message.parameters[_FINAL].bool_param = final
    encoded: bytes = message.SerializeToString()
    return encoded


_MARKS: Final = {final: _mark(final=final) for final in (False, True)}


class StreamInferRpc:
    """Passes the messages of a stream to an InferenceService, and its answers back.

    Requests of a stream are answered side by side, and `max_bytes` of messages at most, or one.
    A model's responses keep their order; the answers of models that give one keep that of their
    requests; requests of one sequence follow each other.
    """

    def __init__(self, service: InferenceService, *, ids: RequestIds, max_bytes: int) -> None:
        self._service = service
        self._ids = ids
        self._max_bytes = max_bytes

    def rpcs(self) -> dict[str, StreamRpc]:
        """The RPC by its path."""
        return {f"/{schema.INFERENCE}/ModelStreamInfer": StreamRpc(self.answer)}

    async def answer(self, opened: Opened) -> None:
        """Answer the requests of one stream, until there are no more.

        Raises:
            HeadraceError: the credential is no longer good, the deadline has passed, or a request
            failed on a stream that asked to be told so.
        """
        await _Conversation(self._service, opened, self._ids, self._max_bytes).run()


class _Place:
    """The place of a request among those of its stream."""

    def __init__(self, before: Future[None] | None) -> None:
        self._before = before
        self.passed: Future[None] = asyncio.get_running_loop().create_future()

    async def turn(self) -> None:
        """Wait until nobody before this one has a claim to go first."""
        if self._before is not None:
            await self._before

    def waive(self) -> None:
        """Claim no more to go first: the answer has gone, or needs no order."""
        if self._before is None or self._before.done():
            self._pass()
        else:
            self._before.add_done_callback(self._pass)

    def _pass(self, _: Future[None] | None = None) -> None:
        if not self.passed.done():
            self.passed.set_result(None)


class _Conversation:
    """What one stream keeps while it is open."""

    def __init__(
        self, service: InferenceService, opened: Opened, ids: RequestIds, max_bytes: int
    ) -> None:
        self._service = service
        self._opened = opened
        self._stream = opened.stream
        self._ids = ids
        self._max_bytes = max_bytes
        self._strict = opened.stream.headers.get(_WANTS_STATUS, b"").lower() == b"true"
        self._bytes = 0  # of the messages under way
        self._room: Future[None] | None = None  # that the reader waits for
        self._last: Future[None] | None = None  # when everybody so far has had their turn
        self._sequences: dict[tuple[str, Any], Future[None]] = {}  # when their last request ended

    async def run(self) -> None:
        refusal: HeadraceError | None = None
        try:
            async with TaskGroup() as tasks:
                numbers = itertools.count(1)
                async for message in self._stream.messages:
                    try:
                        exchange = self._opened.begin(message)
                    except HeadraceError as error:
                        # what was let in before is answered
                        refusal = error
                        break
                    self._stream.begin()
                    self._bytes += len(message)
                    # tasks take their first step in the order in which they were made
                    tasks.create_task(self._answer(exchange, next(numbers)))
                    while self._is_full():
                        self._room = asyncio.get_running_loop().create_future()
                        await self._room
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        if refusal is not None:
            raise refusal

    def _is_full(self) -> bool:
        return self._stream.under_way >= MAX_UNDER_WAY or self._bytes >= self._max_bytes

    async def _answer(self, exchange: Exchange, number: int) -> None:
        place = _Place(self._last)
        self._last = place.passed
        message: Any = None
        try:
            with self._opened.accounted(exchange):
                message = read_message(exchange)
                await self._infer(message, exchange, place)
        except HeadraceError as error:
            # the stream's own deadline is told by its status, whoever is the first to notice
            if self._strict or (isinstance(error, DeadlineExceeded) and self._opened.is_late):
                raise
            await place.turn()
            await self._stream.send(_refusal(error, message, number))
        finally:
            place.waive()
            self._bytes -= len(exchange.request.message)
            self._stream.end()
            if self._room is not None and not self._room.done():
                self._room.set_result(None)

    async def _infer(self, message: Any, exchange: Exchange, place: _Place) -> None:
        request, call = to_call(message, exchange, self._ids)
        wants_empty = request.parameters.get(_WANTS_EMPTY_FINAL) is True
        sequence = request.parameters.get("sequence_id")
        earlier, ended = self._follow(request, sequence) if sequence else (None, None)
        try:
            if earlier is not None:
                await earlier
            last: InferResponse | None = None
            sent = 0
            async with aclosing(self._service.stream(request, call)) as responses:
                async for response in responses:
                    exchange.version = response.version
                    if last is not None:
                        await self._send(last, message, exchange)
                        sent += 1
                    # nothing follows a final one, so what lies behind is let go before it waits
                    last = response if response.final else None
                    if last is None:
                        place.waive()
                        await self._send(response, message, exchange)
                        sent += 1
        finally:
            if ended is not None:
                self._end(request, sequence, ended)
        if last is not None and (wants_empty or not _is_empty(last)):
            if not sent:
                await place.turn()
            await self._send(last, message, exchange)
        elif wants_empty:
            await self._write(_empty(message), exchange)

    def _follow(
        self, request: InferRequest, sequence: Any
    ) -> tuple[Future[None] | None, Future[None]]:
        """Line up behind the last request of a sequence: what to wait for, what to resolve."""
        key = (request.model, sequence)
        earlier = self._sequences.get(key)
        ended = self._sequences[key] = asyncio.get_running_loop().create_future()
        return earlier, ended

    def _end(self, request: InferRequest, sequence: Any, ended: Future[None]) -> None:
        if not ended.done():
            ended.set_result(None)
        if self._sequences.get((request.model, sequence)) is ended:
            del self._sequences[request.model, sequence]

    async def _send(self, response: InferResponse, message: Any, exchange: Exchange) -> None:
        reply = response.reply
        named = b""
        if isinstance(reply, GrpcReply):
            body = reply.body
            if reply.id != message.id:
                # the client tells its requests apart by it; of a field the last value counts
                own = message.id.encode()
                named = _ID + varint(len(own)) + own
        else:
            response.unpack()
            response.id = message.id
            body = encode(response)
        await self._write((body, named, _MARKS[response.final]), exchange)

    async def _write(self, parts: tuple[bytes, ...], exchange: Exchange) -> None:
        size = sum(map(len, parts))
        message = b"".join((_INFER_RESPONSE, varint(size), *parts))
        exchange.bytes_out += len(message)
        await self._stream.send(message)


def _empty(message: Any) -> tuple[bytes, ...]:
    """What tells that no response follows, where none was final."""
    named = schema.ModelInferResponse(model_name=message.model_name, id=message.id)
    return named.SerializeToString(), _MARKS[True]


def _is_empty(response: InferResponse) -> bool:
    reply = response.reply
    if isinstance(reply, GrpcReply):
        # not decoded for it: it was found to be well-formed, and its outputs come early
        return all(field != _OUTPUTS for field, _, _ in fields(reply.body, 0, len(reply.body)))
    response.unpack()
    return not response.outputs


def _refusal(error: HeadraceError, message: Any, number: int) -> bytes:
    refused = schema.ModelStreamInferResponse(error_message=error.message)
    if message is None:  # it has no id to be known by
        refused.error_message = f"message {number} of the stream: {error.message}"
    else:
        answer = refused.infer_response
        answer.model_name, answer.id = message.model_name, message.id
        answer.parameters[_FINAL].bool_param = True
    encoded: bytes = refused.SerializeToString()
    return encoded
