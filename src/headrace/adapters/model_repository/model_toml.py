"""The platform's own `config.toml` of a model.

Every key is optional: what is absent stays as the base has it, which is a `config.pbtxt` where
one stands beside it and the defaults of `ModelConfig` elsewhere.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias, get_args

import msgspec
from msgspec import UNSET, Meta, UnsetType

from headrace.domain.errors import ModelLoadFailed
from headrace.domain.models import (
    AllVersions,
    Batching,
    LatestVersions,
    ModelConfig,
    Platform,
    QueuePolicy,
    SpecificVersions,
    TensorSpec,
    VersionPolicy,
    Warmup,
    WarmupInput,
)

LabelReader: TypeAlias = Callable[[str], tuple[str, ...]]
"""Answers the labels in a file of the model's folder, or raises ModelLoadFailed."""


def apply(base: ModelConfig, text: str, *, labels: LabelReader) -> ModelConfig:
    """`base` with what the `config.toml` says in its place, key by key.

    `inputs`, `outputs`, `warmup` and `version_policy` are replaced whole; tables are merged.

    Raises:
        ModelLoadFailed: not TOML, an unknown key or a wrong type; the message has its full path.
    """
    try:
        file = msgspec.convert(tomllib.loads(text), _FILE)
        return _apply(base, file, labels)
    except (ValueError, RecursionError) as error:  # also of numbers with thousands of digits
        msg = f"model '{base.name}': config.toml: {_explain(error)}"
        raise ModelLoadFailed(msg) from error


# The file

