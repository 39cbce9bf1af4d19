"""The text format of protocol buffers, read without a schema.

Strict where a schema is not needed: syntax, escapes, number forms, nesting. What a field may hold
is the reader's business (`triton_schema`).
Source: https://protobuf.dev/reference/protobuf/textformat-spec/
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from typing import Final, NamedTuple, TypeAlias

MAX_DEPTH: Final = 64  # of messages within messages
_MAX_NUMBER: Final = 400  # characters; the largest double has 309 digits


class TextFormatError(ValueError):
    """The text is not text format. `line` and `column` count from 1."""

    def __init__(self, reason: str, line: int, column: int) -> None:
        super().__init__(f"line {line}, column {column}: {reason}")
        self.reason = reason
        self.line = line
        self.column = column


class Identifier(str):
    """A bare word: the name of an enum's value (`t` and `f` may also be meant as booleans)."""

    __slots__ = ()


class Message(dict[str, list["Value"]]):
    """A message: each field's values in the order written; `field: []` leaves an empty list.

    `lines[field]` is the line where the field was first set.
    """

    __slots__ = ("lines",)

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[str, int] = {}


# `true`, `false`, `inf` and `nan` are converted; every other bare word is an Identifier.
Value: TypeAlias = str | int | float | bool | Message


def parse(text: str, *, max_depth: int = MAX_DEPTH) -> Message:
    """Parse one message.

    Raises:
        TextFormatError: the text is malformed, or nests deeper than `max_depth` messages.
    """
    return _Parser(text, max_depth).parse()


class _Token(NamedTuple):
    kind: str  # "word", "number", "string", "end" or the punctuation itself
    text: str
    offset: int


_SKIP: Final = re.compile(r"(?:[ \t\r\n\f\v]+|#[^\n]*)*")
_TOKEN: Final = re.compile(
    r"""
      (?P<word>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<number>(?:0[xX][0-9a-fA-F]+|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[fF]?))
    | (?P<string>"(?:[^"\\\n]|\\[^\n])*"|'(?:[^'\\\n]|\\[^\n])*')
    | (?P<mark>[][{}<>:,;-])
    """,
    re.VERBOSE,
)
_WORD_CHARACTER: Final = re.compile(r"[A-Za-z0-9_.]")
_INTEGER: Final = re.compile(r"0[xX][0-9a-fA-F]+|[0-9]+")
_ESCAPE: Final = re.compile(
    rb"""
    \\(?:
      (?P<simple>[abfnrtv\\'"?])
    | (?P<octal>[0-7]{1,3})
    | [xX](?P<hex>[0-9a-fA-F]{1,2})
    | u(?P<high>[dD][89abAB][0-9a-fA-F]{2})\\u(?P<low>[dD][c-fC-F][0-9a-fA-F]{2})
    | u(?P<u>[0-9a-fA-F]{4})
    | U(?P<U>[0-9a-fA-F]{8})
    | (?P<bad>.)
    )
    """,
    re.VERBOSE | re.DOTALL,
)
_SIMPLE_ESCAPES: Final = dict(zip(b"abfnrtv\\'\"?", b"\a\b\f\n\r\t\v\\'\"?", strict=True))
_CLOSING: Final = {"{": "}", "<": ">"}
_BYTE_MAX: Final = 0xFF
_CODE_POINT_MAX: Final = 0x10FFFF


