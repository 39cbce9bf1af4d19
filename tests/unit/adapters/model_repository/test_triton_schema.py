from __future__ import annotations

import json
from typing import Any, TypeAlias

import pytest
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from headrace.adapters.model_repository.triton_schema import Mismatch, read_json, read_text

Json: TypeAlias = Any


def _refusal(text: str) -> str:
    with pytest.raises(Mismatch) as caught:
        read_text(text)
    return f"{caught.value.place}: {caught.value}"


def _json_refusal(data: bytes) -> str:
    with pytest.raises(Mismatch) as caught:
        read_json(data)
    assert caught.value.place == ""
    return str(caught.value)


# What is set


def test_only_what_is_set_is_read() -> None:
    text = """
    name: "m"
    input [ { name: "x" dims: [ -1, 3 ] }, { data_type: TYPE_FP32 dims: [ ] } ]
    dynamic_batching { }
    """
    assert read_text(text).values == {
        "name": "m",
        "input": [{"name": "x", "dims": [-1, 3]}, {"data_type": "TYPE_FP32", "dims": []}],
        "dynamic_batching": {},
    }


def test_maps_are_read_by_key_and_the_last_entry_of_a_key_counts() -> None:
    text = """
    parameters { key: "a" value { string_value: "1" } }
    parameters { key: "a" value { string_value: "2" } }
    parameters { value { } }
    dynamic_batching { priority_queue_policy { key: 3 value { max_queue_size: 8 } } }
    """
    assert read_text(text).values == {
        "parameters": {"a": {"string_value": "2"}, "": {}},
        "dynamic_batching": {"priority_queue_policy": {3: {"max_queue_size": 8}}},
    }


def test_booleans_and_enums_have_their_other_forms() -> None:
    text = (
        "dynamic_batching {{ preserve_ordering: {} default_queue_policy {{ timeout_action: 1 }} }}"
    )
    for true, false in (("true", "false"), ("t", "f"), ("1", "0"), ("True", "False")):
        for word, value in ((true, True), (false, False)):
            assert read_text(text.format(word)).values["dynamic_batching"] == {
                "preserve_ordering": value,
                "default_queue_policy": {"timeout_action": "DELAY"},
            }


def test_numbers_and_enums_in_json_have_their_other_forms() -> None:
    value = {
        "max_batch_size": "8",
        "input": [{"dims": ["-1", 3.0], "data_type": "type_fp32"}, {"data_type": 11}],
        "dynamic_batching": {
            "max_queue_delay_microseconds": str(2**64 - 1),
            "priority_queue_policy": {"2": {}},
        },
        "instance_group": None,
    }
    assert read_json(json.dumps(value).encode()).values == {
        "max_batch_size": 8,
        "input": [{"dims": [-1, 3], "data_type": "TYPE_FP32"}, {"data_type": "TYPE_FP32"}],
        "dynamic_batching": {
            "max_queue_delay_microseconds": 2**64 - 1,
            "priority_queue_policy": {2: {}},
        },
    }


def test_json_and_text_say_the_same() -> None:
    text = """
    name: "m" max_batch_size: 8
    input { name: "x" data_type: TYPE_STRING dims: [ -1, 4294967296 ] optional: true }
    instance_group [ { count: 2 kind: KIND_CPU } ]
    model_warmup { name: "w" inputs { key: "x" value { dims: 4 data_type: TYPE_STRING } } }
    """
    message = text_format.Parse(text, model_config_pb2.ModelConfig())
    data = json_format.MessageToJson(message, preserving_proto_field_name=True)
    assert isinstance(json.loads(data)["input"][0]["dims"][0], str)  # 64-bit as strings
    assert read_json(data.encode()).values == read_text(text).values


def test_hints_for_other_servers_are_skipped_and_named() -> None:
    text = """
    optimization { execution_accelerators { gpu_execution_accelerator { name: "tensorrt" } } }
    metric_tags { key: "team" value: "vision" }
    cc_model_filenames { key: "7.5" value: "model_t4.onnx" }
    model_metrics { }
    runtime: "libtriton_onnxruntime.so"
    instance_group [ { rate_limiter { priority: 1 } }, { host_policy: "", passive: false } ]
    """
    fields = read_text(text)
    assert fields.values == {"instance_group": [{}, {}]}
    assert fields.skipped == [
        "optimization",
        "metric_tags",
        "cc_model_filenames",
        "model_metrics",
        "runtime",
        "instance_group[0].rate_limiter",
    ]


