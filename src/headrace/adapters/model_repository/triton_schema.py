"""The fields of Triton's ModelConfig, and reading a `config.pbtxt` or its JSON against them.

The table `_MODEL_CONFIG` knows every field of the message: a field that the table lacks is an
error, one that would change what a model answers but is not offered here refuses the model, and
one that only tunes another server is skipped.
Source: triton-inference-server/common `protobuf/model_config.proto`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgspec

from headrace.adapters.model_repository import textproto


class Mismatch(ValueError):
    """A configuration's problem, not yet with the model's name and the file's.

    `place` in the text form is "line 3", perhaps with its column; "" elsewhere.
    """

    place = ""


class Fields(NamedTuple):
    """What a configuration sets.

    `values` are plain and nest as the message does: enums are their names, 64-bit integers are
    int. `skipped` has the paths of the fields that have no effect here.
    """

    values: dict[str, Any]
    skipped: list[str]


def read_text(text: str) -> Fields:
    """Read a `config.pbtxt`.

    Raises:
        Mismatch: malformed, an unknown field, a wrong type, or not offered here; with its line.
    """
    skipped: list[str] = []
    try:
        message = textproto.parse(text)
    except textproto.TextFormatError as error:
        mismatch = Mismatch(error.reason)
        mismatch.place = f"line {error.line}, column {error.column}"
        raise mismatch from error
    return Fields(_text_message(message, _MODEL_CONFIG, "", skipped), skipped)


def read_json(data: bytes) -> Fields:
    """Read the JSON form. Keys are the proto's names; 64-bit integers may be strings.

    Raises:
        Mismatch: as `read_text`, without a line.
    """
    skipped: list[str] = []
    try:
        value = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        msg = f"it is not JSON: {error}"
        raise Mismatch(msg) from error
    return Fields(_json_message(value, _MODEL_CONFIG, "", skipped), skipped)


# The message's fields


class _Enum(NamedTuple):
    values: tuple[str, ...]  # by number


class _Many(NamedTuple):
    of: _Kind


class _Map(NamedTuple):
    key: Literal["string", "uint64"]
    of: _Kind


class _Refused(NamedTuple):
    reason: str  # completes "<field> is not supported: "


class _Hint(NamedTuple):
    """Tunes another server; not looked into."""


_Kind: TypeAlias = "str | _Enum | _Many | _Map | _Refused | _Hint | Mapping[str, _Kind]"
_HINT: Final = _Hint()
_INTEGERS: Final[Mapping[str, tuple[int, int]]] = {
    "int32": (-(2**31), 2**31 - 1),
    "uint32": (0, 2**32 - 1),
    "int64": (-(2**63), 2**63 - 1),
    "uint64": (0, 2**64 - 1),
}
# in the order of the enum's numbers, which a configuration may use in place of names
_DATA_TYPE: Final = _Enum(
    (
        "TYPE_INVALID",
        "TYPE_BOOL",
        "TYPE_UINT8",
        "TYPE_UINT16",
        "TYPE_UINT32",
        "TYPE_UINT64",
        "TYPE_INT8",
        "TYPE_INT16",
        "TYPE_INT32",
        "TYPE_INT64",
        "TYPE_FP16",
        "TYPE_FP32",
        "TYPE_FP64",
        "TYPE_STRING",
        "TYPE_BF16",
    )
)
_GROUP_KIND: Final = _Enum(("KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"))
_TIMEOUT_ACTION: Final = _Enum(("REJECT", "DELAY"))

_RESHAPE: Final[_Kind] = {"shape": _Many("int64")}
_TENSORRT_ONLY: Final = _Refused("it is for TensorRT models")
_INPUT: Final[_Kind] = {
    "name": "string",
    "data_type": _DATA_TYPE,
    "format": _HINT,
    "dims": _Many("int64"),
    "reshape": _RESHAPE,
    "is_shape_tensor": _TENSORRT_ONLY,
    "allow_ragged_batch": _Refused("requests of different shapes are batched apart"),
    "optional": "bool",
    "is_non_linear_format_io": _TENSORRT_ONLY,
}
_OUTPUT: Final[_Kind] = {
    "name": "string",
    "data_type": _DATA_TYPE,
    "dims": _Many("int64"),
    "reshape": _RESHAPE,
    "label_filename": "string",
    "is_shape_tensor": _TENSORRT_ONLY,
    "is_non_linear_format_io": _TENSORRT_ONLY,
}
_QUEUE_POLICY: Final[_Kind] = {
    "timeout_action": _TIMEOUT_ACTION,
    "default_timeout_microseconds": "uint64",
    "allow_timeout_override": "bool",
    "max_queue_size": "uint32",
}
_MODEL_CONFIG: Final[Mapping[str, _Kind]] = {
    "name": "string",
    "platform": "string",
    "backend": "string",
    "runtime": _HINT,
    "version_policy": {
        "latest": {"num_versions": "uint32"},
        "all": {},
        "specific": {"versions": _Many("int64")},
    },
    "max_batch_size": "int32",
    "input": _Many(_INPUT),
    "output": _Many(_OUTPUT),
    "batch_input": _Refused("the platform adds no inputs of its own to a batch"),
    "batch_output": _Refused("the platform splits every output along its batch axis"),
    "optimization": _HINT,
    "dynamic_batching": {
        "preferred_batch_size": _Many("int32"),
        "max_queue_delay_microseconds": "uint64",
        "preserve_ordering": "bool",
        "priority_levels": "uint64",
        "default_priority_level": "uint64",
        "default_queue_policy": _QUEUE_POLICY,
        "priority_queue_policy": _Map("uint64", _QUEUE_POLICY),
    },
    "sequence_batching": _Refused("requests are independent here; serve it from a Triton"),
    "ensemble_scheduling": _Refused("models are served one by one; serve it from a Triton"),
    "instance_group": _Many(
        {
            "name": "string",
            "kind": _GROUP_KIND,
            "count": "int32",
            "gpus": _Many("int32"),
            "rate_limiter": _HINT,
            "secondary_devices": _HINT,
            "profile": _HINT,
            "passive": _HINT,
            "host_policy": _HINT,
        }
    ),
    "default_model_filename": "string",
    "cc_model_filenames": _HINT,
    "metric_tags": _HINT,
    "parameters": _Map("string", {"string_value": "string"}),
    "model_warmup": _Many(
        {
            "name": "string",
            "batch_size": "uint32",
            "count": "uint32",
            "inputs": _Map(
                "string",
                {
                    "data_type": _DATA_TYPE,
                    "dims": _Many("int64"),
                    "zero_data": "bool",
                    "random_data": "bool",
                    "input_data_file": "string",
                },
            ),
        }
    ),
    "model_operations": {
        "op_library_filename": _Refused("native libraries of a model are not loaded"),
    },
    "model_transaction_policy": {"decoupled": "bool"},
    "model_repository_agents": {
        "agents": _Refused("no program runs when a model is loaded"),
    },
    "response_cache": {"enable": "bool"},
    "model_metrics": _HINT,
}


# Reading either form: only fields that are set


def _text_message(
    message: textproto.Message, fields: Mapping[str, _Kind], path: str, skipped: list[str]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field, given in message.items():
        try:
            kind = _kind(field, fields, path)
            if isinstance(kind, _Refused | _Hint):
                if any(value not in _DEFAULTS for value in given):
                    _skip_or_refuse(kind, _join(path, field), skipped)
            else:
                values[field] = _text_field(given, kind, _join(path, field), skipped)
        except Mismatch as error:
            # the innermost is the closest
            error.place = error.place or f"line {message.lines[field]}"
            raise
    return values


def _text_field(given: list[textproto.Value], kind: _Kind, path: str, skipped: list[str]) -> object:
    if isinstance(kind, _Many):
        of = kind.of
        return [_text_value(v, of, f"{path}[{i}]", skipped) for i, v in enumerate(given)]
    if isinstance(kind, _Map):
        entry: Mapping[str, _Kind] = {"key": kind.key, "value": kind.of}
        key, value = ("" if kind.key == "string" else 0), ("" if kind.of == "string" else {})
        pairs: dict[Any, Any] = {}
        for i, pair in enumerate(given):
            read: Any = _text_value(pair, entry, f"{path}[{i}]", skipped)
            pairs[read.get("key", key)] = read.get("value", value)
        return pairs
    if len(given) != 1:
        msg = f"'{path}' takes one value, and is given {len(given)}"
        raise Mismatch(msg)
    return _text_value(given[0], kind, path, skipped)


def _text_value(value: textproto.Value, kind: _Kind, path: str, skipped: list[str]) -> object:
    if isinstance(kind, Mapping):
        if isinstance(value, textproto.Message):
            return _text_message(value, kind, path, skipped)
        raise _expected("a message in { }", path)
    word = value if isinstance(value, textproto.Identifier) else None
    if kind == "bool" and word in {"t", "f"}:
        return word == "t"
    if kind == "bool" and isinstance(value, int) and value in {0, 1}:
        return bool(value)
    if isinstance(kind, _Enum) and word is None and isinstance(value, str):
        raise _expected(f"one of {', '.join(kind.values)}, without quotes", path)
    if kind == "string" and word is not None:
        raise _expected("a string in quotes", path)
    return _scalar(value, kind, path)


def _json_message(
    value: object, fields: Mapping[str, _Kind], path: str, skipped: list[str]
) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _expected("an object", path)
    values: dict[str, Any] = {}
    for field, given in value.items():
        kind = _kind(field, fields, path)
        if given is None:
            continue
        if isinstance(kind, _Refused | _Hint):
            if given not in _DEFAULTS and not (kind is _HINT and given == {}):
                _skip_or_refuse(kind, _join(path, field), skipped)
        else:
            values[field] = _json_value(given, kind, _join(path, field), skipped)
    return values


def _json_value(value: object, kind: _Kind, path: str, skipped: list[str]) -> object:
    if isinstance(kind, _Many):
        if not isinstance(value, list):
            raise _expected("a list", path)
        return [_json_value(v, kind.of, f"{path}[{i}]", skipped) for i, v in enumerate(value)]
    if isinstance(kind, _Map):
        if not isinstance(value, dict):
            raise _expected("an object", path)
        return {
            _json_value(key, kind.key, path, skipped): _json_value(
                entry, kind.of, _join(path, key), skipped
            )
            for key, entry in value.items()
        }
    if isinstance(kind, Mapping):
        return _json_message(value, kind, path, skipped)
    if isinstance(kind, _Enum) and isinstance(value, str):
        value = value.upper()  # as Triton: case_insensitive_enum_parsing
    elif kind in _INTEGERS:
        value = _json_integer(value)
    return _scalar(value, kind, path)


def _json_integer(value: object) -> object:
    """Integers as protobuf's JSON writes them: 64-bit ones as strings, perhaps 8.0 for 8."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.removeprefix("-").isdecimal() and value.isascii():
        return int(value) if len(value) <= len(str(-(2**63))) else math.inf
    return value


