"""An endpoint's answer over REST: looked at when it comes, decoded when somebody asks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Final, NoReturn, TypeAlias

import msgspec
import numpy as np

from headrace.domain.binary import from_binary, shaped
from headrace.domain.datatypes import DATATYPES
from headrace.domain.errors import EndpointFailed, InvalidRequest
from headrace.domain.inference import Answered
from headrace.domain.tensors import NO_PARAMETERS, Array, Tensor
from headrace.transport.oip_rest.tensor_json import from_json

_LOOK_BYTES: Final = 1024 * 1024  # of JSON, up to which all of it is looked at
_MAX_AXES: Final = 32
_MAX_TENSORS: Final = 1024
_MAX_DIGITS: Final = 18  # of a length in bytes
_JSON: Final = b"content-type: application/json\r\n"
_BINARY: Final = (
    b"content-type: application/octet-stream\r\ninference-header-content-length: %d\r\n"
)
_END_BYTES: Final = 64  # of a long text, within which it begins and ends
_END_PARTS: Final = 4  # the outermost may be nothing but blanks
_BLANKS: Final = b" \t\r\n"
_COMMA, _QUOTE, _BRACE = b',"{'
_EMPTY: Final = b"[]," + _BLANKS  # all that a list without elements is made of
_MESSAGE: Final = "the endpoint's answer is not well-formed"
_UNWRITABLE: Final = (
    "the answer holds NaN or infinity, for which JSON has no form: ask for binary outputs"
)
_NO_NUMBERS: Final = (b"NaN", b"-Infinity", b"Infinity")

_Size: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _Sized(msgspec.Struct, gc=False):
    binary_data_size: _Size | msgspec.UnsetType = msgspec.UNSET


class _Output(msgspec.Struct, gc=False):
    name: str
    datatype: str
    shape: Annotated[list[_Size], msgspec.Meta(max_length=_MAX_AXES)]
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    parameters: _Sized | None = None


class _Look(msgspec.Struct, gc=False):
    """What of an answer is looked at before it is passed on."""

    outputs: Annotated[list[_Output], msgspec.Meta(max_length=_MAX_TENSORS)]
    model_version: str = ""


class _Reply(_Look, gc=False):
    id: str | None = None
    parameters: dict[str, bool | int | float | str] | None = None


_look: Final = msgspec.json.Decoder(_Look).decode
_decode: Final = msgspec.json.Decoder(_Reply).decode


class RestReply(msgspec.Struct, gc=False):
    """The body of a 200, with the lines that it is passed on with."""

    lines: bytes  # Content-Type and, where tensors are binary, the length of the JSON
    parts: Sequence[bytes | memoryview]
    header_length: int | None = None  # of the JSON in bytes; None where all of it is JSON
    version: str = ""  # of the model, as far as a look tells
    passable: bool = True  # whether a client asked for this form; False: the platform itself did

    @property
    def size_bytes(self) -> int:
        """See Reply.size_bytes."""
        return sum(map(len, self.parts))

    def decode(self) -> Answered:
        """Decode everything. Raises EndpointFailed."""
        body = memoryview(b"".join(self.parts))
        length = len(body) if self.header_length is None else self.header_length
        try:
            reply = _decode(body[:length])
            outputs, used = _outputs(reply.outputs, body[length:])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, InvalidRequest) as error:
            _refuse(str(error), error)
        if used != len(body) - length:
            _refuse(f"{len(body) - length - used} bytes of binary data that no output takes")
        return Answered(outputs, reply.id or "", reply.parameters or NO_PARAMETERS)


def read(
    headers: Mapping[bytes, bytes], parts: Sequence[bytes | memoryview], *, passable: bool = True
) -> RestReply:
    """Take the body of a 200, after a look that tells answers from garbage.

    JSON up to 1 MiB is checked whole, its tensors by their numbers of elements; of more only the
    ends are, and what it is said to be.

    Raises:
        EndpointFailed: it is no answer to an inference.
    """
    header = headers.get(b"inference-header-content-length")
    if header is None and len(parts) == 1 and len(parts[0]) <= _LOOK_BYTES:  # as most are
        look = _looked(parts[0])
        for output in look.outputs:
            if output.data is msgspec.UNSET:
                _refuse(f"output '{output.name[:64]}' has no data")
            _check_data(output, output.data)
        return RestReply(_JSON, parts, None, look.model_version, passable)
    size = sum(map(len, parts))
    length = size if header is None else _length(header, size)
    if length > _LOOK_BYTES:
        _check_ends(headers, parts, length)
        version = ""
    else:
        if header is None:
            parts = [b"".join(parts)]
        look = _looked(_leading(parts, length))
        version = look.model_version
        told = sum([_checked_bytes(output) for output in look.outputs])
        if told != size - length:
            _refuse(f"binary outputs of {told} bytes, in {size - length} bytes")
    if header is None:
        return RestReply(_JSON, parts, None, version, passable)
    return RestReply(_BINARY % length, parts, length, version, passable)


def _length(header: bytes, size: int) -> int:
    if not header.isdigit() or len(header) > _MAX_DIGITS:
        _refuse("Inference-Header-Content-Length is no length")
    length = int(header)
    if not 0 < length <= size:
        _refuse(f"a header length of {length} bytes in a body of {size}")
    return length


def _looked(text: bytes | memoryview) -> _Look:
    try:
        return _look(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if _is_unwritable(bytes(text)):
            raise InvalidRequest(_UNWRITABLE) from error
        _refuse(str(error), error)


def _is_unwritable(text: bytes) -> bool:
    """Whether nothing is wrong but that there are literals for NaN or infinity.

    Many servers write them where a client's input made a model compute such: no fault of theirs.
    """
    without = text
    for literal in _NO_NUMBERS:
        without = without.replace(literal, b"null")
    if without == text:
        return False
    try:
        _look(without)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _check_data(output: _Output, data: msgspec.Raw) -> None:
    """Tell by its outside whether `data` may be an output's, without a look at any element."""
    kind = DATATYPES.get(output.datatype)
    if kind is None:
        _refuse(_unknown_datatype(output))
    text = bytes(data)
    if not text.startswith(b"["):
        _refuse(f"output '{output.name[:64]}' has data that is no list")
    if kind.kind == "bytes":  # whose elements may hold any character
        return
    count = math.prod(output.shape)
    if count:  # to look for a byte by its number is the cheapest way
        fits = text.count(_COMMA) + 1 == count and _QUOTE not in text and _BRACE not in text
        fits = fits and not text.startswith(b"[]")
    else:
        fits = not text.strip(_EMPTY)
    if not fits:
        _refuse(f"output '{output.name[:64]}' has data that is not {count} elements of {kind.name}")


