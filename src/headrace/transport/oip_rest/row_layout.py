"""How the lines of a file look that differ in nothing but their numbers and ids.

Whoever wrote a file wrote all its lines with one program, so most of them are the same text around
other values. What that text says is worked out once, from a line that was decoded with all checks;
of the next lines it is compared, and only the values are decoded. A line is a JSON text again
whatever JSON value stands in the place of another, and each place takes one whole value only: a
list of numbers, or a string without escapes. So nothing is understood otherwise than by decoding
the whole line, and what does not fit is decoded that way.
"""

from __future__ import annotations

import functools
import math
import re
import struct
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import msgspec
import numpy as np
import orjson

from headrace.domain.datatypes import DATATYPES
from headrace.domain.tensors import Array, InferContent, RequestedOutput, Tensor
from headrace.ports.rows import RowHead

#: How `struct` writes an element; it refuses what is out of the datatype's range.
_FORMATS: Final = {
    "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q",
    "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q",
    "FP32": "f", "FP64": "d",
}  # fmt: skip
_MAX_ELEMENTS: Final = 4096  # of an input: beyond it decoding is what costs
_MAX_INPUTS: Final = 16
_MAX_PREFIX_BYTES: Final = 64 * 1024  # of the text around the values, which is kept
_TEXT: Final = rb'"([^"\\\x00-\x1f]{1,512})"'
_LAST_NUMBERS: Final = rb"(\[.*\])"  # greedy to the line's end, from where what follows is found
_NUMBERS: Final = rb'(\[[^"]*\])'

#: Decodes a line with all checks: its custom_id and url, and what its body says. None: refused.
Decode: TypeAlias = Callable[[bytes], tuple[str, str, InferContent] | None]


class _Hole(msgspec.Struct, frozen=True, order=True):
    start: int
    end: int
    what: int  # an input's index, or one of these:


#: What decoding raises where a line is to be decoded as a whole.
_UNFIT: Final = (ValueError, TypeError, OverflowError, struct.error)
_CUSTOM_ID: Final = -1
_ID: Final = -2


