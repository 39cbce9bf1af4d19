"""A form with one file, `multipart/form-data` (RFC 7578), read while it comes."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from headrace.domain.errors import InvalidRequest, UnsupportedMediaType
from headrace.domain.parameters import InvalidParam

MEDIA_TYPE: Final = "multipart/form-data"
#: What a form may have beside its file: its other fields, boundaries, and heads of parts.
MAX_BESIDE_BYTES: Final = 64 * 1024
_MAX_FIELD_BYTES: Final = 1024
_FOLDERS: Final = re.compile(r".*[/\\]", re.DOTALL)


class Form:
    """The fields and the file of one form, whatever their order.

    First `begin`, then all of `pieces`; `fields` are complete when they have ended.
    """

    def __init__(
        self,
        content_type: str,
        body: AsyncIterator[bytes],
        *,
        file_field: str,
        known: frozenset[str],
    ) -> None:
        """Raises UnsupportedMediaType: it is no form. `known` are the other fields it may have."""
        media_type, options = parse_options_header(content_type)
        if media_type != MEDIA_TYPE.encode() or not options.get(b"boundary"):
            raise UnsupportedMediaType(f"expected a body of {MEDIA_TYPE} with a boundary")
        try:
            self._parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise InvalidRequest(f"the form cannot be read: {error}") from None
        self.fields: dict[str, str] = {}
        self.filename = ""
        self._body = body
        self._file_field = file_field
        self._known = known
        self._beside_bytes = 0  # what was read, less what was the file's
        self._header = b""
        self._value = b""
        self._headers: dict[str, bytes] = {}
        self._name = ""  # of the part that is read
        self._text = b""  # of the field that is read
        self._data: list[bytes] = []  # of the file: what is not taken yet
        self._has_file = False
        self._ended = False

    async def begin(self) -> None:
        """Read up to the file.

        Raises:
            InvalidRequest: what comes is no such form.
        """
        while not self._has_file:
            if not await self._read():
                raise InvalidParam(
                    self._file_field, f"the form has no file: send it as '{self._file_field}'"
                )

    async def pieces(self) -> AsyncIterator[bytes]:
        """The file's bytes, and behind them all the rest of the form. Raises as `begin`."""
        more = True
        while more:
            for piece in self._data:
                yield piece
            self._data.clear()
            more = await self._read()

    async def _read(self) -> bool:
        """Take in what comes next of the body; False: it has ended, as it should."""
        piece = await anext(self._body, None)
        if piece is None:
            if not self._ended:
                raise InvalidRequest("the form ends before its last boundary")
            return False
        self._beside_bytes += len(piece)
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise InvalidRequest(f"the form cannot be read: {error}") from None
        if self._beside_bytes > MAX_BESIDE_BYTES:
            raise InvalidRequest(
                f"the form has over {MAX_BESIDE_BYTES} bytes beside the file '{self._file_field}'"
            )
        return True

    # What the parser tells, piece by piece

    def _on_part_begin(self) -> None:
        self._headers = {}

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._header.decode("latin-1").lower()] = self._value
        self._header = self._value = b""

    def _on_headers_finished(self) -> None:
        disposition, options = parse_options_header(
            self._headers.get("content-disposition", b"").decode("latin-1")
        )
        if disposition != b"form-data" or b"name" not in options:
            raise InvalidRequest("a part of the form has no name")
        self._name = name = options[b"name"].decode("utf-8", "backslashreplace")
        encoding = self._headers.get("content-transfer-encoding", b"binary").lower()
        if encoding not in {b"binary", b"8bit", b"7bit"}:
            raise InvalidParam(name[:64], "Content-Transfer-Encoding is not offered in forms")
        if name in self.fields or (name == self._file_field and self._has_file):
            raise InvalidParam(name[:64], "the form has it more than once")
        if name == self._file_field:
            if not options.get(b"filename"):
                raise InvalidParam(name, "it has no filename: send it as a file")
            self._has_file = True
            filename = options[b"filename"].decode("utf-8", "backslashreplace")
            self.filename = _FOLDERS.sub("", filename)
        elif name not in self._known:
            raise InvalidParam(name[:64], "there is no such parameter")
        self._text = b""

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == self._file_field:
            self._beside_bytes -= end - start
            self._data.append(data[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > _MAX_FIELD_BYTES:
            raise InvalidParam(self._name, f"it may have {_MAX_FIELD_BYTES} bytes at most")

    def _on_part_end(self) -> None:
        if self._name == self._file_field:
            return
        try:
            self.fields[self._name] = self._text.decode()
        except UnicodeDecodeError:
            raise InvalidParam(self._name, "it is not UTF-8") from None

    def _on_end(self) -> None:
        self._ended = True
