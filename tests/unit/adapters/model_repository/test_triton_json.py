from __future__ import annotations

import json

import msgspec
import pytest
from google.protobuf import json_format, text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from headrace.adapters.model_repository.triton_config import from_json, from_text
from headrace.adapters.model_repository.triton_json import to_json_object
from headrace.domain.datatypes import DATATYPES
from headrace.domain.models import (
    AllVersions,
    Batching,
    LatestVersions,
    ModelConfig,
    QueuePolicy,
    Signature,
    SpecificVersions,
    TensorSpec,
    Warmup,
    WarmupInput,
)


def test_the_answer_has_tritons_shape() -> None:
    config = ModelConfig(
        "bert",
        platform="onnxruntime_onnx",
        max_batch_size=32,
        batching=Batching(
            preferred_sizes=(8, 16),
            max_delay_us=2000,
            priority_levels=3,
            default_priority=2,
            default_policy=QueuePolicy(max_queue_size=256, default_timeout_us=500_000),
            priority_policies={
                1: QueuePolicy(8, timeout_action="delay", allow_timeout_override=True)
            },
        ),
        instances=2,
        version_policy=SpecificVersions(("1", "3")),
        parameters={"pooling": "mean"},
        filename="model.onnx",
    )
    signature = Signature(
        inputs=(TensorSpec("ids", "INT64", (-1, -1)), TensorSpec("text", "BYTES", (-1, 1))),
        outputs=(TensorSpec("y", "BF16", (-1, 768), labels=("a",)),),
    )
    answer = to_json_object(config, signature, 16)
    assert answer["name"] == "bert"
    assert (answer["platform"], answer["backend"]) == ("onnxruntime_onnx", "onnxruntime")
    assert answer["max_batch_size"] == 16
    assert [(i["name"], i["data_type"], i["dims"]) for i in answer["input"]] == [
        ("ids", "TYPE_INT64", [-1]),
        ("text", "TYPE_STRING", [1]),
    ]
    assert [(o["name"], o["data_type"], o["dims"]) for o in answer["output"]] == [
        ("y", "TYPE_BF16", [768])
    ]
    assert answer["version_policy"] == {"specific": {"versions": [1, 3]}}
    assert answer["dynamic_batching"] == {
        "preferred_batch_size": [8, 16],
        "max_queue_delay_microseconds": 2000,
        "preserve_ordering": False,
        "priority_levels": 3,
        "default_priority_level": 2,
        "default_queue_policy": {
            "timeout_action": "REJECT",
            "default_timeout_microseconds": 500_000,
            "allow_timeout_override": False,
            "max_queue_size": 256,
        },
        "priority_queue_policy": {
            "1": {
                "timeout_action": "DELAY",
                "default_timeout_microseconds": 0,
                "allow_timeout_override": True,
                "max_queue_size": 8,
            }
        },
    }
    (group,) = answer["instance_group"]
    assert (group["name"], group["kind"], group["count"]) == ("bert_0", "KIND_CPU", 2)
    assert answer["default_model_filename"] == "model.onnx"
    assert answer["parameters"] == {"pooling": {"string_value": "mean"}}
    assert json.loads(json.dumps(answer)) == answer


def test_shapes_are_whole_where_there_is_no_batch_axis() -> None:
    signature = Signature((TensorSpec("x", "FP32", (3, 4)),), (TensorSpec("y", "FP32", (1,)),))
    answer = to_json_object(ModelConfig("m", platform="python"), signature, 0)
    assert [tensor["dims"] for tensor in answer["input"] + answer["output"]] == [[3, 4], [1]]
    assert (answer["platform"], answer["backend"]) == ("", "python")
    assert "dynamic_batching" not in answer


def test_versions_that_triton_cannot_name_are_left_out_of_the_answer() -> None:
    config = ModelConfig("m", version_policy=SpecificVersions(("2", "beta", "9" * 30)))
    answer = to_json_object(config, Signature((), ()), 0)
    assert answer["version_policy"] == {"specific": {"versions": [2]}}


