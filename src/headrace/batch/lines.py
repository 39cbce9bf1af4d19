"""Lines out of a stream of bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import msgspec


class Line(msgspec.Struct, frozen=True, gc=False):
    """One line of a file, without its newline. `text` is cut off where it is over the limit."""

    number: int  # 1 is the first
    start: int  # byte in the file
    end: int  # the byte behind it, newline included
    text: bytes
    too_long: bool = False

    @property
    def is_blank(self) -> bool:
        """Whether there is nothing in it."""
        return not self.text.strip()


class Lines:
    """Splits what it is fed. Holds at most one line, and of that no more than `limit_bytes`."""

    def __init__(self, *, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._kept = b""  # of the line that has begun
        self._begun = 0  # bytes of that line so far
        self._number = 1
        self._at = 0  # where that line starts

    def feed(self, piece: bytes) -> Iterator[Line]:
        """The lines that end in `piece`."""
        start = 0
        while (newline := piece.find(b"\n", start)) >= 0:
            yield self._line(piece[start:newline], 1)
            start = newline + 1
        self._keep(piece[start:] if start else piece)

    def rest(self) -> Iterator[Line]:
        """The last line, if no newline ended it."""
        if self._begun:
            yield self._line(b"", 0)

    def _keep(self, text: bytes) -> None:
        self._begun += len(text)
        self._kept += text[: max(0, self._limit + 1 - len(self._kept))]

    def _line(self, text: bytes, newline: int) -> Line:
        if self._begun:
            self._keep(text)
            text = self._kept
            length = self._begun
        else:
            length = len(text)
        end = self._at + length + newline
        too_long = length > self._limit
        line = Line(self._number, self._at, end, text[: self._limit].rstrip(b"\r"), too_long)
        self._kept, self._begun = b"", 0
        self._number += 1
        self._at = end
        return line


async def lines_of(
    pieces: AsyncIterator[bytes], *, limit_bytes: int, slice_bytes: int = 256 * 1024
) -> AsyncIterator[list[Line]]:
    """The lines of a stream, some at a time, so that others get their turn in between."""
    lines = Lines(limit_bytes=limit_bytes)
    async for piece in pieces:
        for start in range(0, len(piece), slice_bytes):
            yield list(lines.feed(piece[start : start + slice_bytes]))
    yield list(lines.rest())
