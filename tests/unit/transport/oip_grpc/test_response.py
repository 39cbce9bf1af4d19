from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import InferResult
from tritonclient.grpc.service_pb2 import ModelInferResponse

from headrace.domain.inference import InferResponse
from headrace.domain.tensors import Tensor
from headrace.transport.oip_grpc.response import encode


def read(response: InferResponse) -> ModelInferResponse:
    return ModelInferResponse.FromString(encode(response))


def test_names_id_and_outputs_are_encoded() -> None:
    a = Tensor("a", "INT16", np.array([[1, -2]], np.int16))
    b = Tensor("b", "BYTES", np.array([b"x", b""], dtype=np.object_))
    found = read(InferResponse("model", "3", [a, b], "räquest"))
    assert (found.model_name, found.model_version, found.id) == ("model", "3", "räquest")
    assert [(o.name, o.datatype, [*o.shape]) for o in found.outputs] == [
        ("a", "INT16", [1, 2]),
        ("b", "BYTES", [2]),
    ]
    assert [*found.raw_output_contents] == [
        b"\x01\x00\xfe\xff",
        b"\x01\x00\x00\x00x\x00\x00\x00\x00",
    ]


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 2**21])
def test_raw_contents_of_every_size_are_found_again(size: int) -> None:
    tensors = [Tensor(name, "UINT8", np.full(size, 7, np.uint8)) for name in "ab"]
    found = read(InferResponse("model", "1", tensors))
    assert [len(raw) for raw in found.raw_output_contents] == [size, size]
    assert InferResult(found).as_numpy("b").tolist() == [7] * size


def test_an_array_that_is_not_contiguous_is_encoded_in_row_order() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    found = read(InferResponse("model", "1", [Tensor("y", "FP32", array)]))
    assert InferResult(found).as_numpy("y").tolist() == array.tolist()


def test_a_response_without_outputs_is_a_message_too() -> None:
    assert [*read(InferResponse("model", "1", [])).raw_output_contents] == []


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (True, "bool_param"),
        (-(2**63), "int64_param"),
        (2**63, "uint64_param"),
        (0.5, "double_param"),
        ("text", "string_param"),
    ],
)
def test_a_parameter_keeps_its_type(value: Any, field: str) -> None:
    parameter = read(InferResponse("model", "1", [], "", {"mine": value})).parameters["mine"]
    assert parameter.WhichOneof("parameter_choice") == field
    assert getattr(parameter, field) == value
