"""A generate request: one flat JSON object, whose members a model's inputs give their meaning.

A member that is named as an input is that tensor, `id` is the request's, and the others, with
those of a nested `parameters`, are parameters. Source: Triton `extension_generate.md`, and for
the shapes what its server does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, NoReturn, TypeAlias

import msgspec

from headrace.domain.binary import shaped
from headrace.domain.datatypes import DATATYPES
from headrace.domain.errors import InvalidRequest
from headrace.domain.models import TensorSpec
from headrace.domain.tensors import InferContent, Tensor
from headrace.transport.oip_rest.payload import refuse_duplicate_keys
from headrace.transport.oip_rest.tensor_json import list_from_json

#: The members of a JSON object by their names, each still text.
Members: TypeAlias = Mapping[str, msgspec.Raw]

_Parameter: TypeAlias = bool | int | float | str

PARAMETERS: Final = "parameters"
_ID: Final = "id"
_TIMEOUT: Final = "timeout"
_MAX_MEMBERS: Final = 1024
_MAX_NAME: Final = 64  # characters of a name that messages repeat
_RESERVED: Final = "triton_"
_DYNAMIC: Final = -1
_LIST: Final = re.compile(rb"\s*\[")
_LIST_OF_LISTS: Final = re.compile(rb"\s*\[\s*\[")

_decode_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_parameter: Final = msgspec.json.Decoder(_Parameter).decode
_decode_timeout: Final = msgspec.json.Decoder(Annotated[int, msgspec.Meta(ge=0)]).decode
_decode_id: Final = msgspec.json.Decoder(str).decode


def read_members(text: bytes | msgspec.Raw, what: str = "the request body") -> Members:
    """Read one JSON object, without a look at what its members say.

    Raises:
        InvalidRequest: it is no JSON object, or names a key twice.
    """
    try:
        members = _decode_members(text)
    except msgspec.ValidationError:
        msg = f"{what} must be a JSON object"
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        msg = f"{what} is not JSON: {error}"
    except RecursionError:
        msg = f"{what} is nested too deeply"
    else:
        if len(members) > _MAX_MEMBERS:
            msg = f"{what} has {len(members)} members; {_MAX_MEMBERS} are the limit"
            raise InvalidRequest(msg)
        # of a key that came twice one value is lost, and the colons with it
        values = sum(bytes(value).count(b":") for value in members.values())
        if bytes(text).count(b":") != values + len(members):
            refuse_duplicate_keys(bytes(text))
        return members
    raise InvalidRequest(msg)


def timeout_of(members: Members) -> int:
    """The member `timeout`, or that of `parameters`, as far as it may be a parameter; 0: none."""
    nested = members.get(PARAMETERS)
    try:
        raw = members.get(_TIMEOUT) or (nested and _decode_members(nested).get(_TIMEOUT))
        return _decode_timeout(raw) if raw else 0
    except (msgspec.DecodeError, ValueError, RecursionError):
        return 0


def to_content(members: Members, inputs: Sequence[TensorSpec]) -> InferContent:
    """What a request says to a model with these inputs, whose shapes include the batch axis.

    Raises:
        InvalidRequest: naming the member.
    """
    return _Mapping(inputs).of(members)


class _Mapping:
    """One request on its way into tensors and parameters."""

    def __init__(self, inputs: Sequence[TensorSpec]) -> None:
        self._specs = {spec.name: spec for spec in inputs}
        self._tensors: dict[str, Tensor] = {}
        self._parameters: dict[str, Any] = {}

    def of(self, members: Members) -> InferContent:
        given = ""
        for name, raw in members.items():
            if name == PARAMETERS:
                self._take_parameters(raw)
            elif name == _ID and name not in self._specs:
                given = _id(raw)
            else:
                self._take(name, raw)
        return InferContent(list(self._tensors.values()), given, self._parameters)

    def _take_parameters(self, raw: msgspec.Raw) -> None:
        if PARAMETERS in self._specs:
            _refuse(
                "Keyword 'parameters' for nested schema also given as input tensor name: "
                "ask this model by infer"
            )
        for name, value in read_members(raw, "'parameters'").items():
            self._take(name, value)

    def _take(self, name: str, raw: msgspec.Raw) -> None:
        if name in self._tensors or name in self._parameters:
            _refuse(f"{_quoted(name)} is given twice: beside 'parameters' and in it")
        spec = self._specs.get(name)
        if spec is not None:
            self._tensors[name] = _tensor(spec, raw)
        else:
            self._parameters[name] = _parameter(name, raw)


def _tensor(spec: TensorSpec, raw: msgspec.Raw) -> Tensor:
    name = spec.name
    kind = DATATYPES.get(spec.datatype)
    if kind is None or not kind.in_json:
        _refuse(
            f"input '{name}' is {spec.datatype}, which has no JSON form: "
            "ask this model by infer, with binary data"
        )
    if _LIST_OF_LISTS.match(raw):
        _refuse(
            f"input '{name}' is a list of lists: give one value or a flat list, "
            "or ask this model by infer"
        )
    text = raw if _LIST.match(raw) else b"[%b]" % bytes(raw)
    array = list_from_json(name, kind.name, text)
    return Tensor(name, kind.name, shaped(name, array, _shape(spec, array.size)))


def _shape(spec: TensorSpec, count: int) -> list[int]:
    """The shape that `count` elements have: the innermost dynamic axis takes what is left.

    So a batch axis is 1, but where no other axis is dynamic.
    """
    shape = list(spec.shape)
    left = count
    for size in shape:
        if size >= 0:
            left = left // size if size and not left % size else _unfit(spec, count)
    for axis in reversed(range(len(shape))):
        if shape[axis] < 0:
            shape[axis], left = left, 1
    return shape if left == 1 else _unfit(spec, count)


def _unfit(spec: TensorSpec, count: int) -> NoReturn:
    dims = ",".join(str(max(size, _DYNAMIC)) for size in spec.shape)
    _refuse(
        f"The schema can not convert input '{spec.name}' to tensor with proper shape: "
        f"it has {count} elements, and its shape is [{dims}]"
    )


def _parameter(name: str, raw: msgspec.Raw) -> _Parameter:
    if name.startswith(_RESERVED):
        _refuse(
            f"parameter {_quoted(name)}: parameter keys starting with 'triton_' are reserved for "
            "Triton usage and should not be specified."
        )
    try:
        value: _Parameter = _decode_parameter(raw)
    except (msgspec.DecodeError, ValueError, RecursionError):
        _refuse(
            f"parameter {_quoted(name)} has invalid type. "
            "It should be a number, a boolean or a string, and is no input of this model"
        )
    return value


def _id(raw: msgspec.Raw) -> str:
    try:
        return _decode_id(raw)
    except (msgspec.DecodeError, ValueError, RecursionError):
        _refuse("'id' must be a string")


def _quoted(name: str) -> str:
    return ascii(name[:_MAX_NAME])


def _refuse(message: str) -> NoReturn:
    raise InvalidRequest(message)
