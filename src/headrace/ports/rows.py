"""How the lines of a batch file are read and written: the wire's business, asked for by workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from headrace.domain.errors import HeadraceError
from headrace.domain.inference import InferRequest, InferResponse


class RowHead(msgspec.Struct, frozen=True):
    """What planning needs of a line. `problem` is "" where the line is a row at all."""

    custom_id: str
    url: str
    problem: str = ""
    code: str = ""  # of the problem
    param: str = ""


class Row(msgspec.Struct):
    """One line. What is wrong with it alone is its `problem`, and then there is no request."""

    custom_id: str
    request: InferRequest | None
    problem: HeadraceError | None = None


class Block(msgspec.Struct, frozen=True):
    """Lines that follow each other and that one request asks about."""

    custom_ids: list[str]
    request: InferRequest
    length: int  # of the first axis of every input, for each of them
    end: int  # where the next line starts


class Heads(msgspec.Struct, frozen=True):
    """What planning needs of lines with which nothing is wrong."""

    custom_ids: list[str]
    ends: list[int]  # where each line ends in the text, newline included


class RowCodec(Protocol):
    """Lines of OpenAI's batch files. Lines are without their newline, answers with it."""

    def head(self, line: bytes | memoryview) -> RowHead:
        """Look at a line: it has to be JSON, its body an object. Never raises.

        Of a key that comes twice the last one counts. The custom_id is that which `row` tells.
        """
        ...

    def heads(self, text: bytes, url: str) -> Heads | None:
        """Look at many lines at once, each with its newline behind it. Never raises.

        None: they have to be looked at one by one, as one of them may be blank, have a problem or
        another url.
        """
        ...

    def row(self, line: bytes | memoryview, *, model: str, version: str) -> Row:
        """Decode a line whose head was looked at. Never raises."""
        ...

    def block(
        self, lines: bytes, start: int, *, model: str, version: str, most: int, limit_bytes: int
    ) -> Block | None:
        """Decode lines from byte `start` on together, as `row` would each of them. Never raises.

        Together they have `most` of the model's rows, or fewer where no lines are left. None: they
        have to be decoded one by one.
        """
        ...

    def output_line(self, row: Row, response: InferResponse, *, request_id: str) -> bytes:
        """The answer to a row. Raises HeadraceError where outputs have no JSON form."""
        ...

    def output_lines(
        self, rows: Sequence[Row], response: InferResponse, *, request_id: str, first: int = 0
    ) -> list[bytes] | None:
        """The answers to rows that were merged, each with as many rows of every output.

        The request ids are `request_id`, a dash and the place among all that were merged, which is
        `first` for the first of `rows`. None: they have to be written one by one.
        """
        ...

    def error_line(self, custom_id: str, error: HeadraceError, *, request_id: str) -> bytes:
        """A row's failure, with the status that it would have had online."""
        ...