_Positive: TypeAlias = Annotated[int, Meta(ge=1, le=2**31 - 1)]
_Natural: TypeAlias = Annotated[int, Meta(ge=0, le=2**31 - 1)]
_Microseconds: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)]
_Seconds: TypeAlias = Annotated[float, Meta(gt=0, le=10**9)]
_TimeoutAction: TypeAlias = Literal["reject", "delay"]
_Fill: TypeAlias = Literal["zero", "random", "file"]


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of the file."""

    def given(self, *names: str, **renamed: str) -> dict[str, Any]:
        """The keys among `names` that the file sets; `there="here"` renames `here` to `there`."""
        pairs = [(name, name) for name in names] + list(renamed.items())
        values = {there: getattr(self, here) for there, here in pairs}
        return {name: value for name, value in values.items() if value is not UNSET}


class _Timeouts(_Table, frozen=True):
    default_s: _Seconds | UnsetType = UNSET
    max_s: _Seconds | UnsetType = UNSET


class _Queue(_Table, frozen=True):
    max_size: _Natural | UnsetType = UNSET
    timeout_us: _Microseconds | UnsetType = UNSET
    timeout_action: _TimeoutAction | UnsetType = UNSET
    allow_timeout_override: bool | UnsetType = UNSET


class _PriorityQueue(_Queue, frozen=True, kw_only=True):
    priority: _Positive


class _BatchingTable(_Table, frozen=True):
    preferred_sizes: tuple[_Positive, ...] | UnsetType = UNSET
    max_delay_us: _Microseconds | UnsetType = UNSET
    preserve_ordering: bool | UnsetType = UNSET
    priority_levels: _Natural | UnsetType = UNSET
    default_priority: _Natural | UnsetType = UNSET
    queue: _Queue = _Queue()
    queues: tuple[_PriorityQueue, ...] = ()


class _VersionChoice(_Table, frozen=True):
    latest: _Positive | UnsetType = UNSET
    specific: tuple[str, ...] | UnsetType = UNSET


class _WarmupInput(_Table, frozen=True):
    name: str
    datatype: str
    shape: tuple[_Natural, ...]
    fill: _Fill | UnsetType = UNSET
    data_file: str = ""


class _Warmup(_Table, frozen=True):
    name: str
    inputs: tuple[_WarmupInput, ...]
    batch_size: _Positive = 1
    count: _Positive = 1


class _Input(_Table, frozen=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False


class _Output(_Table, frozen=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    labels: tuple[str, ...] | str = ()  # themselves, or the file that has them


class _File(_Table, frozen=True):
    platform: Platform | UnsetType = UNSET
    filename: str | UnsetType = UNSET
    max_batch_size: _Natural | UnsetType = UNSET
    instances: _Positive | UnsetType = UNSET
    intra_op_threads: _Positive | UnsetType = UNSET
    response_cache: bool | UnsetType = UNSET
    decoupled: bool | UnsetType = UNSET
    version_policy: Literal["all"] | _VersionChoice | UnsetType = UNSET
    timeouts: _Timeouts = _Timeouts()
    batching: _BatchingTable | UnsetType = UNSET
    warmup: tuple[_Warmup, ...] | UnsetType = UNSET
    parameters: dict[str, Any] = {}
    inputs: tuple[_Input, ...] | UnsetType = UNSET
    outputs: tuple[_Output, ...] | UnsetType = UNSET


#: msgspec takes a type apart when it is used first, and two threads that do so at once crash the
#: process (0.22). Models are read on threads of their own, so it is done here.
_FILE: Final = msgspec.json.Decoder(_File).type


# Laid over the base


def _apply(base: ModelConfig, file: _File, labels: LabelReader) -> ModelConfig:
    changes = file.given(
        "platform",
        "filename",
        "max_batch_size",
        "instances",
        "intra_op_threads",
        "decoupled",
        "response_cache",
    ) | file.timeouts.given(default_timeout_s="default_s", max_timeout_s="max_s")
    if file.version_policy is not UNSET:
        changes["version_policy"] = _version_policy(file.version_policy)
    if file.batching is not UNSET:
        changes["batching"] = _batching(base.batching or Batching(), file.batching)
    if file.warmup is not UNSET:
        changes["warmup"] = tuple(_warmup(i, w) for i, w in enumerate(file.warmup))
    if file.inputs is not UNSET:
        changes["inputs"] = tuple(
            TensorSpec(i.name, i.datatype, i.shape, i.optional) for i in file.inputs
        )
    if file.outputs is not UNSET:
        changes["outputs"] = tuple(_output(output, labels) for output in file.outputs)
    changes["parameters"] = {**base.parameters, **_parameters(file.parameters)}
    return msgspec.structs.replace(base, **changes)


def _version_policy(given: Literal["all"] | _VersionChoice) -> VersionPolicy:
    match given:
        case "all":
            return AllVersions()
        case _VersionChoice(latest=int(count), specific=UnsetType()):
            return LatestVersions(count)
        case _VersionChoice(latest=UnsetType(), specific=tuple(versions)):
            return SpecificVersions(versions)
    msg = f"Expected {_VERSION_POLICIES} - at `$.version_policy`"
    raise msgspec.ValidationError(msg)


def _batching(base: Batching, table: _BatchingTable) -> Batching:
    changes = table.given(
        "max_delay_us", "preserve_ordering", "priority_levels", "default_priority"
    )
    if table.preferred_sizes is not UNSET:
        changes["preferred_sizes"] = tuple(sorted(set(table.preferred_sizes)))
    policies = dict(base.priority_policies)
    for queue in table.queues:
        policies[queue.priority] = _queue(policies.get(queue.priority, QueuePolicy()), queue)
    return msgspec.structs.replace(
        base,
        default_policy=_queue(base.default_policy, table.queue),
        priority_policies=policies,
        **changes,
    )


def _queue(base: QueuePolicy, table: _Queue) -> QueuePolicy:
    changes = table.given(
        "timeout_action",
        "allow_timeout_override",
        max_queue_size="max_size",
        default_timeout_us="timeout_us",
    )
    return msgspec.structs.replace(base, **changes)


def _warmup(index: int, table: _Warmup) -> Warmup:
    inputs = {}
    for i, spec in enumerate(table.inputs):
        fill = spec.fill
        if fill is UNSET:
            fill = "file" if spec.data_file else "zero"
        if (fill == "file") != bool(spec.data_file):
            path = f"$.warmup[{index}].inputs[{i}].data_file"
            msg = f'Expected a name with fill = "file", and none without - at `{path}`'
            raise msgspec.ValidationError(msg)
        inputs[spec.name] = WarmupInput(spec.datatype, spec.shape, fill, spec.data_file)
    return Warmup(table.name, inputs, table.batch_size, table.count)


def _output(table: _Output, labels: LabelReader) -> TensorSpec:
    read = labels(table.labels) if isinstance(table.labels, str) else table.labels
    file = table.labels if isinstance(table.labels, str) else ""
    return TensorSpec(table.name, table.datatype, table.shape, labels=read, label_filename=file)


def _parameters(given: Mapping[str, Any]) -> dict[str, str]:
    # by hand: msgspec does not name the key of a table whose keys are free
    for key, value in given.items():
        if not isinstance(value, str):
            msg = f"Expected `str`, got `{type(value).__name__}` - at `$.parameters.{key}`"
            raise msgspec.ValidationError(msg)
    return dict(given)


_VERSION_POLICIES: Final = 'one of "all", {latest = N}, {specific = ["1", "2"]}'
# what msgspec leaves out of its message, by the last part of the path
_CHOICES: Final = {
    "fill": f"one of {', '.join(get_args(_Fill))}",
    "platform": f"one of {', '.join(get_args(Platform))}",
    "timeout_action": f"one of {', '.join(get_args(_TimeoutAction))}",
    "version_policy": _VERSION_POLICIES,
}
_CHOICE: Final = re.compile(r"Invalid enum value (?P<given>.*)", re.DOTALL)
_UNKNOWN: Final = re.compile(
    r"Object contains unknown field `(?P<field>.*?)`(?P<rest>.*)", re.DOTALL
)
_PATH: Final = re.compile(r"(?P<what>.*) - at `\$\.(?P<path>.*)`", re.DOTALL)


def _explain(error: Exception) -> str:
    """The error, with the path of the key in front."""
    text = str(error)
    found = _PATH.fullmatch(text)
    path, what = (found["path"], found["what"]) if found else ("", text)
    if unknown := _UNKNOWN.fullmatch(what):
        path = f"{path}.{unknown['field']}" if path else unknown["field"]
        return f"unknown key '{path}'"
    if choice := _CHOICE.fullmatch(what):
        what = f"expected {_CHOICES[path.rpartition('.')[2]]}, got {choice['given']}"
    return f"'{path}': {what[:1].lower()}{what[1:]}" if path else what
