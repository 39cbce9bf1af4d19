"""Rows of batch files for OpenAI's own endpoints, whose bodies and answers stay as they are.

Their lines are those of all batch files, which `lines` reads and writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from headrace.domain.errors import HeadraceError
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.parameters import InvalidParam
from headrace.ports.rows import Heads, Row, RowCodec, RowHead
from headrace.transport.dialect import sentence
from headrace.transport.openai.errors import OPENAI
from headrace.transport.openai.payload import read
from headrace.transport.openai.refusal import Refusal
from headrace.transport.openai.reply import OpenAiReply

_OUTPUT: Final = (
    b'{"id":"batch_req_%b","custom_id":%b,"response":'
    b'{"status_code":%d,"request_id":"%b","body":%b},"error":%b}\n'
)


class _Line(msgspec.Struct):
    url: str
    body: msgspec.Raw


_decode: Final = msgspec.json.Decoder(_Line).decode


class OpenAiRows:
    """See RowCodec. A refused row keeps the status and the body that its endpoint answered with."""

    def __init__(self, lines: RowCodec) -> None:
        self._lines = lines

    def head(self, line: bytes | memoryview) -> RowHead:
        """See RowCodec.head."""
        return self._lines.head(line)

    def heads(self, text: bytes, url: str) -> Heads | None:
        """See RowCodec.heads."""
        return self._lines.heads(text, url)

    def row(self, line: bytes | memoryview, *, model: str, version: str) -> Row:
        """See RowCodec.row. The model is the one that the row's body names."""
        del model, version
        head = self._lines.head(line)
        if head.problem:  # planning has refused it already
            return self._lines.row(line, model="", version="")
        try:
            told = _decode(line)
            payload = read(told.url, bytes(told.body))
            if payload.stream:
                raise InvalidParam("stream", "a row has one answer: leave it out")
        except HeadraceError as error:
            return Row(head.custom_id, None, error)
        return Row(head.custom_id, InferRequest(payload.model, "", payload))

    def block(
        self, lines: bytes, start: int, *, model: str, version: str, most: int, limit_bytes: int
    ) -> None:
        """See RowCodec.block: such rows are never merged."""

    def output_line(self, row: Row, response: InferResponse, *, request_id: str) -> bytes:
        """See RowCodec.output_line."""
        reply = response.reply
        assert isinstance(reply, OpenAiReply), "no other endpoint takes such a row"  # noqa: S101
        return _line(row.custom_id, request_id, 200, reply.body, b"null")

    def output_lines(
        self, rows: Sequence[Row], response: InferResponse, *, request_id: str, first: int = 0
    ) -> list[bytes] | None:
        """See RowCodec.output_lines: such rows are never merged."""
        del rows, response, request_id, first
        return None

    def error_line(self, custom_id: str, error: HeadraceError, *, request_id: str) -> bytes:
        """See RowCodec.error_line."""
        if not isinstance(error, Refusal):
            return self._lines.error_line(custom_id, error, request_id=request_id)
        body = error.body or OPENAI.body(error, request_id)
        told = msgspec.json.encode({"code": error.code, "message": sentence(error)})
        return _line(custom_id, request_id, error.status, body, told)


def _line(custom_id: str, request_id: str, status: int, body: bytes, error: bytes) -> bytes:
    # in JSON there are no newlines but between tokens
    body = body.replace(b"\n", b" ").replace(b"\r", b" ")
    identity = request_id.encode()
    return _OUTPUT % (identity, msgspec.json.encode(custom_id), status, identity, body, error)
