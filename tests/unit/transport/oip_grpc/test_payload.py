from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc.service_pb2 import ModelInferRequest

from headrace.domain.datatypes import DATATYPES
from headrace.domain.errors import InvalidRequest
from headrace.domain.tensors import InferContent, RequestedOutput
from headrace.transport.oip_grpc import schema
from headrace.transport.oip_grpc.payload import GrpcPayload


def payload(request: ModelInferRequest) -> GrpcPayload:
    """What the wire makes of a message that tritonclient's classes wrote."""
    body = request.SerializeToString()
    return GrpcPayload(schema.parse(schema.ModelInferRequest, body), body)


def decode(request: ModelInferRequest) -> InferContent:
    return payload(request).decode()


def test_a_request_without_anything_is_decoded_to_that() -> None:
    assert decode(ModelInferRequest()) == InferContent([], binary_outputs=True)


def test_id_inputs_and_outputs_are_decoded() -> None:
    request = ModelInferRequest(id="räquest", raw_input_contents=[b"\x01\x02", b"\x00\x00\xc0\x3f"])
    request.inputs.add(name="a", datatype="UINT8", shape=[1, 2])
    request.inputs.add(name="b", datatype="FP32", shape=[1])
    request.outputs.add(name="y")
    request.outputs.add(name="z").parameters["classification"].int64_param = 3
    content = decode(request)
    assert content.id == "räquest"
    assert [(t.name, t.datatype, t.array.tolist()) for t in content.inputs] == [
        ("a", "UINT8", [[1, 2]]),
        ("b", "FP32", [1.5]),
    ]
    assert content.outputs == [
        RequestedOutput("y", binary=True),
        RequestedOutput("z", binary=True, classes=3),
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bool_param", False),
        ("bool_param", True),
        ("int64_param", -(2**63)),
        ("uint64_param", 2**64 - 1),
        ("double_param", -0.5),
        ("string_param", ""),
        ("string_param", "grüß"),
    ],
)
def test_a_parameter_keeps_its_type(field: str, value: Any) -> None:
    request = ModelInferRequest()
    setattr(request.parameters["mine"], field, value)
    read = payload(request).parameters()["mine"]
    assert (type(read), read) == (type(value), value)


def test_parameters_are_read_without_a_look_at_the_tensors() -> None:
    request = ModelInferRequest()
    request.parameters["priority"].uint64_param = 2
    request.inputs.add(name="x", datatype="nonsense", shape=[-1])
    read = payload(request)
    assert read.parameters() == {"priority": 2}
    with pytest.raises(InvalidRequest, match="nonsense"):
        read.decode()


def test_parameters_of_a_type_that_is_not_known_are_refused() -> None:
    request = ModelInferRequest()
    request.parameters["mine"].SetInParent()
    with pytest.raises(InvalidRequest, match=r"parameters\.mine"):
        payload(request).parameters()


FIELDS = {
    "BOOL": ("bool_contents", st.booleans()),
    "INT8": ("int_contents", st.integers(-(2**7), 2**7 - 1)),
    "INT16": ("int_contents", st.integers(-(2**15), 2**15 - 1)),
    "INT32": ("int_contents", st.integers(-(2**31), 2**31 - 1)),
    "INT64": ("int64_contents", st.integers(-(2**63), 2**63 - 1)),
    "UINT8": ("uint_contents", st.integers(0, 2**8 - 1)),
    "UINT16": ("uint_contents", st.integers(0, 2**16 - 1)),
    "UINT32": ("uint_contents", st.integers(0, 2**32 - 1)),
    "UINT64": ("uint64_contents", st.integers(0, 2**64 - 1)),
    "FP32": ("fp32_contents", st.floats(width=32, allow_nan=False)),
    "FP64": ("fp64_contents", st.floats(allow_nan=False)),
    "BYTES": ("bytes_contents", st.binary()),
}


@pytest.mark.parametrize("datatype", FIELDS)
@given(data=st.data())
def test_typed_contents_are_decoded_exactly(datatype: str, data: st.DataObject) -> None:
    field, elements = FIELDS[datatype]
    sent = data.draw(st.lists(elements, max_size=8))
    request = ModelInferRequest()
    tensor = request.inputs.add(name="x", datatype=datatype, shape=[len(sent), 1])
    getattr(tensor.contents, field).extend(sent)
    (decoded,) = decode(request).inputs
    assert decoded.array.dtype == DATATYPES[datatype].dtype
    assert decoded.array.shape == (len(sent), 1)
    assert decoded.array.ravel().tolist() == sent


@pytest.mark.parametrize(
    ("datatype", "field", "value"),
    [
        ("INT8", "int_contents", 128),
        ("INT8", "int_contents", -129),
        ("INT16", "int_contents", 2**15),
        ("UINT8", "uint_contents", 256),
        ("UINT16", "uint_contents", 2**16),
    ],
)
def test_a_number_that_its_datatype_cannot_hold_is_refused(
    datatype: str, field: str, value: int
) -> None:
    request = ModelInferRequest()
    tensor = request.inputs.add(name="x", datatype=datatype, shape=[2])
    getattr(tensor.contents, field).extend([0, value])
    with pytest.raises(InvalidRequest, match=f"'x' holds a number outside the range of {datatype}"):
        decode(request)


def test_an_empty_tensor_needs_no_contents() -> None:
    request = ModelInferRequest()
    request.inputs.add(name="x", datatype="FP32", shape=[0, 3])
    (decoded,) = decode(request).inputs
    assert decoded.array.shape == (0, 3)


def test_a_tensor_without_axes_is_one_element() -> None:
    request = ModelInferRequest(raw_input_contents=[b"\x07"])
    request.inputs.add(name="x", datatype="UINT8")
    (decoded,) = decode(request).inputs
    assert decoded.array.shape == ()
    assert decoded.array == np.uint8(7)


@pytest.mark.parametrize("raw", [True, False])
def test_axes_that_no_memory_can_address_are_refused(*, raw: bool) -> None:
    request = ModelInferRequest(raw_input_contents=[b""] if raw else [])
    request.inputs.add(name="x", datatype="FP32", shape=[0, 2**62, 2**62])
    with pytest.raises(InvalidRequest, match="is too large"):
        decode(request)


@pytest.mark.parametrize("where", ["input", "output"])
def test_shared_memory_is_refused(where: str) -> None:
    request = ModelInferRequest(raw_input_contents=[b"\x00"])
    tensor = request.inputs.add(name="x", datatype="UINT8", shape=[1])
    if where == "output":
        tensor = request.outputs.add(name="x")
    tensor.parameters["shared_memory_region"].string_param = "region"
    with pytest.raises(InvalidRequest, match="'x': shared memory is not offered"):
        decode(request)


def test_outputs_without_end_are_refused() -> None:
    request = ModelInferRequest()
    for _ in range(1025):
        request.outputs.add()
    with pytest.raises(InvalidRequest, match="the request has 1025 outputs; 1024 are allowed"):
        decode(request)


@given(st.binary(max_size=200))
def test_whatever_is_a_message_is_decoded_or_refused(message: bytes) -> None:
    with contextlib.suppress(InvalidRequest):
        GrpcPayload(schema.parse(schema.ModelInferRequest, message), message).decode()
