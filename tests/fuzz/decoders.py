"""Everything that decodes what a client sent, behind one function that takes any bytes."""

from __future__ import annotations

from typing import Final

from headrace.domain.binary import from_binary, to_binary
from headrace.domain.datatypes import DATATYPES
from headrace.domain.errors import InvalidRequest
from headrace.transport.oip_rest.compression import decompress
from headrace.transport.oip_rest.errors import error_response
from headrace.transport.oip_rest.payload import RestPayload

_NAMES: Final = list(DATATYPES)
_LIMIT_BYTES: Final = 100_000
_LONGEST_MESSAGE: Final = 4096
_AXIS_BYTES: Final = 8


def check(data: bytes) -> str:
    """Decode `data`, whose first byte says how; what came of it. Anything else than that raises."""
    kind, rest = data[:1], data[1:]
    try:
        match kind:
            case b"J":
                return json(rest)
            case b"B":
                return with_header_length(rest)
            case b"T":
                return tensor(rest)
            case b"Z":
                return compressed(rest)
    except InvalidRequest as error:
        return refusal(error)
    return "nothing"


def refusal(error: InvalidRequest) -> str:
    """What the client is told."""
    assert len(error.message) < _LONGEST_MESSAGE, "it repeats what a client sent at length"
    error_response(error, "id")
    return error.code


def json(data: bytes) -> str:
    """A body that is JSON."""
    payload = RestPayload(data, None)
    payload.parameters()
    payload.decode()
    return "json"


def with_header_length(data: bytes) -> str:
    """Two bytes of header length, then a body."""
    payload = RestPayload(data[2:], int.from_bytes(data[:2], "little"))
    payload.parameters()
    payload.decode()
    return "binary"


def tensor(data: bytes) -> str:
    """A datatype, the number of axes, the axes, then the elements."""
    datatype = _NAMES[data[0] % len(_NAMES)] if data else "BOOL"
    axes = data[1] % 4 if len(data) > 1 else 0
    shape = [
        int.from_bytes(data[at : at + _AXIS_BYTES], "little")
        for at in range(2, 2 + axes * _AXIS_BYTES, _AXIS_BYTES)
    ]
    elements = data[2 + axes * _AXIS_BYTES :]
    array = from_binary("x", datatype, shape, elements)
    assert array.shape == tuple(shape)
    if datatype != "BF16":  # of which not every NaN comes back
        assert bytes(to_binary(datatype, array)) == elements
    return "tensor"


def compressed(data: bytes) -> str:
    """A content coding, then a body."""
    coding = b"deflate" if data[:1] == b"d" else b"gzip"
    assert len(decompress(data[1:], coding, _LIMIT_BYTES)) <= _LIMIT_BYTES
    return "compressed"
