"""Triton's ModelConfig in JSON, out of the platform's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

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
)

_BACKENDS: Final[Mapping[Platform | None, str]] = {
    "onnxruntime_onnx": "onnxruntime",
    "python": "python",
    None: "",
}


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
        "model_transaction_policy": {"decoupled": bool(config.decoupled)},
    }
    if config.batching is not None:
        answer["dynamic_batching"] = _batching_json(config.batching)
    if config.response_cache:
        answer["response_cache"] = {"enable": True}
    return answer


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
        "label_filename": spec.label_filename,
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