def _scalar(value: object, kind: _Kind, path: str) -> object:
    if isinstance(kind, _Enum):
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(kind.values):
            return kind.values[value]
        if isinstance(value, str) and value in kind.values:
            return str(value)
        raise _expected(f"one of {', '.join(kind.values)}", path)
    if kind == "string":
        if isinstance(value, str):
            return value
        raise _expected("a string", path)
    if kind == "bool":
        if isinstance(value, bool):
            return value
        raise _expected("true or false", path)
    low, high = _INTEGERS[str(kind)]
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
        return value
    raise _expected(f"an integer from {low} to {high}", path)


# A field at its default counts as not set: Triton's own JSON writes every field. Only an empty
# message says something by being there.
_DEFAULTS: Final[Sequence[Any]] = (False, 0, "", [], "f", "FORMAT_NONE")


def _skip_or_refuse(kind: _Refused | _Hint, path: str, skipped: list[str]) -> None:
    if isinstance(kind, _Refused):
        msg = f"{path} is not supported: {kind.reason}"
        raise Mismatch(msg)
    skipped.append(path)


def _kind(field: str, fields: Mapping[str, _Kind], path: str) -> _Kind:
    kind = fields.get(field)
    if kind is None:
        close = difflib.get_close_matches(field[:64], fields, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        msg = f"unknown field '{_join(path, field)}'{hint}"
        raise Mismatch(msg)
    return kind


def _join(path: str, field: str) -> str:
    shown = ascii(field[:64])[1:-1]
    return f"{path}.{shown}" if path else shown


def _expected(what: str, path: str) -> Mismatch:
    return Mismatch(f"'{path}' must be {what}" if path else f"it must be {what}")
