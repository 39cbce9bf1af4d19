from __future__ import annotations

import json
from typing import Any, TypeAlias

import pytest
from google.protobuf import json_format, text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from headrace.adapters.model_repository.triton_config import from_json, from_text
from headrace.domain.datatypes import DATATYPES
from headrace.domain.errors import ModelLoadFailed
from headrace.domain.model_rules import check
from headrace.domain.models import (
    AllVersions,
    Batching,
    LatestVersions,
    ModelConfig,
    QueuePolicy,
    SpecificVersions,
    TensorSpec,
    VersionPolicy,
    Warmup,
    WarmupInput,
)

Json: TypeAlias = Any

DENSENET = """
name: "densenet_onnx"
platform: "onnxruntime_onnx"
max_batch_size : 0
input [
  {
    name: "data_0"
    data_type: TYPE_FP32
    format: FORMAT_NCHW
    dims: [ 3, 224, 224 ]
    reshape { shape: [ 3, 224, 224 ] }
  }
]
output [
  {
    name: "fc6_1"
    data_type: TYPE_FP32
    dims: [ 1000 ]
    label_filename: "densenet_labels.txt"
  }
]
"""

BERT = """
# A sentence encoder, exported with a dynamic batch axis.
name: "bert"
backend: "onnxruntime"
max_batch_size: 32
input [
  { name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] },
  { name: "attention_mask" data_type: TYPE_INT64 dims: [ -1 ] },
  { name: "token_type_ids" data_type: TYPE_INT64 dims: [ -1 ] optional: true }
]
output { name: "pooled" data_type: TYPE_FP16 dims: 768 }
version_policy: { specific: { versions: [ 1, 3 ] } }
instance_group [ { count: 2 kind: KIND_CPU }, { count: 1 } ]
dynamic_batching {
  preferred_batch_size: [ 16, 8 ]
  max_queue_delay_microseconds: 2000
  priority_levels: 3
  default_priority_level: 2
  default_queue_policy { max_queue_size: 256, default_timeout_microseconds: 500000 }
  priority_queue_policy {
    key: 1
    value { timeout_action: DELAY, allow_timeout_override: true, max_queue_size: 8 }
  }
}
model_warmup [
  {
    name: "one sentence"
    batch_size: 4
    count: 2
    inputs { key: "input_ids" value { data_type: TYPE_INT64 dims: 16 random_data: true } }
    inputs { key: "attention_mask" value { data_type: TYPE_INT64 dims: 16 zero_data: false } }
    inputs: {
      key: "token_type_ids",
      value: { data_type: TYPE_INT64, dims: [ 16 ], input_data_file: "types.bin" }
    }
  }
]
parameters { key: "pooling" value: { string_value: "mean" } }
default_model_filename: "bert-int8.onnx"
response_cache { enable: true }
"""


def _no_labels(filename: str) -> tuple[str, ...]:
    pytest.fail(f"no labels were expected to be read, but {filename} is")


def _ignore(_: str) -> None: ...


def _read(text: str, name: str = "m") -> ModelConfig:
    notes: list[str] = []
    config = from_text(text, name=name, labels=_no_labels, note=notes.append)
    assert notes == []
    return config


def _notes(text: str) -> list[str]:
    notes: list[str] = []
    from_text(text, name="m", labels=_no_labels, note=notes.append)
    return notes


def _refusal(text: str) -> str:
    with pytest.raises(ModelLoadFailed) as caught:
        _read(text)
    return caught.value.message


# From text


def test_a_classifier_gets_its_labels_and_its_unbatched_shapes() -> None:
    notes: list[str] = []
    config = from_text(
        DENSENET, name="densenet_onnx", labels=lambda file: (file, "cat"), note=notes.append
    )
    assert config == ModelConfig(
        name="densenet_onnx",
        platform="onnxruntime_onnx",
        max_batch_size=0,
        inputs=(TensorSpec("data_0", "FP32", (3, 224, 224)),),
        outputs=(
            TensorSpec(
                "fc6_1",
                "FP32",
                (1000,),
                labels=("densenet_labels.txt", "cat"),
                label_filename="densenet_labels.txt",
            ),
        ),
    )
    assert notes == [
        "model 'densenet_onnx': config.pbtxt sets what has no effect here: input[0].format"
    ]


