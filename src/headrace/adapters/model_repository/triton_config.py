"""Triton's ModelConfig, from a `config.pbtxt` or from JSON, to the platform's own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from headrace.adapters.model_repository import triton_schema
from headrace.adapters.model_repository.triton_schema import Fields, Mismatch
from headrace.domain.errors import ModelLoadFailed
from headrace.domain.model_rules import MAX_THREADS
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

log = logging.getLogger(__name__)

LabelReader: TypeAlias = Callable[[str], tuple[str, ...]]
"""Answers the labels in a file of the model's folder, or raises ModelLoadFailed."""
Note: TypeAlias = Callable[[str], None]
"""Told, in a sentence, what a configuration asks for and does not get."""

_PLATFORMS: Final[Mapping[str, Platform]] = {
    "onnxruntime_onnx": "onnxruntime_onnx",
    "onnxruntime": "onnxruntime_onnx",
    "python": "python",
}


def from_text(
    text: str,
    *,
    name: str,
    labels: LabelReader,
    note: Note = log.warning,
    any_name: bool = False,
) -> ModelConfig:
    """Read a `config.pbtxt` of model `name`. Whether its values go together is not asked here.

    With `any_name` the name that it gives itself is of no account.

    Raises:
        ModelLoadFailed: malformed, an unknown field, a wrong type, or not offered here; the
            message names the line.
    """

    def read() -> Fields:
        fields = triton_schema.read_text(text)
        if any_name:
            fields.values.pop("name", None)
        return fields

    return _read("config.pbtxt", read, name, labels, note)


def from_json(
    data: bytes, *, name: str, labels: LabelReader, note: Note = log.warning
) -> ModelConfig:
    """Read the JSON form that `/config` answers and `load_model(config=...)` sends.

    Raises:
        ModelLoadFailed: as `from_text`; the message names the field's path.
    """

    def read() -> Fields:
        fields = triton_schema.read_json(data)
        if not fields.values.get("model_transaction_policy", {}).get("decoupled"):
            # it says nothing there: JSON as Triton and this platform write it has every field
            fields.values.pop("model_transaction_policy", None)
        return fields

    return _read("config", read, name, labels, note)


def _read(
    origin: str, read: Callable[[], Fields], name: str, labels: LabelReader, note: Note
) -> ModelConfig:
    try:
        fields = read()
        config = _model_config(fields.values, name, labels)
    except Mismatch as error:
        where = f"{origin} {error.place}" if error.place else origin
        msg = f"model '{name}': {where}: {error}"
        raise ModelLoadFailed(msg) from error
    if fields.skipped:
        skipped = ", ".join(dict.fromkeys(fields.skipped))
        note(f"model '{name}': {origin} sets what has no effect here: {skipped}")
    if any(_asks_for_gpu(group) for group in fields.values.get("instance_group", ())):
        note(f"model '{name}': its instance_group asks for a GPU; it runs on the CPU here")
    return config


def _model_config(raw: Mapping[str, Any], name: str, labels: LabelReader) -> ModelConfig:
    given = raw.get("name", "")
    if given not in {"", name}:
        msg = f"it is named '{ascii(given[:64])[1:-1]}', but its folder is named '{name}'"
        raise Mismatch(msg)
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
        instances=_instances(raw.get("instance_group", ())),
        version_policy=_version_policy(raw.get("version_policy", {})),
        warmup=tuple(_warmup(warmup) for warmup in raw.get("model_warmup", ())),
        parameters=parameters,
        intra_op_threads=_threads(parameters),
        filename=raw.get("default_model_filename", ""),
        response_cache=raw.get("response_cache", {}).get("enable", False),
        decoupled=raw.get("model_transaction_policy", {}).get("decoupled"),
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
            raise Mismatch(msg)
        if value:
            found.add(_PLATFORMS[value])
    if len(found) > 1:
        msg = f"platform '{raw['platform']}' and backend '{raw['backend']}' do not go together"
        raise Mismatch(msg)
    return found.pop() if found else None


def _tensor(kind: str, raw: Mapping[str, Any], labels: tuple[str, ...]) -> TensorSpec:
    name = raw.get("name", "")
    if not name:
        msg = f"an {kind} has no 'name'"
        raise Mismatch(msg)
    where = f"{kind} '{name}'"
    if "dims" not in raw:
        msg = f"{where} has no 'dims'"
        raise Mismatch(msg)
    reshape = raw.get("reshape")
    if reshape is not None and reshape.get("shape", []) != raw["dims"]:
        msg = f"{where}: reshape is not supported: give the model's own shape as 'dims'"
        raise Mismatch(msg)
    return TensorSpec(
        name=name,
        datatype=_datatype(raw, where),
        shape=tuple(raw["dims"]),
        optional=raw.get("optional", False),
        labels=labels,
        label_filename=raw.get("label_filename", ""),
    )


def _datatype(raw: Mapping[str, Any], where: str) -> str:
    name = raw.get("data_type", "TYPE_INVALID")
    if name == "TYPE_INVALID":
        msg = f"{where} has no 'data_type'"
        raise Mismatch(msg)
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


def _instances(groups: Sequence[Mapping[str, Any]]) -> int:
    if any(group.get("count", 0) < 0 for group in groups):
        msg = "an instance_group's count is negative"
        raise Mismatch(msg)
    # 0 is the proto's absent number, and a group has at least one instance
    return sum(group.get("count", 0) or 1 for group in groups) or 1


def _asks_for_gpu(group: Mapping[str, Any]) -> bool:
    return group.get("kind") == "KIND_GPU" or bool(group.get("gpus"))


def _threads(parameters: Mapping[str, str]) -> int:
    """What Triton's ONNX Runtime backend is told by a parameter; its 0 leaves the choice."""
    given = parameters.get("intra_op_thread_count", "").strip() or "0"
    if not given.isdecimal() or len(given) > len(str(MAX_THREADS)):
        msg = f"parameter intra_op_thread_count must be a number up to {MAX_THREADS}"
        raise Mismatch(msg)
    return int(given) or 1


def _version_policy(raw: Mapping[str, Any]) -> VersionPolicy:
    if len(raw) > 1:
        msg = f"version_policy takes one of latest, all, specific, and has {', '.join(raw)}"
        raise Mismatch(msg)
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
        raise Mismatch(msg)
    datatype, shape = _datatype(raw, where), tuple(raw.get("dims", ()))
    match given[0]:
        case "zero_data":
            return WarmupInput(datatype, shape)
        case "random_data":
            return WarmupInput(datatype, shape, "random")
    return WarmupInput(datatype, shape, "file", raw["input_data_file"])
