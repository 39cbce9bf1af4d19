"""Triton's ModelConfig, as `config.pbtxt` and as JSON, to and from the platform's own.

Both forms are first read against the table `_MODEL_CONFIG`, which knows every field of the
message: a field that the table lacks is an error, one that would change what a model answers but
is not offered here refuses the model, and one that only tunes another server is named and
skipped.
Source: triton-inference-server/common `protobuf/model_config.proto`; the rules of `check` are
those of triton-inference-server/core `src/model_config_utils.cc`, `ValidateModelConfig`.
"""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgspec

from headrace.adapters.model_repository import textproto
from headrace.domain.datatypes import DATATYPES
from headrace.domain.errors import ModelLoadFailed
from headrace.domain.models import (
    AllVersions,
    Batching,
    LatestVersions,
    ModelConfig,
    Platform,
    QueuePolicy,
    Signature,
    SpecificVersions,
    TensorSpec,
    VersionPolicy,
    Warmup,
    WarmupInput,
)

log = logging.getLogger(__name__)

LabelReader: TypeAlias = Callable[[str], tuple[str, ...]]
"""Answers the labels in a file of the model's folder, or raises ModelLoadFailed."""
Note: TypeAlias = Callable[[str], None]
"""Told, in a sentence, what a configuration asks for and does not get."""

MAX_INSTANCES: Final = 1024
MAX_THREADS: Final = 1024
MAX_PRIORITY_LEVELS: Final = 1024
MAX_WARMUP_ELEMENTS: Final = 2**30  # of one warm-up tensor, its batch included


def from_text(
    text: str, *, name: str, labels: LabelReader, note: Note = log.warning
) -> ModelConfig:
    """Read a `config.pbtxt` of model `name`. Only its fields: see `check` for their harmony.

    Raises:
        ModelLoadFailed: malformed, an unknown field, a wrong type, or not offered here; the
            message names the line.
    """
    origin = "config.pbtxt"
    reading = _Reading()
    try:
        raw = _read_text(textproto.parse(text), _MODEL_CONFIG, "", reading)
        config = _model_config(raw, name, labels, reading)
    except (textproto.TextFormatError, _Invalid) as error:
        raise _failed(name, origin, error) from error
    _tell(reading, name, origin, note)
    return config


def from_json(
    data: bytes, *, name: str, labels: LabelReader, note: Note = log.warning
) -> ModelConfig:
    """Read the JSON form that `/config` answers and `load_model(config=...)` sends.

    Keys are the proto's names; 64-bit integers may be strings; enum values are names.

    Raises:
        ModelLoadFailed: as `from_text`; the message names the field's path.
    """
    origin = "config"
    reading = _Reading()
    try:
        raw = _read_json(_decode(data), _MODEL_CONFIG, "", reading)
        config = _model_config(raw, name, labels, reading)
    except _Invalid as error:
        raise _failed(name, origin, error) from error
    _tell(reading, name, origin, note)
    return config


def check(config: ModelConfig) -> None:
    """Refuse values that cannot go together, or that no model can mean.

    Raises:
        ModelLoadFailed: with the first problem found.
    """
    problem = next(_problems(config), None)
    if problem is not None:
        msg = f"model '{config.name}': {problem}"
        raise ModelLoadFailed(msg)


def to_json_object(
    config: ModelConfig, signature: Signature, max_batch_size: int
) -> dict[str, Any]:
    """Write what `GET /v2/models/{m}/config` answers.

    `signature` has the batch axis where `max_batch_size` > 0; the `dims` written have not. 64-bit
    integers are numbers, not strings.
    """
    answer: dict[str, Any] = {
        "name": config.name,
        "platform": "onnxruntime_onnx" if config.platform == "onnxruntime_onnx" else "",
        "backend": _BACKENDS[config.platform],
        "runtime": "",
        "version_policy": _version_policy_json(config.version_policy),
        "max_batch_size": max_batch_size,
        "input": [_input_json(spec, max_batch_size) for spec in signature.inputs],
        "output": [_output_json(spec, max_batch_size) for spec in signature.outputs],
        "batch_input": [],
        "batch_output": [],
        "instance_group": [
            {
                "name": f"{config.name}_0",
                "kind": "KIND_CPU",
                "count": config.instances,
                "gpus": [],
                "secondary_devices": [],
                "profile": [],
                "passive": False,
                "host_policy": "",
            }
        ],
        "default_model_filename": config.filename,
        "cc_model_filenames": {},
        "metric_tags": {},
        "parameters": {key: {"string_value": v} for key, v in config.parameters.items()},
        "model_warmup": [_warmup_json(warmup) for warmup in config.warmup],
        "model_transaction_policy": {"decoupled": False},
    }
    if config.batching is not None:
        answer["dynamic_batching"] = _batching_json(config.batching)
    return answer