def test_everything_that_is_honoured_is_read() -> None:
    config = _read(BERT, "bert")
    check(config)
    assert config == ModelConfig(
        name="bert",
        platform="onnxruntime_onnx",
        max_batch_size=32,
        inputs=(
            TensorSpec("input_ids", "INT64", (-1,)),
            TensorSpec("attention_mask", "INT64", (-1,)),
            TensorSpec("token_type_ids", "INT64", (-1,), optional=True),
        ),
        outputs=(TensorSpec("pooled", "FP16", (768,)),),
        batching=Batching(
            preferred_sizes=(8, 16),
            max_delay_us=2000,
            priority_levels=3,
            default_priority=2,
            default_policy=QueuePolicy(max_queue_size=256, default_timeout_us=500_000),
            priority_policies={
                1: QueuePolicy(
                    max_queue_size=8, timeout_action="delay", allow_timeout_override=True
                )
            },
        ),
        instances=3,
        version_policy=SpecificVersions(("1", "3")),
        warmup=(
            Warmup(
                "one sentence",
                {
                    "input_ids": WarmupInput("INT64", (16,), "random"),
                    "attention_mask": WarmupInput("INT64", (16,), "zero"),
                    "token_type_ids": WarmupInput("INT64", (16,), "file", "types.bin"),
                },
                batch_size=4,
                count=2,
            ),
        ),
        parameters={"pooling": "mean"},
        filename="bert-int8.onnx",
        response_cache=True,
    )


def test_an_empty_configuration_leaves_everything_to_the_model() -> None:
    assert _read("") == ModelConfig("m")


def test_strings_of_triton_are_bytes_here() -> None:
    config = _read('input { name: "text" data_type: TYPE_STRING dims: 1 }')
    assert config.inputs[0].datatype == "BYTES"


def test_tensors_without_a_max_batch_size_have_no_batch_axis() -> None:
    assert _read('output { name: "y" data_type: TYPE_FP32 dims: 1 }').max_batch_size == 0
    assert _read('backend: "python"').max_batch_size is None


@pytest.mark.parametrize(
    ("text", "platform"),
    [
        ('platform: "onnxruntime_onnx"', "onnxruntime_onnx"),
        ('backend: "onnxruntime"', "onnxruntime_onnx"),
        ('platform: "onnxruntime_onnx" backend: "onnxruntime"', "onnxruntime_onnx"),
        ('backend: "python"', "python"),
        ('platform: "" backend: ""', None),
    ],
)
def test_a_platform_may_be_told_by_either_field(text: str, platform: str | None) -> None:
    assert _read(text).platform == platform


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("version_policy { latest { num_versions: 3 } }", LatestVersions(3)),
        ("version_policy { latest { } }", LatestVersions(1)),
        ("version_policy { all { } }", AllVersions()),
        ("version_policy { specific { versions: 2 versions: 5 } }", SpecificVersions(("2", "5"))),
        ("", LatestVersions(1)),
    ],
)
def test_the_version_policy_is_read(text: str, policy: VersionPolicy) -> None:
    assert _read(text).version_policy == policy


@pytest.mark.parametrize(
    ("text", "instances"),
    [
        ("instance_group { count: 2 } instance_group { count: 3 }", 5),
        ("instance_group { }", 1),
        ("instance_group [ ]", 1),
        ("instance_group [ { kind: KIND_CPU }, { count: 4 } ]", 5),
    ],
)
def test_instance_groups_add_up(text: str, instances: int) -> None:
    assert _read(text).instances == instances


def test_a_gpu_is_not_refused_but_noted() -> None:
    text = "instance_group [ { kind: KIND_GPU count: 2 gpus: [ 0, 1 ] }, { kind: KIND_GPU } ]"
    assert _notes(text) == ["model 'm': its instance_group asks for a GPU; it runs on the CPU here"]


def test_what_has_no_effect_is_told_in_one_note() -> None:
    text = 'runtime: "x.so" optimization { cuda { } } runtime: []'
    assert _notes(text) == [
        "model 'm': config.pbtxt sets what has no effect here: runtime, optimization"
    ]


def test_batching_is_read_without_a_batch_axis_too() -> None:
    text = """
    max_batch_size: 0
    dynamic_batching { default_queue_policy { max_queue_size: 4 } }
    """
    config = _read(text)
    check(config)
    assert config.batching == Batching(default_policy=QueuePolicy(max_queue_size=4))


def test_the_thread_count_of_tritons_onnx_runtime_is_honoured() -> None:
    text = 'parameters {{ key: "intra_op_thread_count" value {{ string_value: "{}" }} }}'
    assert _read(text.format(4)).intra_op_threads == 4
    assert _read(text.format(0)).intra_op_threads == 1
    assert "intra_op_thread_count must be a number" in _refusal(text.format("many"))


def test_what_the_transaction_policy_says_is_kept_apart_from_its_silence() -> None:
    assert _read("").decoupled is None
    assert _read("model_transaction_policy { }").decoupled is None
    assert _read("model_transaction_policy { decoupled: true }").decoupled is True
    assert _read("model_transaction_policy { decoupled: false }").decoupled is False


