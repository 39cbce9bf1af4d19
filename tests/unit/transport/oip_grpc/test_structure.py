from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc.service_pb2 import ModelInferRequest

from headrace.domain.errors import InvalidRequest
from headrace.transport.oip_grpc import schema
from headrace.transport.oip_grpc.structure import (
    MAX_STRUCTURE_BYTES,
    UNCHECKED_BYTES,
    check_structure,
)

TOO_MUCH = "names, shapes and parameters take more than 1048576 bytes"
MALFORMED = "not a well-formed inference.ModelInferRequest"


def request(size: int = 2**21) -> ModelInferRequest:
    made = ModelInferRequest(model_name="model", id="42", raw_input_contents=[bytes(size)])
    made.inputs.add(name="x", datatype="UINT8", shape=[size])
    made.outputs.add(name="y")
    made.parameters["priority"].uint64_param = 1
    made.parameters["scale"].double_param = 0.5
    return made


def test_large_raw_contents_are_what_messages_are_for() -> None:
    check_structure(request().SerializeToString())


def test_large_typed_contents_are_too() -> None:
    made = ModelInferRequest(model_name="model")
    tensor = made.inputs.add(name="x", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(bytes(2**21))
    check_structure(made.SerializeToString())


@pytest.mark.parametrize("field", [b"\x2a", b"\x32", b"\x3a"])
def test_empty_tensors_without_end_are_refused(field: bytes) -> None:
    with pytest.raises(InvalidRequest, match=TOO_MUCH):
        check_structure(request().SerializeToString() + (field + b"\x00") * 2**15)


def test_a_shape_without_end_is_refused() -> None:
    made = request()
    made.inputs[0].shape.extend([1] * MAX_STRUCTURE_BYTES)
    with pytest.raises(InvalidRequest, match=TOO_MUCH):
        check_structure(made.SerializeToString())


def test_parameters_without_end_are_refused() -> None:
    made = request()
    for i in range(20_000):
        made.inputs[0].parameters[str(i)].bool_param = True
    with pytest.raises(InvalidRequest, match=TOO_MUCH):
        check_structure(made.SerializeToString())


def test_what_is_allowed_in_one_place_is_allowed_once_in_all() -> None:
    made = request()
    made.parameters["text"].string_param = "x" * (MAX_STRUCTURE_BYTES // 2)
    check_structure(made.SerializeToString())
    made.inputs[0].parameters["text"].string_param = "x" * (MAX_STRUCTURE_BYTES // 2)
    with pytest.raises(InvalidRequest, match=TOO_MUCH):
        check_structure(made.SerializeToString())


@pytest.mark.parametrize(
    "tail",
    [
        pytest.param(b"\x3a\xff\xff\x03", id="a length beyond the end"),
        pytest.param(b"\x3a" + b"\xff" * 10, id="a length without end"),
        pytest.param(b"\x3a", id="a tag at the end"),
        pytest.param(b"\x43\x44", id="a group"),
        pytest.param(b"\x41\x00", id="half a fixed number"),
        pytest.param(b"\x2a\x02\x2a\x05", id="an input that ends too soon"),
    ],
)
def test_malformed_sizes_are_refused(tail: bytes) -> None:
    with pytest.raises(InvalidRequest, match=MALFORMED):
        check_structure(request().SerializeToString() + tail)


def test_unknown_fields_of_every_kind_are_passed_over() -> None:
    unknown = b"\x78\x80\x01" + b"\x79" + bytes(8) + b"\x7d" + bytes(4) + b"\x7a\x01\x00"
    message = request().SerializeToString() + unknown
    check_structure(message)
    assert schema.parse(schema.ModelInferRequest, message).id == "42"


@given(st.binary(max_size=64))
def test_whatever_comes_it_is_refused_or_passed_on(tail: bytes) -> None:
    message = bytes([0x3A]) + b"\x80\x80\x04" + bytes(UNCHECKED_BYTES) + tail
    with contextlib.suppress(InvalidRequest):
        check_structure(message)
        schema.parse(schema.ModelInferRequest, message)