_names = st.text("abcXYZ_0", min_size=1, max_size=6)
_specs = st.builds(
    TensorSpec,
    name=_names,
    datatype=st.sampled_from(sorted(DATATYPES)),
    shape=st.lists(st.integers(1, 2**40) | st.just(-1), min_size=1, max_size=4).map(tuple),
)
_policies = st.builds(
    QueuePolicy,
    max_queue_size=st.integers(0, 2**32 - 1),
    default_timeout_us=st.integers(0, 2**64 - 1),
    timeout_action=st.sampled_from(["reject", "delay"]),
    allow_timeout_override=st.booleans(),
)
_warmup_inputs = st.one_of(
    st.builds(
        WarmupInput,
        datatype=st.sampled_from(sorted(DATATYPES)),
        shape=st.lists(st.integers(0, 2**40), max_size=3).map(tuple),
        fill=st.sampled_from(["zero", "random"]),
    ),
    st.builds(
        WarmupInput,
        datatype=st.just("FP32"),
        shape=st.just((1,)),
        fill=st.just("file"),
        data_file=_names,
    ),
)
_configs = st.builds(
    ModelConfig,
    name=st.just("m"),
    platform=st.sampled_from(["onnxruntime_onnx", "python", None]),
    max_batch_size=st.integers(0, 2**31 - 1),
    inputs=st.lists(_specs, min_size=1, max_size=2).map(tuple),
    outputs=st.lists(_specs, max_size=2).map(tuple),
    batching=st.none()
    | st.builds(
        Batching,
        preferred_sizes=st.sets(st.integers(1, 64)).map(sorted).map(tuple),
        max_delay_us=st.integers(0, 2**64 - 1),
        preserve_ordering=st.booleans(),
        priority_levels=st.integers(0, 2**64 - 1),
        default_priority=st.integers(0, 2**64 - 1),
        default_policy=_policies,
        priority_policies=st.dictionaries(st.integers(0, 2**64 - 1), _policies, max_size=2),
    ),
    instances=st.integers(1, 2**31 - 1),
    version_policy=st.one_of(
        st.builds(LatestVersions, st.integers(1, 2**32 - 1)),
        st.just(AllVersions()),
        st.builds(
            SpecificVersions, st.lists(st.integers(0, 2**63 - 1).map(str), max_size=3).map(tuple)
        ),
    ),
    warmup=st.lists(
        st.builds(
            Warmup,
            name=_names,
            inputs=st.dictionaries(_names, _warmup_inputs, max_size=2),
            batch_size=st.integers(1, 2**32 - 1),
            count=st.integers(1, 2**32 - 1),
        ),
        max_size=2,
    ).map(tuple),
    parameters=st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=2),
    filename=st.sampled_from(["", "model.onnx"]),
    default_timeout_s=st.none(),
    max_timeout_s=st.none(),
    intra_op_threads=st.just(1),
    decoupled=st.sampled_from([None, True]),
    response_cache=st.booleans(),
)


def _no_labels(filename: str) -> tuple[str, ...]:
    pytest.fail(f"no labels were expected to be read, but {filename} is")


def _unexpected(note: str) -> None:
    pytest.fail(note)


def _signature(config: ModelConfig) -> Signature:
    axis = (-1,) if config.max_batch_size else ()

    def whole(spec: TensorSpec) -> TensorSpec:
        return msgspec.structs.replace(spec, shape=axis + spec.shape)

    return Signature(tuple(map(whole, config.inputs)), tuple(map(whole, config.outputs)))


@given(_configs)
def test_a_configuration_survives_its_json_and_triton_takes_it_too(config: ModelConfig) -> None:
    answer = to_json_object(config, _signature(config), config.max_batch_size or 0)
    data = json.dumps(answer).encode()
    assert from_json(data, name="m", labels=_no_labels, note=_unexpected) == config
    message = json_format.ParseDict(answer, model_config_pb2.ModelConfig())
    text = text_format.MessageToString(message)
    assert from_text(text, name="m", labels=_no_labels, note=_unexpected) == config
