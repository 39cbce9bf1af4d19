"""Bounds what an inference request takes once it is parsed, before it is.

An empty input is 2 bytes of a message and 90 bytes of memory, an axis 1 and 16: a message within
the size limit could take 40 times as much. Tensors' contents are what that limit is for; all else
is little in any honest request.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from headrace.domain.errors import InvalidRequest

#: Smaller messages stay small, and are not looked at.
UNCHECKED_BYTES: Final = 64 * 1024
#: What names, shapes and parameters of a request may take, each field counting 64 bytes more.
MAX_STRUCTURE_BYTES: Final = 1024 * 1024
_FIELD_BYTES: Final = 64

_INPUTS: Final = 5  # of ModelInferRequest
_RAW_INPUT_CONTENTS: Final = 7
_CONTENTS: Final = 5  # of InferInputTensor
_MAX_VARINT_BYTES: Final = 10


def check_structure(message: bytes) -> None:
    """Look at the sizes in an encoded ModelInferRequest.

    Raises:
        InvalidRequest: it is malformed, or so large by more than its tensors' contents.
    """
    if len(message) <= UNCHECKED_BYTES:
        return
    left = MAX_STRUCTURE_BYTES
    try:
        for field, begin, end in fields(message, 0, len(message)):
            left -= _FIELD_BYTES
            if field == _INPUTS:
                for inner, inner_begin, inner_end in fields(message, begin, end):
                    left -= _FIELD_BYTES
                    if inner != _CONTENTS:
                        left -= inner_end - inner_begin
                    _refuse_overdraft(left)
            elif field != _RAW_INPUT_CONTENTS:
                left -= end - begin
            _refuse_overdraft(left)
    except IndexError:
        raise _malformed() from None


def _refuse_overdraft(left: int) -> None:
    if left < 0:
        msg = (
            f"the request's names, shapes and parameters take more than {MAX_STRUCTURE_BYTES} bytes"
        )
        raise InvalidRequest(msg)


def fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The number of each field in data[at:end], and where its value begins and ends."""
    while at < end:
        tag, begin = _varint(data, at)
        match tag & 7:
            case 0:  # a varint
                _, at = _varint(data, begin)
            case 1:  # 64 bits
                at = begin + 8
            case 2:  # its length stands before it
                size, begin = _varint(data, begin)
                at = begin + size
            case 5:  # 32 bits
                at = begin + 4
            case _:  # groups are not of proto3
                raise _malformed()
        if at > end:
            raise _malformed()
        yield tag >> 3, begin, at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = data[at]
    at += 1
    if value < 0x80:  # noqa: PLR2004 - the bit that says that more follows
        return value, at
    value &= 0x7F
    for shift in range(7, 7 * _MAX_VARINT_BYTES, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004
            return value, at
    raise _malformed()


def _malformed() -> InvalidRequest:
    return InvalidRequest("the message is not a well-formed inference.ModelInferRequest")