# The message's fields


class _Invalid(ValueError):
    """A configuration's problem, not yet with the model's name and the file's."""

    line = 0  # in the text form, once known


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

_BACKENDS: Final[Mapping[Platform | None, str]] = {
    "onnxruntime_onnx": "onnxruntime",
    "python": "python",
    None: "",
}
_PLATFORMS: Final[Mapping[str, Platform]] = {
    "onnxruntime_onnx": "onnxruntime_onnx",
    "onnxruntime": "onnxruntime_onnx",
    "python": "python",
}
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
    "model_transaction_policy": {
        "decoupled": _Refused("a request has exactly one response here"),
    },
    "model_repository_agents": {
        "agents": _Refused("no program runs when a model is loaded"),
    },
    "response_cache": _HINT,
    "model_metrics": _HINT,
}


# Reading either form against the table: only fields that are set, in plain values


class _Reading:
    """What one reading met beside the values."""

    def __init__(self) -> None:
        self.skipped: list[str] = []
        self.notes: list[str] = []


def _read_text(
    message: textproto.Message, fields: Mapping[str, _Kind], path: str, reading: _Reading
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field, given in message.items():
        try:
            kind = _kind(field, fields, path)
            if isinstance(kind, _Refused | _Hint):
                if any(value not in _DEFAULTS for value in given):
                    _skip_or_refuse(kind, _join(path, field), reading)
            else:
                values[field] = _text_field(given, kind, _join(path, field), reading)
        except _Invalid as error:
            error.line = error.line or message.lines[field]  # the innermost is the closest
            raise
    return values


def _text_field(given: list[textproto.Value], kind: _Kind, path: str, reading: _Reading) -> object:
    if isinstance(kind, _Many):
        of = kind.of
        return [_text_value(v, of, f"{path}[{i}]", reading) for i, v in enumerate(given)]
    if isinstance(kind, _Map):
        entry: Mapping[str, _Kind] = {"key": kind.key, "value": kind.of}
        key, value = ("" if kind.key == "string" else 0), ("" if kind.of == "string" else {})
        pairs: dict[Any, Any] = {}
        for i, pair in enumerate(given):
            read: Any = _text_value(pair, entry, f"{path}[{i}]", reading)
            pairs[read.get("key", key)] = read.get("value", value)
        return pairs
    if len(given) != 1:
        msg = f"'{path}' takes one value, and is given {len(given)}"
        raise _Invalid(msg)
    return _text_value(given[0], kind, path, reading)


def _text_value(value: textproto.Value, kind: _Kind, path: str, reading: _Reading) -> object:
    if isinstance(kind, Mapping):
        if isinstance(value, textproto.Message):
            return _read_text(value, kind, path, reading)
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


def _read_json(
    value: object, fields: Mapping[str, _Kind], path: str, reading: _Reading
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
                _skip_or_refuse(kind, _join(path, field), reading)
        else:
            values[field] = _json_value(given, kind, _join(path, field), reading)
    return values


def _json_value(value: object, kind: _Kind, path: str, reading: _Reading) -> object:
    if isinstance(kind, _Many):
        if not isinstance(value, list):
            raise _expected("a list", path)
        return [_json_value(v, kind.of, f"{path}[{i}]", reading) for i, v in enumerate(value)]
    if isinstance(kind, _Map):
        if not isinstance(value, dict):
            raise _expected("an object", path)
        return {
            _json_value(key, kind.key, path, reading): _json_value(
                entry, kind.of, _join(path, key), reading
            )
            for key, entry in value.items()
        }
    if isinstance(kind, Mapping):
        return _read_json(value, kind, path, reading)
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


def _skip_or_refuse(kind: _Refused | _Hint, path: str, reading: _Reading) -> None:
    if isinstance(kind, _Refused):
        msg = f"{path} is not supported: {kind.reason}"
        raise _Invalid(msg)
    reading.skipped.append(path)


def _kind(field: str, fields: Mapping[str, _Kind], path: str) -> _Kind:
    kind = fields.get(field)
    if kind is None:
        close = difflib.get_close_matches(field[:64], fields, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        msg = f"unknown field '{_join(path, field)}'{hint}"
        raise _Invalid(msg)
    return kind


def _join(path: str, field: str) -> str:
    shown = ascii(field[:64])[1:-1]
    return f"{path}.{shown}" if path else shown


def _expected(what: str, path: str) -> _Invalid:
    return _Invalid(f"'{path}' must be {what}" if path else f"it must be {what}")


def _decode(data: bytes) -> object:
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        msg = f"it is not JSON: {error}"
        raise _Invalid(msg) from error


def _failed(name: str, origin: str, error: ValueError) -> ModelLoadFailed:
    if isinstance(error, textproto.TextFormatError):
        return ModelLoadFailed(f"model '{name}': {origin} {error}")
    line = f" line {error.line}" if isinstance(error, _Invalid) and error.line else ""
    return ModelLoadFailed(f"model '{name}': {origin}{line}: {error}")


def _tell(reading: _Reading, name: str, origin: str, note: Note) -> None:
    if reading.skipped:
        fields = ", ".join(dict.fromkeys(reading.skipped))
        note(f"model '{name}': {origin} sets what has no effect here: {fields}")
    for text in dict.fromkeys(reading.notes):
        note(f"model '{name}': {text}")


# From the values to the platform's own


def _model_config(
    raw: Mapping[str, Any], name: str, labels: LabelReader, reading: _Reading
) -> ModelConfig:
    given = raw.get("name", "")
    if given not in {"", name}:
        msg = f"it is named '{ascii(given[:64])[1:-1]}', but its folder is named '{name}'"
        raise _Invalid(msg)
    inputs = tuple(_tensor("input", spec, ()) for spec in raw.get("input", ()))
    outputs = tuple(
        _tensor("output", spec, labels(file) if (file := spec.get("label_filename")) else ())
        for spec in raw.get("output", ())
    )
    # a proto's absent number is its 0; only where nothing else is told may the model's file decide
    max_batch_size = raw.get("max_batch_size", 0 if inputs or outputs else None)
    batching = raw.get("dynamic_batching")
    parameters = {key: p.get("string_value", "") for key, p in raw.get("parameters", {}).items()}
    return ModelConfig(
        name=name,
        platform=_platform(raw),
        max_batch_size=max_batch_size,
        inputs=inputs,
        outputs=outputs,
        batching=None if batching is None else _batching(batching),
        instances=_instances(raw.get("instance_group", ()), reading),
        version_policy=_version_policy(raw.get("version_policy", {})),
        warmup=tuple(_warmup(warmup) for warmup in raw.get("model_warmup", ())),
        parameters=parameters,
        intra_op_threads=_threads(parameters),
        filename=raw.get("default_model_filename", ""),
    )


def _platform(raw: Mapping[str, Any]) -> Platform | None:
    found: set[Platform] = set()
    for field in ("platform", "backend"):
        value = raw.get(field, "")
        if value and value not in _PLATFORMS:
            msg = (
                f"{field} '{ascii(value[:64])[1:-1]}' does not run in this process; it takes "
                f"{', '.join(_PLATFORMS)}: serve this model from a Triton"
            )
            raise _Invalid(msg)
        if value:
            found.add(_PLATFORMS[value])
    if len(found) > 1:
        msg = f"platform '{raw['platform']}' and backend '{raw['backend']}' do not go together"
        raise _Invalid(msg)
    return found.pop() if found else None


def _tensor(kind: str, raw: Mapping[str, Any], labels: tuple[str, ...]) -> TensorSpec:
    name = raw.get("name", "")
    if not name:
        msg = f"an {kind} has no 'name'"
        raise _Invalid(msg)
    where = f"{kind} '{name}'"
    if "dims" not in raw:
        msg = f"{where} has no 'dims'"
        raise _Invalid(msg)
    reshape = raw.get("reshape")
    if reshape is not None and reshape.get("shape", []) != raw["dims"]:
        msg = f"{where}: reshape is not supported: give the model's own shape as 'dims'"
        raise _Invalid(msg)
    return TensorSpec(
        name=name,
        datatype=_datatype(raw, where),
        shape=tuple(raw["dims"]),
        optional=raw.get("optional", False),
        labels=labels,
    )


def _datatype(raw: Mapping[str, Any], where: str) -> str:
    name = raw.get("data_type", "TYPE_INVALID")
    if name == "TYPE_INVALID":
        msg = f"{where} has no 'data_type'"
        raise _Invalid(msg)
    return "BYTES" if name == "TYPE_STRING" else str(name).removeprefix("TYPE_")


def _batching(raw: Mapping[str, Any]) -> Batching:
    return Batching(
        preferred_sizes=tuple(sorted(set(raw.get("preferred_batch_size", ())))),
        max_delay_us=raw.get("max_queue_delay_microseconds", 0),
        preserve_ordering=raw.get("preserve_ordering", False),
        priority_levels=raw.get("priority_levels", 0),
        default_priority=raw.get("default_priority_level", 0),
        default_policy=_queue_policy(raw.get("default_queue_policy", {})),
        priority_policies={
            level: _queue_policy(policy)
            for level, policy in raw.get("priority_queue_policy", {}).items()
        },
    )


def _queue_policy(raw: Mapping[str, Any]) -> QueuePolicy:
    return QueuePolicy(
        max_queue_size=raw.get("max_queue_size", 0),
        default_timeout_us=raw.get("default_timeout_microseconds", 0),
        timeout_action="delay" if raw.get("timeout_action") == "DELAY" else "reject",
        allow_timeout_override=raw.get("allow_timeout_override", False),
    )


def _instances(groups: Sequence[Mapping[str, Any]], reading: _Reading) -> int:
    for group in groups:
        if group.get("count", 0) < 0:
            msg = "an instance_group's count is negative"
            raise _Invalid(msg)
        if group.get("kind") == "KIND_GPU" or group.get("gpus"):
            reading.notes.append("its instance_group asks for a GPU; it runs on the CPU here")
    # 0 is the proto's absent number, and a group has at least one instance
    return sum(group.get("count", 0) or 1 for group in groups) or 1


def _threads(parameters: Mapping[str, str]) -> int:
    """What Triton's ONNX Runtime backend is told by a parameter; its 0 leaves the choice."""
    given = parameters.get("intra_op_thread_count", "").strip() or "0"
    if not given.isdecimal() or len(given) > len(str(MAX_THREADS)):
        msg = f"parameter intra_op_thread_count must be a number up to {MAX_THREADS}"
        raise _Invalid(msg)
    return int(given) or 1


def _version_policy(raw: Mapping[str, Any]) -> VersionPolicy:
    if len(raw) > 1:
        msg = f"version_policy takes one of latest, all, specific, and has {', '.join(raw)}"
        raise _Invalid(msg)
    if "all" in raw:
        return AllVersions()
    if "specific" in raw:
        return SpecificVersions(tuple(str(v) for v in raw["specific"].get("versions", ())))
    return LatestVersions(raw.get("latest", {}).get("num_versions", 0) or 1)


def _warmup(raw: Mapping[str, Any]) -> Warmup:
    name = raw.get("name", "")
    inputs = {
        tensor: _warmup_input(tensor, spec, name) for tensor, spec in raw.get("inputs", {}).items()
    }
    return Warmup(name, inputs, raw.get("batch_size", 0) or 1, raw.get("count", 0) or 1)


def _warmup_input(tensor: str, raw: Mapping[str, Any], warmup: str) -> WarmupInput:
    where = f"model_warmup '{warmup}', input '{tensor}'"
    # which one is set counts, not its value
    given = [field for field in ("zero_data", "random_data", "input_data_file") if field in raw]
    if len(given) != 1:
        msg = f"{where} takes one of zero_data, random_data, input_data_file"
        raise _Invalid(msg)
    datatype, shape = _datatype(raw, where), tuple(raw.get("dims", ()))
    match given[0]:
        case "zero_data":
            return WarmupInput(datatype, shape)
        case "random_data":
            return WarmupInput(datatype, shape, "random")
    return WarmupInput(datatype, shape, "file", raw["input_data_file"])


# What cannot be


def _problems(config: ModelConfig) -> Iterator[str]:
    size = config.max_batch_size
    if size is not None and size < 0:
        yield f"max_batch_size is {size}; it must be 0 (no batch axis) or more"
    if not 1 <= config.instances <= MAX_INSTANCES:
        yield f"it asks for {config.instances} instances; 1 to {MAX_INSTANCES} are allowed"
    if not 1 <= config.intra_op_threads <= MAX_THREADS:
        yield f"it asks for {config.intra_op_threads} threads; 1 to {MAX_THREADS} are allowed"
    if config.filename in {".", ".."} or not set("/\\\0").isdisjoint(config.filename):
        shown = ascii(config.filename[:64])
        yield f"its file name {shown} is not allowed: it must name a file in the version's folder"
    default_s, max_s = config.default_timeout_s, config.max_timeout_s
    for timeout_s in (default_s, max_s):
        if timeout_s is not None and not 0 < timeout_s < math.inf:
            yield f"a timeout is {timeout_s} s; it must be positive and finite"
    if default_s is not None and max_s is not None and default_s > max_s:
        yield f"its default timeout ({default_s} s) is longer than its maximum ({max_s} s)"
    yield from _tensor_problems("input", config.inputs)
    yield from _tensor_problems("output", config.outputs)
    if config.batching is not None:
        yield from _batching_problems(config.batching, size)
    for warmup in config.warmup:
        yield from _warmup_problems(warmup, size)


def _tensor_problems(kind: str, specs: Sequence[TensorSpec]) -> Iterator[str]:
    seen: set[str] = set()
    for spec in specs:
        if spec.name in seen:
            yield f"{kind} '{spec.name}' is configured twice"
        seen.add(spec.name)
        if spec.datatype not in DATATYPES:
            known = ", ".join(DATATYPES)
            yield f"{kind} '{spec.name}' has the unknown datatype '{spec.datatype}'; known: {known}"
        if any(dim < 1 and dim != -1 for dim in spec.shape):
            shape = list(spec.shape)
            yield f"{kind} '{spec.name}' has shape {shape}; an axis is 1 or more, or -1 (any size)"


def _batching_problems(batching: Batching, size: int | None) -> Iterator[str]:
    if size == 0:
        yield "dynamic_batching needs a max_batch_size above 0"
    for preferred in batching.preferred_sizes:
        if preferred < 1:
            yield f"dynamic_batching prefers a batch of {preferred}; it must be 1 or more"
        if size is not None and preferred > size:
            yield f"dynamic_batching prefers a batch of {preferred}, over max_batch_size {size}"
    yield from _priority_problems(batching)
    if batching.preserve_ordering:
        if batching.priority_levels > 1:
            yield "preserve_ordering allows one priority level only"
        for policy in (batching.default_policy, *batching.priority_policies.values()):
            if policy.default_timeout_us and policy.timeout_action == "delay":
                yield "preserve_ordering does not go with a queue policy that delays"


def _priority_problems(batching: Batching) -> Iterator[str]:
    levels = batching.priority_levels
    if levels > MAX_PRIORITY_LEVELS:
        yield f"it asks for {levels} priority levels; at most {MAX_PRIORITY_LEVELS} are allowed"
    if levels:
        if not 1 <= batching.default_priority <= levels:
            yield f"its default priority is {batching.default_priority}; it must be 1 to {levels}"
        for level in batching.priority_policies:
            if not 1 <= level <= levels:
                yield f"a queue policy is for priority {level}; priorities are 1 to {levels}"


def _warmup_problems(warmup: Warmup, size: int | None) -> Iterator[str]:
    where = f"warm-up '{warmup.name}'"
    if warmup.batch_size < 1 or warmup.count < 1:
        yield f"{where}: batch_size and count must be 1 or more"
    if size is not None and warmup.batch_size > max(size, 1):
        yield f"{where} has a batch of {warmup.batch_size}, over max_batch_size {size}"
    for name, spec in warmup.inputs.items():
        if spec.datatype not in DATATYPES:
            yield f"{where}, input '{name}' has the unknown datatype '{spec.datatype}'"
        if any(dim < 0 for dim in spec.shape):
            yield f"{where}, input '{name}' has shape {list(spec.shape)}; every axis needs a size"
        elif math.prod(spec.shape) * warmup.batch_size > MAX_WARMUP_ELEMENTS:
            yield f"{where}, input '{name}' has over {MAX_WARMUP_ELEMENTS} elements"


# To JSON


def _data_type_json(datatype: str) -> str:
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


def _dims_json(spec: TensorSpec, max_batch_size: int) -> list[int]:
    return list(spec.shape[1:] if max_batch_size > 0 else spec.shape)


def _input_json(spec: TensorSpec, max_batch_size: int) -> dict[str, Any]:
    return {
        "name": spec.name,
        "data_type": _data_type_json(spec.datatype),
        "format": "FORMAT_NONE",
        "dims": _dims_json(spec, max_batch_size),
        "is_shape_tensor": False,
        "allow_ragged_batch": False,
        "optional": spec.optional,
        "is_non_linear_format_io": False,
    }


def _output_json(spec: TensorSpec, max_batch_size: int) -> dict[str, Any]:
    return {
        "name": spec.name,
        "data_type": _data_type_json(spec.datatype),
        "dims": _dims_json(spec, max_batch_size),
        "label_filename": "",
        "is_shape_tensor": False,
        "is_non_linear_format_io": False,
    }


def _version_policy_json(policy: VersionPolicy) -> dict[str, Any]:
    match policy:
        case AllVersions():
            return {"all": {}}
        case SpecificVersions(versions):
            # the proto's versions are int64: names, which Triton lacks, cannot be told
            numbers = [int(v) for v in versions if v.isdecimal() and int(v) < 2**63]
            return {"specific": {"versions": numbers}}
        case LatestVersions(count):
            return {"latest": {"num_versions": count}}


def _batching_json(batching: Batching) -> dict[str, Any]:
    return {
        "preferred_batch_size": list(batching.preferred_sizes),
        "max_queue_delay_microseconds": batching.max_delay_us,
        "preserve_ordering": batching.preserve_ordering,
        "priority_levels": batching.priority_levels,
        "default_priority_level": batching.default_priority,
        "default_queue_policy": _queue_policy_json(batching.default_policy),
        "priority_queue_policy": {
            str(level): _queue_policy_json(policy)
            for level, policy in batching.priority_policies.items()
        },
    }


def _queue_policy_json(policy: QueuePolicy) -> dict[str, Any]:
    return {
        "timeout_action": policy.timeout_action.upper(),
        "default_timeout_microseconds": policy.default_timeout_us,
        "allow_timeout_override": policy.allow_timeout_override,
        "max_queue_size": policy.max_queue_size,
    }


def _warmup_json(warmup: Warmup) -> dict[str, Any]:
    inputs: dict[str, Any] = {}
    for name, spec in warmup.inputs.items():
        data: dict[str, Any]
        match spec.fill:
            case "zero":
                data = {"zero_data": True}
            case "random":
                data = {"random_data": True}
            case "file":
                data = {"input_data_file": spec.data_file}
        inputs[name] = {
            "data_type": _data_type_json(spec.datatype),
            "dims": list(spec.shape),
            **data,
        }
    return {
        "name": warmup.name,
        "batch_size": warmup.batch_size,
        "inputs": inputs,
        "count": warmup.count,
    }