def test_a_hint_at_its_default_is_not_worth_a_word() -> None:
    value = {"optimization": {}, "runtime": "", "input": [{"format": "FORMAT_NONE"}]}
    assert read_json(json.dumps(value).encode()).skipped == []


# Every field of the message


def _field_paths(descriptor: Json, depth: int = 0) -> list[list[Any]]:
    paths = []
    for field in descriptor.fields:
        paths.append([field])
        if field.message_type is not None and depth < 4:
            paths += [[field, *rest] for rest in _field_paths(field.message_type, depth + 1)]
    return paths


def _outcome(text: str) -> str:
    try:
        read_text(text)
    except Mismatch as error:
        return str(error)
    return "read"


def test_no_field_of_tritons_message_is_unknown() -> None:
    for path in _field_paths(model_config_pb2.ModelConfig.DESCRIPTOR):
        *parents, last = [field.name for field in path]
        leaf = f"{last} {{ }}" if path[-1].message_type is not None else f"{last}: []"
        text = "".join(f"{name} {{ " for name in parents) + leaf + " }" * len(parents)
        assert "unknown field" not in _outcome(text)


def test_every_datatype_has_tritons_name_and_number() -> None:
    for name, number in model_config_pb2.DataType.items():
        assert read_text(f"input {{ data_type: {number} }}") == read_text(
            f"input {{ data_type: {name} }}"
        )


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("ensemble_scheduling { step { } }", "ensemble_scheduling"),
        ("sequence_batching { }", "sequence_batching"),
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
    refusal = _refusal(f"# the first line\n{text}")
    assert refusal.startswith(f"line 2: {field} is not supported: ")


def test_an_unsupported_feature_that_is_switched_off_is_no_obstacle() -> None:
    text = """
    model_operations { }
    batch_input [ ]
    input { is_shape_tensor: f allow_ragged_batch: false }
    """
    assert read_text(text).skipped == []


# Mistakes

INT32 = "an integer from -2147483648 to 2147483647"


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("foo: 1", "line 1: unknown field 'foo'"),
        (
            "\nmax_batch_siz: 8",
            "line 2: unknown field 'max_batch_siz'; did you mean 'max_batch_size'?",
        ),
        ('input [ {\n name: "a" }, {\n name: "x"\n shape: 3 } ]', "line 4: unknown field 'input["),
        ('max_batch_size: "8"', f"line 1: 'max_batch_size' must be {INT32}"),
        ("max_batch_size: 3000000000", f"line 1: 'max_batch_size' must be {INT32}"),
        ("max_batch_size: 1 max_batch_size: 2", "'max_batch_size' takes one value, and is given 2"),
        ("name: bert", "line 1: 'name' must be a string in quotes"),
        ("name: 3", "line 1: 'name' must be a string"),
        ("input: 3", "line 1: 'input[0]' must be a message in { }"),
        (
            'dynamic_batching {\n default_queue_policy { timeout_action: "DELAY" } }',
            (
                "line 2: 'dynamic_batching.default_queue_policy.timeout_action' must be one of "
                "REJECT, DELAY, without quotes"
            ),
        ),
        (
            "dynamic_batching { default_queue_policy { timeout_action: DROP } }",
            "must be one of REJECT, DELAY",
        ),
        ("dynamic_batching { preserve_ordering: 2 }", "must be true or false"),
        ("dynamic_batching { max_queue_delay_microseconds: -1 }", "must be an integer from 0 to"),
        ("dynamic_batching { max_queue_delay_microseconds: 1.5 }", "must be an integer from 0 to"),
        ("input {\n", "line 2, column 1: '{' of line 1 is not closed by '}'"),
    ],
)
def test_a_mistake_is_refused_with_its_field_and_line(text: str, refusal: str) -> None:
    assert refusal in _refusal(text)


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
    assert refusal in _json_refusal(json.dumps(value).encode())


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff", b"[" * 100_000, b'{"name": "\xff"}', b"1e999"]
)
def test_what_is_no_json_is_refused(data: bytes) -> None:
    assert _json_refusal(data).startswith("it is not JSON: ")


def test_an_unknown_fields_name_is_quoted_short_and_escaped() -> None:
    refusal = _json_refusal(json.dumps({"\x1b[31m" + "x" * 10_000: 1}).encode())
    assert refusal.startswith(r"unknown field '\x1b[31mxxx")
    assert len(refusal) < 120
