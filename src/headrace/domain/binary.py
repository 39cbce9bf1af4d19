"""The binary form of tensors: little-endian, row-major, BYTES with uint32 length prefixes.

The same form serves REST's binary extension, gRPC's raw contents and stored warm-up data.
Source: Triton `docs/protocol/extension_binary_data.md`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Final

import numpy as np

from headrace.domain.datatypes import DATATYPES
from headrace.domain.errors import InvalidRequest
from headrace.domain.tensors import Array

_LENGTH: Final = struct.Struct("<I")
_MAX_BOOL: Final = 1
_SMALL_BYTES: Final = 4096


def from_binary(name: str, datatype: str, shape: Sequence[int], data: bytes | memoryview) -> Array:
    """Decode one tensor without copying where alignment allows; the array may be read-only.

    Raises:
        InvalidRequest: the size of `data` does not fit `shape`, or an element is not legal.
    """
    kind = DATATYPES[datatype]
    count = math.prod(shape)
    if kind.kind == "bytes":
        return shaped(name, _bytes_elements(name, count, data), shape)
    if count * kind.size_bytes != len(data):
        msg = (
            f"input '{name}' has {len(data)} bytes of data, "
            f"but {datatype} of shape {list(shape)} takes {count * kind.size_bytes}"
        )
        raise InvalidRequest(msg)
    if datatype == "BF16":
        high = np.frombuffer(data, dtype="<u2").astype("<u4") << 16
        return shaped(name, high.view("<f4"), shape)
    array: Array = np.frombuffer(data, dtype=kind.dtype)
    if kind.kind == "bool" and count and int(array.view(np.uint8).max()) > _MAX_BOOL:
        msg = f"input '{name}' is BOOL, but a byte of it is neither 0 nor 1"
        raise InvalidRequest(msg)
    if not array.flags.aligned:
        array = array.copy()
    return shaped(name, array, shape)


def shaped(name: str, array: Array, shape: Sequence[int]) -> Array:
    """Give the elements of input `name` their shape, which has as many.

    Raises:
        InvalidRequest: the other axes of an empty tensor are beyond what memory can address.
    """
    try:
        return array.reshape(shape)
    except (ValueError, OverflowError):
        msg = f"input '{name}': shape {list(shape)} is too large"
        raise InvalidRequest(msg) from None


def to_binary(datatype: str, array: Array) -> bytes | memoryview:
    """Encode one tensor; numeric arrays that are contiguous are not copied."""
    if datatype == "BYTES":
        return join_bytes(array.ravel().tolist())
    if datatype == "BF16":
        return _round_to_bf16(array).tobytes()
    dtype = DATATYPES[datatype].dtype
    if array.nbytes <= _SMALL_BYTES and array.dtype == dtype:
        return array.tobytes()  # the copy is cheaper than a view
    ready = np.ascontiguousarray(array, dtype=dtype)
    return ready.reshape(-1).view(np.uint8).data if ready.size else b""


def join_bytes(elements: Sequence[bytes]) -> bytes:
    """BYTES elements one after another, each behind its length."""
    pack = _LENGTH.pack
    return b"".join([part for e in elements for part in (pack(len(e)), e)])


def _bytes_elements(name: str, count: int, data: bytes | memoryview) -> Array:
    size = len(data)
    if count * _LENGTH.size > size:
        msg = f"input '{name}' has {size} bytes of data, too few for {count} BYTES elements"
        raise InvalidRequest(msg)
    elements: Array = np.empty(count, dtype=np.object_)
    at = 0
    for i in range(count):
        end = at + _LENGTH.size
        if end > size:
            msg = f"input '{name}' ends after {i} of {count} BYTES elements"
            raise InvalidRequest(msg)
        (length,) = _LENGTH.unpack_from(data, at)
        at = end + length
        if at > size:
            msg = f"input '{name}': the length of BYTES element {i} is past the end of its data"
            raise InvalidRequest(msg)
        elements[i] = bytes(data[end:at])
    if at != size:
        msg = f"input '{name}' has {size - at} bytes of data beyond its {count} BYTES elements"
        raise InvalidRequest(msg)
    return elements


def _round_to_bf16(array: Array) -> Array:
    """Round float32 to bfloat16, to nearest even; a NaN stays a NaN."""
    bits = np.ascontiguousarray(array, dtype="<f4").view("<u4")
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), np.uint32(0x7FC0), rounded).astype("<u2")
