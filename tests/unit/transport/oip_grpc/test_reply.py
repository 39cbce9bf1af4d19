from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc.service_pb2 import ModelInferResponse

from headrace.domain.errors import EndpointFailed
from headrace.domain.inference import InferResponse
from headrace.domain.tensors import Tensor
from headrace.transport.oip_grpc.reply import GrpcReply
from headrace.transport.oip_grpc.response import encode


def answer(*shapes: list[int], raw: list[bytes], datatype: str = "UINT8") -> ModelInferResponse:
    made = ModelInferResponse(model_name="m", model_version="3", id="42", raw_output_contents=raw)
    for i, shape in enumerate(shapes):
        made.outputs.add(name=f"y{i}", datatype=datatype, shape=shape)
    return made


def reply(made: ModelInferResponse) -> GrpcReply:
    return GrpcReply(made.SerializeToString())


def test_raw_outputs_are_decoded() -> None:
    made = answer([1, 2], [0, 3], [], raw=[b"\1\2", b"", b"\7"])
    made.parameters["mine"].double_param = 0.5
    read = reply(made)
    assert read.version == "3"
    answered = read.decode()
    assert (answered.id, dict(answered.parameters)) == ("42", {"mine": 0.5})
    assert [t.name for t in answered.outputs] == ["y0", "y1", "y2"]
    assert [t.array.shape for t in answered.outputs] == [(1, 2), (0, 3), ()]
    assert answered.outputs[0].array.tolist() == [[1, 2]]


def test_typed_outputs_are_decoded() -> None:
    made = answer([2], raw=[], datatype="FP32")
    made.outputs[0].contents.fp32_contents.extend([0.5, -1.0])
    (output,) = reply(made).decode().outputs
    assert output.array.dtype == np.float32
    assert output.array.tolist() == [0.5, -1.0]


def test_what_was_encoded_is_read_again() -> None:
    tensors = [
        Tensor("a", "FP64", np.arange(60_000, dtype=np.float64).reshape(2, -1)),
        Tensor("b", "BYTES", np.array([b"x", b"", b"yz"], np.object_)),
    ]
    read = GrpcReply(encode(InferResponse("m", "3", tensors, "42", {"mine": "x"})))
    answered = read.decode()
    assert [(t.name, t.datatype) for t in answered.outputs] == [("a", "FP64"), ("b", "BYTES")]
    for ours, theirs in zip(tensors, answered.outputs, strict=True):
        assert np.array_equal(ours.array, theirs.array)
    assert answered.parameters == {"mine": "x"}


def test_fields_in_any_order_are_one_message_whose_last_version_counts() -> None:
    first = ModelInferResponse(raw_output_contents=[b"\1"], model_version="1").SerializeToString()
    last = answer([1], raw=[]).SerializeToString()
    read = GrpcReply(first + last)
    assert read.version == "3"
    assert read.decode().outputs[0].array.tolist() == [1]


GARBAGE = {
    "text": b"<html>",
    "cut short": answer([4], raw=[b"\1\2\3\4"]).SerializeToString()[:-1],
    "a name that is not UTF-8": b"\x0a\x02\xff\xff",
    "an output that is malformed": b"\x2a\x02\xff\xff",
    "fewer raw contents than outputs": answer([1], [1], raw=[b"\1"]).SerializeToString(),
    "raw contents without outputs": answer(raw=[b"\1"]).SerializeToString(),
    "nothing": b"",
    "an id alone": ModelInferResponse(id="42").SerializeToString(),
    "empty outputs without end": b"\x2a\x00" * 5000,
    "an output of nothing but axes": b"\x2a\x80\x80\x08" + b"\x18\x01" * 2**16,
}


@pytest.mark.parametrize("body", GARBAGE.values(), ids=GARBAGE.keys())
def test_what_is_no_answer_is_refused_before_it_is_passed_on(body: bytes) -> None:
    with pytest.raises(EndpointFailed) as raised:
        GrpcReply(body)
    assert raised.value.message == "the endpoint's answer is not a well-formed one"
    assert raised.value.reason


def _of_an_unknown_type(made: ModelInferResponse) -> None:
    made.outputs[0].datatype = "FP3"


def _of_a_negative_shape(made: ModelInferResponse) -> None:
    made.outputs[0].datatype = "BYTES"  # whose size does not tell
    made.outputs[0].shape[:] = [-1]


def _of_many_axes(made: ModelInferResponse) -> None:
    made.outputs[0].shape[:] = [1] * 33


def _of_another_size(made: ModelInferResponse) -> None:
    made.raw_output_contents[0] = b"\1\2"


def _of_no_contents(made: ModelInferResponse) -> None:
    del made.raw_output_contents[:]


def _of_a_parameter_without_value(made: ModelInferResponse) -> None:
    made.parameters["mine"].SetInParent()


@pytest.mark.parametrize(
    "spoil",
    [
        _of_an_unknown_type,
        _of_a_negative_shape,
        _of_many_axes,
        _of_another_size,
        _of_no_contents,
        _of_a_parameter_without_value,
    ],
)
def test_outputs_that_cannot_be_are_the_endpoints_failure(
    spoil: Callable[[ModelInferResponse], None],
) -> None:
    made = answer([1], raw=[b"\1"])
    spoil(made)
    with pytest.raises(EndpointFailed, match="not a well-formed one"):
        reply(made).decode()


@given(st.binary(max_size=200))
def test_whatever_comes_is_decoded_or_refused(body: bytes) -> None:
    with contextlib.suppress(EndpointFailed):
        GrpcReply(body).decode()


@given(st.binary(max_size=60), st.integers(0, 60))
def test_an_answer_with_bytes_put_into_it_is_decoded_or_refused(extra: bytes, at: int) -> None:
    body = answer([2], [1], raw=[b"\1\2", b"\3"]).SerializeToString()
    with contextlib.suppress(EndpointFailed):
        GrpcReply(body[:at] + extra + body[at:]).decode()
