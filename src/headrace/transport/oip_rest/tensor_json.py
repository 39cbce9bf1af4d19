"""Tensors in JSON: a flat or fully nested array of elements, row-major."""

from __future__ import annotations

import functools
import math
import re
import struct
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Final

import msgspec
import numpy as np

from headrace.domain.binary import shaped
from headrace.domain.datatypes import DATATYPES, Datatype
from headrace.domain.errors import InvalidRequest
from headrace.domain.tensors import Array

_ELEMENTS: Final[dict[str, Any]] = {
    "bool": list[bool],
    "int": list[int],
    "float": list[float],
    "bytes": list[str],
}
_DECODE: Final[dict[str, Callable[[bytes | msgspec.Raw], list[Any]]]] = {
    kind: msgspec.json.Decoder(elements).decode for kind, elements in _ELEMENTS.items()
}
_NESTED: Final = re.compile(rb"\s*\[\s*\[")
_FEW: Final = 4096  # elements up to which `struct` is quicker than numpy
#: How `struct` writes an element of each datatype.
_FORMATS: Final = {
    "BOOL": "?",
    "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q",
    "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q",
    "FP32": "f", "FP64": "d",
}  # fmt: skip
#: The largest that rounds to a float32 and not to infinity: the shortest decimal form of the
#: largest float32, 3.4028235e38, is above it.
_FLOAT32_MAX: Final = math.nextafter(2.0**128 - 2.0**103, 0.0)


def from_json(name: str, datatype: str, shape: Sequence[int], raw: msgspec.Raw) -> Array:
    """Decode the `data` of input `name`.

    Raises:
        InvalidRequest: an element is not of the datatype, or their number does not fit `shape`.
    """
    kind = DATATYPES[datatype]
    if not kind.in_json:
        msg = f"input '{name}' is {datatype}, which has no JSON form; send it as binary data"
        raise InvalidRequest(msg)
    try:
        try:
            elements = _DECODE[kind.kind](raw)
        except msgspec.ValidationError:
            if not _NESTED.match(raw):
                raise
            elements = _flatten(name, shape, msgspec.json.decode(raw))
            elements = msgspec.convert(elements, _ELEMENTS[kind.kind])
    except msgspec.ValidationError as error:
        msg = f"input '{name}' is {datatype}: {error}"
        raise InvalidRequest(msg) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        msg = f"input '{name}': {error}"
        raise InvalidRequest(msg) from None
    if len(elements) != math.prod(shape):
        msg = (
            f"input '{name}' has {len(elements)} elements, "
            f"but shape {list(shape)} takes {math.prod(shape)}"
        )
        raise InvalidRequest(msg)
    array = _array(name, kind, elements)
    return array if len(shape) == 1 else shaped(name, array, shape)


def list_from_json(name: str, datatype: str, raw: bytes | msgspec.Raw) -> Array:
    """Decode a flat list for input `name`, of a datatype that JSON has; shape [elements].

    Raises:
        InvalidRequest: an element is not of the datatype.
    """
    kind = DATATYPES[datatype]
    try:
        elements = _DECODE[kind.kind](raw)
    except msgspec.ValidationError as error:
        msg = f"input '{name}' is {datatype}: {error}"
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        msg = f"input '{name}': {error}"
    else:
        return _array(name, kind, elements)
    raise InvalidRequest(msg)


def _array(name: str, kind: Datatype, elements: list[Any]) -> Array:
    if kind.kind == "bytes":
        array: Array = np.empty(len(elements), dtype=np.object_)
        try:
            array[:] = [text.encode() for text in elements]
        except UnicodeEncodeError:
            msg = f"input '{name}' holds a lone surrogate, which is not text"
            raise InvalidRequest(msg) from None
        return array
    try:
        if len(elements) <= _FEW:
            return np.frombuffer(_packer(kind.name, len(elements))(*elements), dtype=kind.dtype)
        if kind.name == "FP32":
            return _float32(elements)
        return np.array(elements, dtype=kind.dtype)
    except (OverflowError, struct.error):
        msg = f"input '{name}' holds a number outside the range of {kind.name}"
        raise InvalidRequest(msg) from None


@functools.lru_cache(maxsize=1024)
def _packer(datatype: str, count: int) -> Callable[..., bytes]:
    """Writes `count` elements; refuses what is out of the datatype's range, rounded or not."""
    return struct.Struct(f"={count}{_FORMATS[datatype]}").pack


def _float32(elements: list[float]) -> Array:
    """JSON numbers have no infinity, so none may come of them by rounding either."""
    numbers = np.array(elements, dtype=np.float64)
    if not (numbers.min() >= -_FLOAT32_MAX and numbers.max() <= _FLOAT32_MAX):
        raise OverflowError
    return numbers.astype(np.float32)


def _flatten(name: str, shape: Sequence[int], nested: Any) -> list[Any]:
    level: list[Any] = [nested]
    for axis, size in enumerate(shape):
        for row in level:
            if not isinstance(row, list) or len(row) != size:
                msg = f"input '{name}': nested data does not fit shape {list(shape)} at axis {axis}"
                raise InvalidRequest(msg)
        level = list(chain.from_iterable(level))
    return level
