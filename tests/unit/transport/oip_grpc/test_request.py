from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tritonclient.grpc.service_pb2 import ModelInferRequest

from headrace.domain.errors import InvalidRequest, Unsupported
from headrace.domain.inference import InferRequest
from headrace.domain.tensors import RAW, InferContent, RequestedOutput, Tensor
from headrace.transport.oip_grpc import schema
from headrace.transport.oip_grpc.payload import GrpcPayload
from headrace.transport.oip_grpc.request import encode

X = Tensor("x", "INT16", np.array([[1, -2]], np.int16))


def received(**changed: Any) -> tuple[GrpcPayload, bytes]:
    message = ModelInferRequest(
        model_name="bert", model_version="3", id="42", raw_input_contents=[b"\1\2"]
    )
    message.inputs.add(name="x", datatype="UINT8", shape=[2])
    for name, value in changed.items():
        setattr(message, name, value)
    body = message.SerializeToString()
    return GrpcPayload(schema.parse(schema.ModelInferRequest, body), body), body


def made(content: InferContent) -> ModelInferRequest:
    return ModelInferRequest.FromString(encode(InferRequest("m", "3", decoded=content)))


def test_a_message_for_the_same_model_and_version_is_sent_as_it_came() -> None:
    payload, body = received()
    assert encode(InferRequest("bert", "3", payload=payload)) is body


@pytest.mark.parametrize(
    ("model", "version"), [("other", "3"), ("bert", "4"), ("bert", ""), ("größer" * 40, "")]
)
def test_a_message_for_another_model_or_version_says_so_behind_the_rest(
    model: str, version: str
) -> None:
    payload, body = received()
    sent = encode(InferRequest(model, version, payload=payload))
    assert sent.startswith(body)
    read = ModelInferRequest.FromString(sent)
    assert (read.model_name, read.model_version) == (model, version)
    assert (read.id, [*read.raw_input_contents]) == ("42", [b"\1\2"])


def test_a_message_stays_as_it_came_where_its_tensors_were_looked_at() -> None:
    payload, body = received()
    request = InferRequest("bert", "3", payload=payload)
    assert request.content.inputs[0].array.tolist() == [1, 2]
    assert encode(request) is body


@pytest.mark.parametrize("where", ["inputs", "outputs"])
def test_shared_memory_of_the_endpoint_is_not_reached_through_a_message(where: str) -> None:
    message = ModelInferRequest(model_name="m")
    tensor = getattr(message, where).add(name="x")
    tensor.parameters["shared_memory_region"].string_param = "theirs"
    body = message.SerializeToString()
    payload = GrpcPayload(schema.parse(schema.ModelInferRequest, body), body)
    with pytest.raises(InvalidRequest, match="'x': shared memory is not offered"):
        encode(InferRequest("m", payload=payload))


def test_a_decoded_request_becomes_a_message_with_raw_contents() -> None:
    b = Tensor("b", "BYTES", np.array([b"x", b""], np.object_))
    sent = made(InferContent([X, b], "räquest"))
    assert (sent.model_name, sent.model_version, sent.id) == ("m", "3", "räquest")
    assert [(t.name, t.datatype, [*t.shape]) for t in sent.inputs] == [
        ("x", "INT16", [1, 2]),
        ("b", "BYTES", [2]),
    ]
    assert [*sent.raw_input_contents] == [b"\1\0\xfe\xff", b"\1\0\0\0x\0\0\0\0"]
    assert len(sent.outputs) == 0


def test_the_outputs_that_are_wanted_are_named_with_their_classes() -> None:
    outputs = [RequestedOutput("y", binary=False), RequestedOutput("z", classes=3)]
    sent = made(InferContent([X], outputs=outputs))
    assert [o.name for o in sent.outputs] == ["y", "z"]
    assert dict(sent.outputs[0].parameters) == {}
    assert sent.outputs[1].parameters["classification"].int64_param == 3


def test_parameters_are_sent_save_what_only_rest_has() -> None:
    given = {"binary_data_output": True, "sequence_id": 7, "mine": True, "text": "é", "x": 0.5}
    sent = made(InferContent([X], parameters=given))
    assert {k: p.WhichOneof("parameter_choice") for k, p in sent.parameters.items()} == {
        "sequence_id": "int64_param",
        "mine": "bool_param",
        "text": "string_param",
        "x": "double_param",
    }


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, "\ud800"])
def test_a_parameter_that_no_field_holds_is_refused(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="hold a value that the endpoint cannot be sent"):
        made(InferContent([X], parameters={"mine": value}))


def test_bytes_whose_shape_only_the_model_knows_are_refused() -> None:
    raw = Tensor("", RAW, np.zeros(4, np.uint8))
    with pytest.raises(Unsupported, match="send them in JSON before the binary data"):
        made(InferContent([raw], binary_outputs=True))
