"""Lines out of a stream of bytes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from itertools import islice
from typing import Final

import msgspec

SLICE_BYTES: Final = 256 * 1024
#: Lines that are looked at in a stretch: however short they are, others get their turn behind them.
LINES_AT_ONCE: Final = 256
_text: Final = re.compile(rb"[^ \t\n\r\v\f]").search  # what bytes.strip does not take off


class Line(msgspec.Struct, frozen=True, gc=False):
    """One line of a file, without its newline. `text` is cut off where it is over the limit."""

    number: int  # 1 is the first
    start: int  # byte in the file
    end: int  # the byte behind it, newline included
    text: bytes
    too_long: bool = False

    @property
    def is_blank(self) -> bool:
        """Whether there is nothing in it; nobody knows of one that was cut off."""
        return not self.too_long and not self.text.strip()


class Lines:
    """Splits what it is fed. Holds at most one line, and of that no more than `limit_bytes`."""

    def __init__(self, *, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._kept = bytearray()  # of the line that has begun
        self._begun = 0  # bytes of that line so far
        self.number = 1
        self.at = 0  # where that line starts

    def feed(self, piece: bytes) -> Iterator[Line]:
        """The lines that end in `piece`."""
        start = 0
        while (newline := piece.find(b"\n", start)) >= 0:
            yield self._line(piece[start:newline], 1)
            start = newline + 1
        self._keep(piece[start:] if start else piece)

    def filled(self, piece: bytes) -> Iterator[Line]:
        """The lines that end in `piece` and are not blank: the others cost next to nothing."""
        start = 0
        while True:
            if not self._begun and (after := past_blank(piece, start, self._limit)) > start:
                self.number += piece.count(b"\n", start, after)
                self.at += after - start
                start = after
                continue  # there are more of them, if they are over the limit together
            newline = piece.find(b"\n", start)
            if newline < 0:
                break
            line = self._line(piece[start:newline], 1)
            start = newline + 1
            if not line.is_blank:
                yield line
        self._keep(piece[start:] if start else piece)

    def ending_in(self, piece: bytes) -> bytes:
        """The lines that end in `piece`, as one text, for who then passes or feeds it.

        b"" where there are none, or one of them may be over the limit.
        """
        end = piece.rfind(b"\n") + 1
        if not end or self._begun + end > self._limit:
            return b""
        return bytes(self._kept) + piece[:end] if self._begun else piece[:end]

    def skip(self, piece: bytes, count: int) -> None:
        """Leave out the lines that end in `piece`, which are so many."""
        end = piece.rfind(b"\n") + 1
        self.at += self._begun + end
        self.number += count
        self._kept.clear()
        self._begun = 0
        self._keep(piece[end:])

    def rest(self) -> Iterator[Line]:
        """The last line, if no newline ended it."""
        if self._begun:
            yield self._line(b"", 0)

    def _keep(self, text: bytes) -> None:
        self._begun += len(text)
        self._kept += text[: self._limit - len(self._kept)]

    def _line(self, text: bytes, newline: int) -> Line:
        if self._begun:
            self._keep(text)
            text, length = bytes(self._kept), self._begun
        else:
            length = len(text)
        end = self.at + length + newline
        too_long = length > self._limit
        line = Line(self.number, self.at, end, text[: self._limit].rstrip(b"\r"), too_long)
        self._kept.clear()
        self._begun = 0
        self.number += 1
        self.at = end
        return line


def past_blank(text: bytes, start: int, limit_bytes: int) -> int:
    """Where to go on from the start of a line: behind blank ones, so many bytes of them at most."""
    end = min(start + limit_bytes, len(text))
    if (found := _text(text, start, end)) is not None:
        end = found.start()
    return max(start, text.rfind(b"\n", start, end) + 1)


def filled_lines(text: bytes, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """The lines of a text, from the start of one of them on, that are not blank.

    Each has its number, 0 is the first.
    """
    number, size = 0, len(text)
    while start < size:
        if (after := past_blank(text, start, size)) > start:
            number += text.count(b"\n", start, after)
            start = after
        newline = text.find(b"\n", start)
        if newline < 0:
            newline = size
        line = text[start:newline]
        start = newline + 1
        if line.strip():
            yield number, line
        number += 1


async def lines_of(
    pieces: AsyncIterator[bytes], *, limit_bytes: int, slice_bytes: int = SLICE_BYTES
) -> AsyncGenerator[list[Line], None]:
    """The lines of a stream, some at a time, so that others get their turn in between.

    Blank ones are left out, but for a last one that no newline ends.
    """
    lines = Lines(limit_bytes=limit_bytes)
    async for some in slices_of(pieces, slice_bytes=slice_bytes):
        found = lines.filled(some)
        while batch := list(islice(found, LINES_AT_ONCE)):
            yield batch
            if len(batch) == LINES_AT_ONCE:
                await asyncio.sleep(0)
    yield list(lines.rest())


async def slices_of(
    pieces: AsyncIterator[bytes], *, slice_bytes: int = SLICE_BYTES
) -> AsyncGenerator[bytes, None]:
    """A stream in small slices, so that others get their turn in between."""
    since_turn = 0
    async for piece in pieces:
        for start in range(0, len(piece), slice_bytes):
            some = piece[start : start + slice_bytes]
            yield some
            since_turn += len(some)
            if since_turn >= slice_bytes:  # pieces that are there already let nobody in
                since_turn = 0
                await asyncio.sleep(0)
