"""Checks the outputs of an endpoint's answer that is passed on without being decoded."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any, Final

from headrace.domain.datatypes import DATATYPES
from headrace.domain.errors import InvalidRequest
from headrace.transport.oip_grpc.payload import require_contents, require_form

_LENGTH: Final = struct.Struct("<I")
_WALKED_ELEMENTS: Final = 16 * 1024  # more would hold up everybody else for milliseconds
_SIZES: Final = {name: datatype.size_bytes for name, datatype in DATATYPES.items()}


def check_outputs(outputs: Sequence[Any], raw: Sequence[memoryview], *, walk: bool) -> None:
    """Look at datatypes, shapes and sizes; `raw` has the contents of each output, or none.

    With `walk`, BYTES of not too many elements are looked through, by the length of each.

    Raises:
        InvalidRequest: it is no tensor, or its contents are not of the size that its shape takes.
    """
    for i, output in enumerate(outputs):
        datatype, shape = output.datatype, output.shape
        require_form(f"outputs[{i}]", datatype, shape)
        if not raw:
            require_contents(output.name, datatype, shape, output.contents)
            continue
        count, size, data = math.prod(shape), _SIZES[datatype], raw[i]
        if size:
            fits = count * size == len(data)
        elif walk and count <= _WALKED_ELEMENTS:
            fits = _holds(count, data)
        else:
            fits = count * _LENGTH.size <= len(data)
        if not fits:
            msg = f"outputs[{i}]: {len(data)} bytes for {datatype} of shape {[*shape]}"
            raise InvalidRequest(msg)


def _holds(count: int, data: memoryview) -> bool:
    """Whether `data` is so many BYTES elements and nothing else."""
    size, at = len(data), 0
    for _ in range(count):
        end = at + _LENGTH.size
        if end > size:
            return False
        at = end + _LENGTH.unpack_from(data, at)[0]
    return at == size
