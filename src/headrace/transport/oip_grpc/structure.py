"""Bounds what an inference request takes once it is parsed, before it is.

An empty input is 2 bytes of a message and 90 bytes of memory, an axis 1 and 16: a message within
the size limit could take 40 times as much. Tensors' contents are what that limit is for; all else
is little in any honest request.
"""

from __future__ import annotations

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
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5  # wire types; groups are not of proto3
_MAX_VARINT_BYTES: Final = 10


def check_structure(message: bytes) -> None:
    """Look at the sizes in an encoded ModelInferRequest.

    Raises:
        InvalidRequest: it is malformed, or has more than its tensors' contents to be so large.
    """
    if len(message) <= UNCHECKED_BYTES:
        return
    try:
        _spend(message, 0, len(message), MAX_STRUCTURE_BYTES, _INPUTS, _RAW_INPUT_CONTENTS)
    except IndexError:
        raise _malformed() from None


def _spend(data: bytes, at: int, end: int, left: int, nested: int, free: int) -> int:
    """Take the fields in data[at:end] from `left`; of `free` only that they are there."""
    while at < end:
        tag, at = _varint(data, at)
        field, wire_type = tag >> 3, tag & 7
        begin = at
        if wire_type == _DELIMITED:
            size, begin = _varint(data, at)
            at = begin + size
        elif wire_type == _VARINT:
            _, at = _varint(data, at)
        elif wire_type in {_FIXED32, _FIXED64}:
            at += 4 if wire_type == _FIXED32 else 8
        else:
            raise _malformed()
        if at > end:
            raise _malformed()
        left -= _FIELD_BYTES
        if field == nested and wire_type == _DELIMITED:
            left = _spend(data, begin, at, left, 0, _CONTENTS)
        elif field != free:
            left -= at - begin
        if left < 0:
            msg = (
                "the request's names, shapes and parameters take more than "
                f"{MAX_STRUCTURE_BYTES} bytes"
            )
            raise InvalidRequest(msg)
    return left


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
