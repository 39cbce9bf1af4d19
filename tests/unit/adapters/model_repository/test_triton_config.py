from __future__ import annotations

import json
from typing import Any, TypeAlias

import msgspec
import pytest
from google.protobuf import json_format, text_format  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from headrace.adapters.model_repository.triton_config import (
    check,
    from_json,
    from_text,
    to_json_object,
)
from headrace.domain.datatypes import DATATYPES
from headrace.domain.errors import ModelLoadFailed
from headrace.domain.models import (
    AllVersions,
    Batching,
    LatestVersions,
    ModelConfig,
    QueuePolicy,
    Signature,
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
"""


def _no_labels(filename: str) -> tuple[str, ...]:
    pytest.fail(f"no labels were expected to be read, but {filename} is")


def _ignore(_: str) -> None: ...


def _read(text: str, name: str = "m") -> ModelConfig:
    notes: list[str] = []
    config = from_text(text, name=name, labels=_no_labels, note=notes.append)
    assert notes == []
    return config


def _read_json(value: Json, name: str = "m") -> ModelConfig:
    notes: list[str] = []
    data = json.dumps(value).encode()
    config = from_json(data, name=name, labels=_no_labels, note=notes.append)
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


def _json_refusal(data: bytes) -> str:
    with pytest.raises(ModelLoadFailed) as caught:
        from_json(data, name="m", labels=_no_labels)
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
        outputs=(TensorSpec("fc6_1", "FP32", (1000,), labels=("densenet_labels.txt", "cat")),),
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


def test_hints_for_other_servers_are_named_in_one_note() -> None:
    text = """
    optimization { execution_accelerators { gpu_execution_accelerator { name: "tensorrt" } } }
    metric_tags { key: "team" value: "vision" }
    cc_model_filenames { key: "7.5" value: "model_t4.onnx" }
    response_cache { enable: true }
    model_metrics { }
    runtime: "libtriton_onnxruntime.so"
    instance_group [ { rate_limiter { priority: 1 } }, { host_policy: "", passive: false } ]
    """
    assert _notes(text) == [
        (
            "model 'm': config.pbtxt sets what has no effect here: optimization, metric_tags, "
            "cc_model_filenames, response_cache, model_metrics, runtime, "
            "instance_group[0].rate_limiter"
        )
    ]


def test_the_thread_count_of_tritons_onnx_runtime_is_honoured() -> None:
    text = 'parameters {{ key: "intra_op_thread_count" value {{ string_value: "{}" }} }}'
    assert _read(text.format(4)).intra_op_threads == 4
    assert _read(text.format(0)).intra_op_threads == 1
    assert "intra_op_thread_count must be a number" in _refusal(text.format("many"))


def test_booleans_and_enums_have_their_other_forms() -> None:
    text = (
        "dynamic_batching {{ preserve_ordering: {} default_queue_policy {{ timeout_action: 1 }} }}"
    )
    for true, false in (("true", "false"), ("t", "f"), ("1", "0"), ("True", "False")):
        for word, value in ((true, True), (false, False)):
            batching = _read(text.format(word)).batching
            assert batching is not None
            assert batching.preserve_ordering is value
            assert batching.default_policy.timeout_action == "delay"


def test_every_datatype_has_tritons_name_and_number() -> None:
    for name, number in model_config_pb2.DataType.items():
        if name == "TYPE_INVALID":
            continue
        by_name = _read(f'input {{ name: "x" data_type: {name} dims: 1 }}')
        by_number = _read(f'input {{ name: "x" data_type: {number} dims: 1 }}')
        assert by_name == by_number
        assert by_name.inputs[0].datatype in DATATYPES


def _field_paths(descriptor: Json, depth: int = 0) -> list[list[Any]]:
    paths = []
    for field in descriptor.fields:
        paths.append([field])
        if field.message_type is not None and depth < 4:
            paths += [[field, *rest] for rest in _field_paths(field.message_type, depth + 1)]
    return paths


def _outcome_of_text(text: str) -> str:
    try:
        from_text(text, name="m", labels=_no_labels, note=_ignore)
    except ModelLoadFailed as error:
        return error.message
    return "read"


def test_no_field_of_tritons_message_is_unknown() -> None:
    for path in _field_paths(model_config_pb2.ModelConfig.DESCRIPTOR):
        *parents, last = [field.name for field in path]
        leaf = f"{last} {{ }}" if path[-1].message_type is not None else f"{last}: []"
        text = "".join(f"{name} {{ " for name in parents) + leaf + " }" * len(parents)
        assert "unknown field" not in _outcome_of_text(text)


# Refusals


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("foo: 1", "config.pbtxt line 1: unknown field 'foo'"),
        (
            "\nmax_batch_siz: 8",
            "config.pbtxt line 2: unknown field 'max_batch_siz'; did you mean 'max_batch_size'?",
        ),
        (
            'input [ {\n name: "a" }, {\n name: "x"\n shape: 3 } ]',
            "config.pbtxt line 4: unknown field 'input[1].shape'",
        ),
        (
            'max_batch_size: "8"',
            (
                "config.pbtxt line 1: 'max_batch_size' must be an integer from -2147483648 to "
                "2147483647"
            ),
        ),
        (
            "max_batch_size: 3000000000",
            (
                "config.pbtxt line 1: 'max_batch_size' must be an integer from -2147483648 to "
                "2147483647"
            ),
        ),
        ("max_batch_size: 1 max_batch_size: 2", "'max_batch_size' takes one value, and is given 2"),
        ("name: bert", "config.pbtxt line 1: 'name' must be a string in quotes"),
        ("name: 3", "config.pbtxt line 1: 'name' must be a string"),
        ("input: 3", "'input[0]' must be a message in { }"),
        (
            'dynamic_batching {\n default_queue_policy { timeout_action: "DELAY" } }',
            (
                "config.pbtxt line 2: 'dynamic_batching.default_queue_policy.timeout_action' must "
                "be one of REJECT, DELAY, without quotes"
            ),
        ),
        (
            "dynamic_batching { default_queue_policy { timeout_action: DROP } }",
            "must be one of REJECT, DELAY",
        ),
        ("dynamic_batching { preserve_ordering: 2 }", "must be true or false"),
        ("dynamic_batching { max_queue_delay_microseconds: -1 }", "must be an integer from 0 to"),
        ("dynamic_batching { max_queue_delay_microseconds: 1.5 }", "must be an integer from 0 to"),
        ("input {\n", "config.pbtxt line 2, column 1: '{' of line 1 is not closed by '}'"),
        ('name: "other"', "config.pbtxt: it is named 'other', but its folder is named 'm'"),
        ("input { data_type: TYPE_FP32 dims: 1 }", "an input has no 'name'"),
        ('output { name: "y" dims: 1 }', "output 'y' has no 'data_type'"),
        ('output { name: "y" data_type: TYPE_INVALID dims: 1 }', "output 'y' has no 'data_type'"),
        ('input { name: "x" data_type: TYPE_FP32 }', "input 'x' has no 'dims'"),
        (
            'input { name: "x" data_type: TYPE_FP32 dims: 1 reshape { shape: [ ] } }',
            "input 'x': reshape is not supported: give the model's own shape as 'dims'",
        ),
        (
            'platform: "tensorrt_plan"',
            (
                "platform 'tensorrt_plan' does not run in this process; it takes onnxruntime_onnx, "
                "onnxruntime, python: serve this model from a Triton"
            ),
        ),
        (
            'platform: "onnxruntime_onnx" backend: "python"',
            "platform 'onnxruntime_onnx' and backend 'python' do not go together",
        ),
        (
            "version_policy { all { } latest { } }",
            "version_policy takes one of latest, all, specific, and has all, latest",
        ),
        ("instance_group { count: -1 }", "an instance_group's count is negative"),
        (
            'model_warmup { name: "w" inputs { key: "x" value { data_type: TYPE_FP32 } } }',
            "model_warmup 'w', input 'x' takes one of zero_data, random_data, input_data_file",
        ),
        (
            (
                'model_warmup { name: "w" inputs { key: "x" value { data_type: TYPE_FP32 '
                "zero_data: true random_data: true } } }"
            ),
            "takes one of zero_data, random_data, input_data_file",
        ),
    ],
)
def test_a_mistake_is_refused_with_its_field_and_line(text: str, refusal: str) -> None:
    message = _refusal(text)
    assert message.startswith("model 'm': config.pbtxt")
    assert refusal in message


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("ensemble_scheduling { step { } }", "ensemble_scheduling"),
        ("sequence_batching { }", "sequence_batching"),
        ("model_transaction_policy { decoupled: true }", "model_transaction_policy.decoupled"),
        (
            'model_operations { op_library_filename: "x.so" }',
            "model_operations.op_library_filename",
        ),
        (
            'model_repository_agents { agents { name: "checksum" } }',
            "model_repository_agents.agents",
        ),
        ("input { allow_ragged_batch: true }", "input[0].allow_ragged_batch"),
        ("input { is_shape_tensor: true }", "input[0].is_shape_tensor"),
        ("output { is_shape_tensor: t }", "output[0].is_shape_tensor"),
        ("batch_input { kind: BATCH_ELEMENT_COUNT }", "batch_input"),
        ("batch_output { kind: BATCH_SCATTER_WITH_INPUT_SHAPE }", "batch_output"),
    ],
)
def test_what_would_change_the_answers_refuses_the_model(text: str, field: str) -> None:
    message = _refusal(f"# the first line\n{text}")
    assert message.startswith(f"model 'm': config.pbtxt line 2: {field} is not supported: ")


def test_an_unsupported_feature_that_is_switched_off_is_no_obstacle() -> None:
    text = """
    model_transaction_policy { decoupled: false }
    model_operations { }
    batch_input [ ]
    input { name: "x" data_type: TYPE_FP32 dims: 1 is_shape_tensor: f allow_ragged_batch: false }
    """
    assert len(_read(text).inputs) == 1


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


def test_numbers_and_enums_in_json_have_their_other_forms() -> None:
    config = _read_json(
        {
            "max_batch_size": "8",
            "input": [{"name": "x", "data_type": "type_fp32", "dims": ["-1", 3.0]}],
            "output": [{"name": "y", "data_type": 11, "dims": []}],
            "dynamic_batching": {"max_queue_delay_microseconds": "100"},
            "instance_group": None,
        }
    )
    assert config.max_batch_size == 8
    assert config.inputs == (TensorSpec("x", "FP32", (-1, 3)),)
    assert config.outputs == (TensorSpec("y", "FP32", ()),)
    assert config.batching == Batching(max_delay_us=100)


@pytest.mark.parametrize(
    ("value", "refusal"),
    [
        (["x"], "it must be an object"),
        ({"maxBatchSize": 1}, "unknown field 'maxBatchSize'; did you mean 'max_batch_size'?"),
        ({"input": [{"nam": 1}]}, "unknown field 'input[0].nam'; did you mean 'name'?"),
        ({"input": {}}, "'input' must be a list"),
        ({"input": [3]}, "'input[0]' must be an object"),
        ({"parameters": []}, "'parameters' must be an object"),
        ({"parameters": {"a": "b"}}, "'parameters.a' must be an object"),
        ({"max_batch_size": "eight"}, "'max_batch_size' must be an integer"),
        ({"max_batch_size": "9" * 5000}, "'max_batch_size' must be an integer"),
        ({"max_batch_size": True}, "'max_batch_size' must be an integer"),
        ({"max_batch_size": 1.5}, "'max_batch_size' must be an integer"),
        ({"name": 5}, "'name' must be a string"),
        ({"dynamic_batching": {"preserve_ordering": "true"}}, "must be true or false"),
        ({"ensemble_scheduling": {}}, "ensemble_scheduling is not supported"),
        ({"dynamic_batching": {"priority_queue_policy": {"high": {}}}}, "must be an integer"),
    ],
)
def test_a_mistake_in_json_is_refused_with_its_path(value: Json, refusal: str) -> None:
    message = _json_refusal(json.dumps(value).encode())
    assert message.startswith("model 'm': config: ")
    assert refusal in message


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff", b"[" * 100_000, b'{"name": "\xff"}', b"1e999"]
)
def test_what_is_no_json_is_refused(data: bytes) -> None:
    assert _json_refusal(data).startswith("model 'm': config: it is not JSON: ")


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


# What cannot be


def _problem(**changes: Json) -> str:
    with pytest.raises(ModelLoadFailed) as caught:
        check(ModelConfig("m", **changes))
    return caught.value.message.removeprefix("model 'm': ")


def test_a_preferred_batch_over_the_maximum_is_refused() -> None:
    problem = _problem(max_batch_size=4, batching=Batching(preferred_sizes=(2, 8)))
    assert problem == "dynamic_batching prefers a batch of 8, over max_batch_size 4"


def test_a_preferred_batch_is_not_judged_before_the_maximum_is_known() -> None:
    check(ModelConfig("m", batching=Batching(preferred_sizes=(2, 8))))


def test_batching_without_a_batch_axis_is_refused() -> None:
    problem = _problem(max_batch_size=0, batching=Batching())
    assert problem == "dynamic_batching needs a max_batch_size above 0"


@pytest.mark.parametrize(
    ("batching", "problem"),
    [
        (
            Batching(preferred_sizes=(0,)),
            "dynamic_batching prefers a batch of 0; it must be 1 or more",
        ),
        (
            Batching(priority_levels=2),
            "its default priority is 0; it must be 1 to 2",
        ),
        (
            Batching(priority_levels=2, default_priority=3),
            "its default priority is 3; it must be 1 to 2",
        ),
        (
            Batching(priority_levels=2**63, default_priority=1),
            "it asks for 9223372036854775808 priority levels; at most 1024 are allowed",
        ),
        (
            Batching(priority_levels=2, default_priority=1, priority_policies={3: QueuePolicy()}),
            "a queue policy is for priority 3; priorities are 1 to 2",
        ),
        (
            Batching(preserve_ordering=True, priority_levels=2, default_priority=1),
            "preserve_ordering allows one priority level only",
        ),
        (
            Batching(
                preserve_ordering=True,
                default_policy=QueuePolicy(default_timeout_us=1, timeout_action="delay"),
            ),
            "preserve_ordering does not go with a queue policy that delays",
        ),
    ],
)
def test_batching_that_triton_refuses_is_refused(batching: Batching, problem: str) -> None:
    assert _problem(max_batch_size=8, batching=batching) == problem


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"max_batch_size": -1}, "max_batch_size is -1; it must be 0 (no batch axis) or more"),
        ({"instances": 10**9}, "it asks for 1000000000 instances; 1 to 1024 are allowed"),
        ({"intra_op_threads": 0}, "it asks for 0 threads; 1 to 1024 are allowed"),
        ({"default_timeout_s": 0.0}, "a timeout is 0.0 s; it must be positive and finite"),
        ({"max_timeout_s": float("nan")}, "a timeout is nan s; it must be positive and finite"),
        (
            {"default_timeout_s": 3.0, "max_timeout_s": 2.0},
            "its default timeout (3.0 s) is longer than its maximum (2.0 s)",
        ),
        (
            {"inputs": (TensorSpec("x", "FP32", ()), TensorSpec("x", "FP32", ()))},
            "input 'x' is configured twice",
        ),
        (
            {"outputs": (TensorSpec("y", "FP32", (2, 0)),)},
            "output 'y' has shape [2, 0]; an axis is 1 or more, or -1 (any size)",
        ),
        (
            {"filename": "../other/model.onnx"},
            (
                "its file name '../other/model.onnx' is not allowed: it must name a file in the "
                "version's folder"
            ),
        ),
        (
            {"max_batch_size": 4, "warmup": (Warmup("w", {}, batch_size=5),)},
            "warm-up 'w' has a batch of 5, over max_batch_size 4",
        ),
        (
            {"max_batch_size": 0, "warmup": (Warmup("w", {}, batch_size=2),)},
            "warm-up 'w' has a batch of 2, over max_batch_size 0",
        ),
        (
            {"warmup": (Warmup("w", {"x": WarmupInput("FP32", (-1,))}),)},
            "warm-up 'w', input 'x' has shape [-1]; every axis needs a size",
        ),
        (
            {"warmup": (Warmup("w", {"x": WarmupInput("FP32", (2**20, 2**20))}),)},
            "warm-up 'w', input 'x' has over 1073741824 elements",
        ),
    ],
)
def test_values_that_no_model_can_mean_are_refused(changes: dict[str, Any], problem: str) -> None:
    assert _problem(**changes) == problem


@pytest.mark.parametrize("filename", ["a/b.onnx", "a\\b.onnx", "..", ".", "a\0"])
def test_a_file_name_may_not_leave_the_versions_folder(filename: str) -> None:
    assert "it must name a file in the version's folder" in _problem(filename=filename)


def test_an_unknown_datatype_is_refused_with_those_that_are_known() -> None:
    problem = _problem(inputs=(TensorSpec("x", "FP8", (1,)),))
    assert problem.startswith("input 'x' has the unknown datatype 'FP8'; known: BOOL, UINT8, ")


# To JSON


def test_the_answer_has_tritons_shape() -> None:
    config = msgspec.structs.replace(
        _read(BERT, "bert"), instances=2, warmup=(), filename="model.onnx"
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
)


def _signature(config: ModelConfig) -> Signature:
    axis = (-1,) if config.max_batch_size else ()

    def whole(spec: TensorSpec) -> TensorSpec:
        return msgspec.structs.replace(spec, shape=axis + spec.shape)

    return Signature(tuple(map(whole, config.inputs)), tuple(map(whole, config.outputs)))


@given(_configs)
def test_a_configuration_survives_its_json_and_triton_takes_it_too(config: ModelConfig) -> None:
    answer = to_json_object(config, _signature(config), config.max_batch_size or 0)
    assert _read_json(answer) == config
    message = json_format.ParseDict(answer, model_config_pb2.ModelConfig())
    assert _read(text_format.MessageToString(message)) == config