class _Slot(msgspec.Struct, frozen=True, gc=False):
    """One input of a layout."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    count: int
    group: int  # of the match
    pack: Callable[..., bytes]
    dtype: np.dtype[Any]


class Many(msgspec.Struct, frozen=True):
    """Lines of one layout: their ids, their content one after the other, and what follows."""

    custom_ids: list[str]
    content: InferContent
    end: int  # where the next line starts


class RowLayout:
    """The text around the values of a line, and what it says."""

    def __init__(
        self,
        pattern: bytes,
        *,
        custom_id_group: int,
        id_group: int,
        slots: list[_Slot],
        content: InferContent,
    ) -> None:
        self._match = re.compile(pattern, re.DOTALL).fullmatch
        self._custom_id_group = custom_id_group
        self._id_group = id_group
        self._slots = slots
        lengths = {slot.shape[0] if slot.shape else 0 for slot in slots}
        #: Of the first axis of every input; 0 where they have none in common.
        self.length = lengths.pop() if len(lengths) == 1 else 0
        self._parameters = content.parameters
        self._outputs: list[RequestedOutput] | None = content.outputs

    def read(self, line: bytes) -> tuple[str, InferContent] | None:
        """The custom_id and what the body says; None where that is to be decoded as a whole."""
        match = self._match(line)
        if match is None:
            return None
        tensors = []
        try:
            for slot in self._slots:
                array: Array = np.ndarray(slot.shape, slot.dtype, _packed(slot, match[slot.group]))
                tensors.append(Tensor(slot.name, slot.datatype, array))
            identity = str(match[self._id_group], "utf-8") if self._id_group else ""
            content = InferContent(tensors, identity, self._parameters, self._outputs)
            return str(match[self._custom_id_group], "utf-8"), content
        except _UNFIT:
            return None

    def read_many(self, lines: bytes, start: int, *, most: int, limit_bytes: int) -> Many | None:
        """`most` lines that follow each other from byte `start` on, or fewer that are the last.

        None where one of them does not fit, or they have over `limit_bytes`, or say more than
        their inputs.
        """
        if self._id_group or self._parameters or not self.length:
            return None
        find, match = lines.find, self._match
        found: list[re.Match[bytes]] = []
        end, size = start, len(lines)
        while len(found) < most and end < size:
            newline = find(b"\n", end)
            if newline < 0:
                newline = size
            if newline - start > limit_bytes or (one := match(lines, end, newline)) is None:
                return None
            found.append(one)
            end = newline + 1
        try:
            tensors = []
            for slot in self._slots:
                group = slot.group
                data = b"".join([_packed(slot, one[group]) for one in found])
                shape = (len(found) * self.length, *slot.shape[1:])
                array: Array = np.ndarray(shape, slot.dtype, data)
                tensors.append(Tensor(slot.name, slot.datatype, array))
            group = self._custom_id_group
            custom_ids = [str(one[group], "utf-8") for one in found]
        except _UNFIT:
            return None
        content = InferContent(tensors, "", self._parameters, self._outputs)
        return Many(custom_ids, content, end)


def _packed(slot: _Slot, text: bytes) -> bytes:
    """The elements of an input. Raises one of `_UNFIT`."""
    if b"r" in text or b"a" in text:
        raise ValueError("true and false would pass for numbers")
    elements = orjson.loads(text)
    count = slot.count
    if len(elements) != count or (count == 1 and type(elements[0]) is list):
        (elements,) = elements  # nested along a first axis of one
        if slot.shape[0] != 1 or len(slot.shape) != 2 or len(elements) != count:  # noqa: PLR2004
            raise ValueError("the elements are nested otherwise")
    return slot.pack(*elements)


def learn(
    line: bytes, body: bytes, head: RowHead, content: InferContent, *, decode: Decode
) -> RowLayout | None:
    """The layout of a line that was decoded; None where it has none that is safe to go by."""
    if not (0 < len(content.inputs) <= _MAX_INPUTS) or line.count(body) != 1:
        return None
    holes = _holes(line, body, head.custom_id, content)
    if holes is None:
        return None
    if len(line) - sum(hole.end - hole.start for hole in holes) > _MAX_PREFIX_BYTES:
        return None
    if not _is_sound(line, holes, head.url, content, decode):
        return None
    last = max(hole for hole in holes if hole.what >= 0)
    pattern, at, groups = b"", 0, {}
    for number, hole in enumerate(holes, 1):
        pattern += re.escape(line[at : hole.start])
        if hole.what < 0:
            pattern += _TEXT
        else:
            pattern += _LAST_NUMBERS if hole is last else _NUMBERS
        groups[hole.what] = number
        at = hole.end
    pattern += re.escape(line[at:])
    slots = []
    for i, tensor in enumerate(content.inputs):
        shape = tensor.array.shape
        slots.append(
            _Slot(
                tensor.name,
                tensor.datatype,
                shape,
                math.prod(shape),
                groups[i],
                _packer(tensor.datatype, math.prod(shape)),
                DATATYPES[tensor.datatype].dtype,
            )
        )
    return RowLayout(
        pattern,
        custom_id_group=groups[_CUSTOM_ID],
        id_group=groups.get(_ID, 0),
        slots=slots,
        content=content,
    )


class _Data(msgspec.Struct, gc=False):
    data: msgspec.Raw = msgspec.Raw(b"")


class _Body(msgspec.Struct, gc=False):
    inputs: list[_Data]


_decode_body: Final = msgspec.json.Decoder(_Body).decode


def _holes(line: bytes, body: bytes, custom_id: str, content: InferContent) -> list[_Hole] | None:
    """Where the values stand; None where it is not plain to see."""
    body_at = line.index(body)
    outside = line[:body_at] + b"\n" + line[body_at + len(body) :]
    quoted = b'"%b"' % custom_id.encode()
    if outside.count(quoted) != 1:
        return None
    at = line.find(quoted, 0, body_at)
    if at < 0:
        at = line.index(quoted, body_at + len(body))
    holes = [_Hole(at, at + len(quoted), _CUSTOM_ID)]
    if content.id:
        quoted = b'"%b"' % content.id.encode()
        if body.count(quoted) != 1:
            return None
        at = body_at + body.index(quoted)
        holes.append(_Hole(at, at + len(quoted), _ID))
    after = 0
    for i, data in enumerate(_decode_body(body).inputs):
        tensor = content.inputs[i]
        text = bytes(data.data)
        if tensor.datatype not in _FORMATS or not 0 < tensor.array.size <= _MAX_ELEMENTS:
            return None
        start = body.find(text, after)
        if not text.startswith(b"[") or start < 0 or body.count(text) != 1:
            return None
        after = start + len(text)
        holes.append(_Hole(body_at + start, body_at + after, i))
    holes.sort()
    return holes


def _is_sound(
    line: bytes,
    holes: list[_Hole],
    url: str,
    content: InferContent,
    decode: Decode,
) -> bool:
    """Whether other values in the holes are read as such: tried with all checks, hole by hole."""
    probed: dict[int, bytes] = {_CUSTOM_ID: b'"probe~1"', _ID: b'"probe~2"'}
    numbers = []
    for i, tensor in enumerate(content.inputs):
        values = (np.arange(tensor.array.size) * (i + 3) + i) % 113
        numbers.append(values)
        probed[i] = orjson.dumps(values.tolist())
    text, at = b"", 0
    for hole in holes:
        text += line[at : hole.start] + probed[hole.what]
        at = hole.end
    decoded = decode(text + line[at:])
    if decoded is None:
        return False
    found_id, found_url, found = decoded
    return (
        (found_id, found_url) == ("probe~1", url)
        and found.id == ("probe~2" if content.id else "")
        and repr(found.parameters) == repr(content.parameters)
        and found.outputs == content.outputs
        and len(found.inputs) == len(content.inputs)
        and all(
            (a.name, a.datatype, a.array.shape) == (b.name, b.datatype, b.array.shape)
            and np.array_equal(a.array.ravel(), values)
            for a, b, values in zip(found.inputs, content.inputs, numbers, strict=True)
        )
    )


@functools.lru_cache(maxsize=256)
def _packer(datatype: str, count: int) -> Callable[..., bytes]:
    return struct.Struct(f"={count}{_FORMATS[datatype]}").pack