def test_a_false_of_json_says_nothing_since_every_field_is_written_there() -> None:
    for text, decoupled in (
        ("{}", None),
        ('{"decoupled": false}', None),
        ('{"decoupled": true}', True),
    ):
        data = f'{{"model_transaction_policy": {text}}}'.encode()
        assert from_json(data, name="m", labels=_no_labels).decoupled is decoupled


def test_every_datatype_has_tritons_name_and_number() -> None:
    for name, number in model_config_pb2.DataType.items():
        if name == "TYPE_INVALID":
            continue
        by_name = _read(f'input {{ name: "x" data_type: {name} dims: 1 }}')
        by_number = _read(f'input {{ name: "x" data_type: {number} dims: 1 }}')
        assert by_name == by_number
        assert by_name.inputs[0].datatype in DATATYPES


# Refusals


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("\nmax_batch_siz: 8", " line 2: unknown field 'max_batch_siz'; did you mean"),
        ("input {\n", " line 2, column 1: '{' of line 1 is not closed by '}'"),
        ('name: "other"', ": it is named 'other', but its folder is named 'm'"),
        ("input { data_type: TYPE_FP32 dims: 1 }", ": an input has no 'name'"),
        ('output { name: "y" dims: 1 }', ": output 'y' has no 'data_type'"),
        ('output { name: "y" data_type: TYPE_INVALID dims: 1 }', ": output 'y' has no 'data_type'"),
        ('input { name: "x" data_type: TYPE_FP32 }', ": input 'x' has no 'dims'"),
        (
            'input { name: "x" data_type: TYPE_FP32 dims: 1 reshape { shape: [ ] } }',
            ": input 'x': reshape is not supported: give the model's own shape as 'dims'",
        ),
        (
            'platform: "tensorrt_plan"',
            (
                ": platform 'tensorrt_plan' does not run in this process; it takes "
                "onnxruntime_onnx, onnxruntime, python: serve this model from a Triton"
            ),
        ),
        (
            'platform: "onnxruntime_onnx" backend: "python"',
            ": platform 'onnxruntime_onnx' and backend 'python' do not go together",
        ),
        (
            "version_policy { all { } latest { } }",
            ": version_policy takes one of latest, all, specific, and has all, latest",
        ),
        ("instance_group { count: -1 }", ": an instance_group's count is negative"),
        (
            'model_warmup { name: "w" inputs { key: "x" value { data_type: TYPE_FP32 } } }',
            ": model_warmup 'w', input 'x' takes one of zero_data, random_data, input_data_file",
        ),
        (
            (
                'model_warmup { name: "w" inputs { key: "x" value { data_type: TYPE_FP32 '
                "zero_data: true random_data: true } } }"
            ),
            ": model_warmup 'w', input 'x' takes one of zero_data, random_data, input_data_file",
        ),
    ],
)
def test_a_refusal_names_the_model_and_the_place(text: str, refusal: str) -> None:
    assert _refusal(text).startswith(f"model 'm': config.pbtxt{refusal}")


def test_json_is_refused_under_its_own_name() -> None:
    with pytest.raises(ModelLoadFailed) as caught:
        from_json(b'{"input": 3}', name="m", labels=_no_labels)
    assert caught.value.message == "model 'm': config: 'input' must be a list"


# From JSON


def test_json_and_text_say_the_same() -> None:
    for text, name in ((BERT, "bert"), (DENSENET, "densenet_onnx")):
        message = text_format.Parse(text, model_config_pb2.ModelConfig())
        data = json_format.MessageToJson(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        assert isinstance(json.loads(data)["input"][0]["dims"][0], str)  # 64-bit as strings
        from_its_json = from_json(data.encode(), name=name, labels=lambda f: (f,), note=_ignore)
        assert from_its_json == from_text(text, name=name, labels=lambda f: (f,), note=_ignore)


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from([
            "name", "input", "dims", "data_type", "dynamic_batching", "parameters", "model_warmup",
            "inputs", "version_policy", "specific", "versions", "priority_queue_policy", "1",
            "instance_group", "count", "optimization", "reshape", "shape", "batch_input",
        ]),
        inner,
        max_size=4,
    ),
    max_leaves=12,
))  # fmt: skip
def test_any_json_is_read_or_refused(value: Json) -> None:
    try:
        check(from_json(json.dumps(value).encode(), name="m", labels=_no_labels, note=_ignore))
    except ModelLoadFailed as error:
        refusal = error.message
    else:
        refusal = "model 'm': "
    assert refusal.startswith("model 'm': ")