class _Parser:
    def __init__(self, text: str, max_depth: int) -> None:
        self._text = text
        self._max_depth = max_depth
        self._line_starts = [0, *(found.end() for found in re.finditer("\n", text))]
        self._offset = 0
        self._next = self._scan()

    def parse(self) -> Message:
        message = Message()
        while self._next.kind != "end":
            self._field(message, depth=1)
        return message

    # Fields and values

    def _field(self, message: Message, depth: int) -> None:
        name = self._take()
        if name.kind == "[":
            raise self._error("extensions and Any are not supported", name)
        if name.kind != "word":
            raise self._error(f"expected the name of a field, found {_shown(name)}", name)
        colon = self._accept(":")
        values = message.setdefault(name.text, [])
        message.lines.setdefault(name.text, self._position(name.offset)[0])
        if self._accept("["):
            self._list(values, depth, scalars=colon)
        else:
            values.append(self._value(depth, scalars=colon))
        if not self._accept(","):
            self._accept(";")

    def _list(self, values: list[Value], depth: int, *, scalars: bool) -> None:
        if self._accept("]"):
            return
        while True:
            values.append(self._value(depth, scalars=scalars))
            if self._accept("]"):
                return
            if not self._accept(","):
                raise self._error(f"expected ',' or ']', found {_shown(self._next)}", self._next)

    def _value(self, depth: int, *, scalars: bool) -> Value:
        token = self._take()
        if token.kind in _CLOSING:
            return self._message(token, depth + 1)
        if not scalars:
            raise self._error(f"expected ':' or '{{', found {_shown(token)}", token)
        match token.kind:
            case "string":
                return self._string(token)
            case "number":
                return self._number(token)
            case "-":
                return self._negative()
            case "word":
                return _word(token.text)
        raise self._error(f"expected a value, found {_shown(token)}", token)

    def _message(self, opening: _Token, depth: int) -> Message:
        if depth > self._max_depth:
            raise self._error(f"messages nest deeper than {self._max_depth}", opening)
        message = Message()
        closing = _CLOSING[opening.kind]
        while not self._accept(closing):
            if self._next.kind == "end":
                line, _ = self._position(opening.offset)
                reason = f"'{opening.kind}' of line {line} is not closed by '{closing}'"
                raise self._error(reason, self._next)
            self._field(message, depth)
        return message

    def _negative(self) -> Value:
        token = self._take()
        if token.kind == "number":
            return -self._number(token)
        if token.kind == "word":
            number = _word(token.text.lower())
            if isinstance(number, float):
                return -number
        raise self._error(f"expected a number after '-', found {_shown(token)}", token)

    def _number(self, token: _Token) -> int | float:
        text = token.text
        if len(text) > _MAX_NUMBER:
            raise self._error("the number is too long", token)
        octal = len(text) > 1 and text[0] == "0" and text[1].isdecimal()
        if _INTEGER.fullmatch(text) is None and not octal:
            return float(text.rstrip("fF"))
        try:
            return int(text, 8) if octal else int(text, 0)
        except ValueError:
            reason = f"{text} starts with 0 but is not an octal number"
            raise self._error(reason, token) from None

    def _string(self, first: _Token) -> str:
        parts = [self._bytes(first)]
        while self._next.kind == "string":
            parts.append(self._bytes(self._take()))
        try:
            return b"".join(parts).decode()
        except UnicodeDecodeError:
            raise self._error("the string is not valid UTF-8", first) from None

    def _bytes(self, token: _Token) -> bytes:
        def unescape(found: re.Match[bytes]) -> bytes:
            value = _unescape(found)
            if value is None:
                shown = found.group().decode(errors="replace")
                raise self._error(f"{ascii(shown)[1:-1]} is not an escape sequence", token)
            return value

        # surrogatepass: a lone surrogate is refused by the decoding above, with its line
        return _ESCAPE.sub(unescape, token.text[1:-1].encode(errors="surrogatepass"))

    # Tokens

    def _take(self) -> _Token:
        token = self._next
        if token.kind != "end":
            self._next = self._scan()
        return token

    def _accept(self, mark: str) -> bool:
        if self._next.kind != mark:
            return False
        self._take()
        return True

    def _scan(self) -> _Token:
        skipped = _SKIP.match(self._text, self._offset)
        start = skipped.end() if skipped else self._offset
        if start == len(self._text):
            return _Token("end", "", start)
        found = _TOKEN.match(self._text, start)
        if found is None:
            raise self._unreadable(start)
        self._offset = found.end()
        kind, text = str(found.lastgroup), found.group()
        token = _Token(text if kind == "mark" else kind, text, start)
        if kind == "number" and _WORD_CHARACTER.match(self._text, self._offset):
            raise self._error(f"malformed number {_shown(token)}", token)
        return token

    def _unreadable(self, start: int) -> TextFormatError:
        at = _Token("end", "", start)
        if self._text[start] in "\"'":
            return self._error("the string is not closed on its line", at)
        return self._error(f"unexpected character {self._text[start]!a}", at)

    def _position(self, offset: int) -> tuple[int, int]:
        line = bisect_right(self._line_starts, offset)
        return line, offset - self._line_starts[line - 1] + 1

    def _error(self, reason: str, token: _Token) -> TextFormatError:
        return TextFormatError(reason, *self._position(token.offset))


def _word(text: str) -> Value:
    match text:
        case "true" | "True":
            return True
        case "false" | "False":
            return False
    match text.lower():
        case "inf" | "infinity" | "inff" | "infinityf":
            return math.inf
        case "nan" | "nanf":
            return math.nan
    return Identifier(text)


def _unescape(found: re.Match[bytes]) -> bytes | None:
    """The bytes that one escape sequence stands for; None where it is not one."""
    kind = str(found.lastgroup)
    digits = found.group(kind)
    match kind:
        case "simple":
            return bytes((_SIMPLE_ESCAPES[digits[0]],))
        case "octal" | "hex":
            value = int(digits, 8 if kind == "octal" else 16)
            return bytes((value,)) if value <= _BYTE_MAX else None
        case "low":
            units = bytes.fromhex((found["high"] + digits).decode())
            return units.decode("utf-16-be").encode()
        case "u" | "U":
            value = int(digits, 16)
            if value > _CODE_POINT_MAX:
                return None
            return chr(value).encode(errors="surrogatepass")
    return None


def _shown(token: _Token) -> str:
    if token.kind == "end":
        return "the end"
    return f"'{ascii(token.text[:32])[1:-1]}'"
