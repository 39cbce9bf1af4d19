"""The rows of an input on their way to the platform: converted line by line, never held as a whole.

A row of a batch is `{"custom_id", "method", "url", "body"}`. For a model that is known, the body is
enough, alone or with its custom_id beside it; who has no custom_id is called by its line's number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import BinaryIO, Final

import msgspec

from headrace.compose.platform_client import CHUNK_BYTES
from headrace.domain.errors import InvalidRequest

#: More than any platform takes as one row.
MAX_LINE_BYTES: Final = 64 * 1024 * 1024
_ROW_KEYS: Final = frozenset({"custom_id", "method", "url", "body"})
_decode: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class _Row(msgspec.Struct):
    url: str = ""


_decode_row: Final = msgspec.json.Decoder(_Row).decode


class Rows:
    """The lines of a stream; `name` is what messages call it. It is read once."""

    def __init__(self, stream: BinaryIO, *, name: str) -> None:
        self.name = name
        self.size_bytes = 0  # that were read
        self._stream = stream
        self._digest = hashlib.sha256()
        self._ahead: list[bytes] = []  # lines that were looked at already

    @property
    def sha256(self) -> str:
        """Of what was read, in hexadecimal digits."""
        return self._digest.hexdigest()

    def endpoint(self) -> str:
        """What the first row says as its url.

        Raises:
            InvalidRequest: it says none.
        """
        while line := self._line(len(self._ahead) + 1):
            self._ahead.append(line)
            if line.strip():
                break
        else:
            raise InvalidRequest(f"{self.name} has no rows")
        try:
            url = _decode_row(line).url
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            url = ""
        if not url:
            raise InvalidRequest(
                f"{self.name} line {len(self._ahead)}: the row has no url, as a line of an OpenAI "
                "batch file has; say with --model whose inputs these are"
            )
        return url

    def pieces(self, url: str = "") -> Iterator[bytes]:
        """All lines, in pieces; with a `url`, as rows for it.

        Raises:
            InvalidRequest: the input cannot be read, or has a line without end.
        """
        kept: list[bytes] = []
        size = 0
        for line in self._converted(url) if url else self._as_they_are():
            kept.append(line)
            size += len(line)
            if size >= CHUNK_BYTES:
                yield b"".join(kept)
                kept.clear()
                size = 0
        yield b"".join(kept)

    def read_through(self) -> None:
        """Read to the end, for the digest alone."""
        for _ in self._as_they_are():
            pass

    def _as_they_are(self) -> Iterator[bytes]:
        yield from self._ahead
        self._ahead.clear()
        while piece := self._read(CHUNK_BYTES, line=False):
            yield piece

    def _converted(self, url: str) -> Iterator[bytes]:
        wanted = msgspec.json.encode(url)
        number = 0
        while line := self._ahead.pop(0) if self._ahead else self._line(number + 1):
            number += 1
            yield as_row(line, number=number, url=wanted)

    def _line(self, number: int) -> bytes:
        line = self._read(MAX_LINE_BYTES, line=True)
        if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            raise InvalidRequest(
                f"{self.name} line {number} has over {MAX_LINE_BYTES} bytes: rows are lines of JSON"
            )
        return line

    def _read(self, size: int, *, line: bool) -> bytes:
        try:
            piece = self._stream.readline(size) if line else self._stream.read(size)
        except OSError as error:
            raise InvalidRequest(f"{self.name} cannot be read: {error.strerror}") from error
        self._digest.update(piece)
        self.size_bytes += len(piece)
        return piece


def as_row(line: bytes, *, number: int, url: bytes) -> bytes:
    """A line as a batch row with its newline; `url` is JSON.

    What is no object stays as it is: the platform tells what is wrong with it, and in which line.
    """
    try:
        found = _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return line
    if found.keys() >= _ROW_KEYS:
        return line if line.endswith(b"\n") else line + b"\n"
    custom_id = bytes(found.pop("custom_id", b'"%d"' % number))
    body = found.get("body")
    if body is None:
        return b'{"custom_id":%b,"method":"POST","url":%b,"body":%b}\n' % (
            custom_id,
            url,
            msgspec.json.encode(found),
        )
    return b'{"custom_id":%b,"method":%b,"url":%b,"body":%b}\n' % (
        custom_id,
        bytes(found.get("method", b'"POST"')),
        bytes(found.get("url", url)),
        bytes(body),
    )