def _unknown_datatype(output: _Output) -> str:
    return f"output '{output.name[:64]}' has the datatype {output.datatype[:32]!a}"


def _leading(parts: Sequence[bytes | memoryview], length: int) -> bytes | memoryview:
    """The first `length` bytes; the many of binary tensors behind them are not copied."""
    if len(parts[0]) >= length:
        return parts[0][:length]
    taken, size = 0, 0
    while size < length:
        size += len(parts[taken])
        taken += 1
    return b"".join(parts[:taken])[:length]


def _check_ends(
    headers: Mapping[bytes, bytes], parts: Sequence[bytes | memoryview], length: int
) -> None:
    """Tell by both ends of a long JSON text, and by its Content-Type, whether it may be one."""
    if length < sum(map(len, parts)):
        head = _leading(parts, length)
        first, last = head[:_END_BYTES], head[-_END_BYTES:]
    else:
        if b"json" not in headers.get(b"content-type", b"json"):
            _refuse("no JSON by its Content-Type")
        first = b"".join([part[:_END_BYTES] for part in parts[:_END_PARTS]])
        last = b"".join([part[-_END_BYTES:] for part in parts[-_END_PARTS:]])
    opens = bytes(first).lstrip(_BLANKS).startswith(b"{")
    if not opens or not bytes(last).rstrip(_BLANKS).endswith(b"}"):
        _refuse("no JSON object")


def _binary_bytes(output: _Output) -> int:
    """How many bytes of an output stand behind the JSON."""
    if output.parameters is None or output.parameters.binary_data_size is msgspec.UNSET:
        if output.data is msgspec.UNSET:
            _refuse(f"output '{output.name[:64]}' has no data")
        return 0
    return output.parameters.binary_data_size


def _checked_bytes(output: _Output) -> int:
    """As `_binary_bytes`, of an output that may be one by its datatype, its shape and its size."""
    size = _binary_bytes(output)
    if output.data is not msgspec.UNSET:
        _check_data(output, output.data)
        return size
    kind = DATATYPES.get(output.datatype)
    if kind is None:
        _refuse(_unknown_datatype(output))
    if kind.size_bytes and size != math.prod(output.shape) * kind.size_bytes:
        _refuse(f"output '{output.name[:64]}' has {size} bytes, which do not fit its shape")
    return size


def _outputs(outputs: Sequence[_Output], rest: memoryview) -> tuple[list[Tensor], int]:
    """The tensors, and how many bytes of `rest` they took. Raises InvalidRequest."""
    tensors, at = [], 0
    for output in outputs:
        name, datatype = output.name, output.datatype
        if datatype not in DATATYPES:
            _refuse(_unknown_datatype(output))
        size = _binary_bytes(output)
        if output.data is msgspec.UNSET:
            if size > len(rest) - at:
                _refuse(f"output '{name[:64]}' has {size} bytes, of which not all came")
            array = from_binary(name, datatype, output.shape, rest[at : at + size])
            at += size
        elif size:
            _refuse(f"output '{name[:64]}' has both data and binary_data_size")
        else:
            array = _from_json(name, datatype, output.shape, output.data)
        tensors.append(Tensor(name, datatype, array))
    return tensors, at


def _from_json(name: str, datatype: str, shape: Sequence[int], data: msgspec.Raw) -> Array:
    """Decode an output's `data`, in which null stands for a NaN or an infinity."""
    kind = DATATYPES[datatype]
    if kind.kind != "float" or not kind.in_json or b"null" not in bytes(data):
        return from_json(name, datatype, shape, data)
    elements = np.array(msgspec.json.decode(data), dtype=np.object_).ravel().tolist()
    numbers = msgspec.convert(elements, list[float | None])
    with np.errstate(over="ignore"):
        return shaped(name, np.array(numbers, dtype=np.float64).astype(kind.dtype), shape)


def _refuse(reason: str, cause: BaseException | None = None) -> NoReturn:
    raise _failed(reason) from cause  # a name for it here would be a cycle that keeps the body


def _failed(reason: str) -> EndpointFailed:
    error = EndpointFailed(_MESSAGE)
    error.reason = reason[:1024]
    return error
