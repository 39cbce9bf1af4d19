"""The message that an endpoint is sent: the client's own, or one made of what a request says."""

from __future__ import annotations

from typing import Final

from headrace.domain.binary import to_binary
from headrace.domain.errors import InvalidRequest, Unsupported
from headrace.domain.inference import InferRequest
from headrace.domain.tensors import RAW, InferContent
from headrace.transport.oip_grpc import schema
from headrace.transport.oip_grpc.payload import GrpcPayload
from headrace.transport.oip_grpc.response import set_parameter, varint

# fields of ModelInferRequest, each with a length
_MODEL_NAME: Final = bytes([1 << 3 | 2])
_MODEL_VERSION: Final = bytes([2 << 3 | 2])
_RAW_INPUT_CONTENTS: Final = bytes([7 << 3 | 2])
#: Says how REST's outputs are sent; all of gRPC's are raw.
_REST_ONLY: Final = "binary_data_output"


def encode(request: InferRequest) -> bytes:
    """Encode a request for its model and version.

    Raises:
        InvalidRequest: it is malformed, or its parameters do not fit the protocol.
        Unsupported: its body is a tensor without name, datatype and shape.
    """
    payload = request.payload
    if isinstance(payload, GrpcPayload):
        return _addressed(payload, request.model, request.version)
    return _made(request.model, request.version, request.content)


def _addressed(payload: GrpcPayload, model: str, version: str) -> bytes:
    """The client's message, for another model or version where it was meant for one.

    The last of several values of a field counts, so a name put behind the message replaces that
    within it, and no tensor is touched.
    """
    # an endpoint could share memory with others, whose tensors are none of the client's
    payload.refuse_shared_memory()
    message, body = payload.message, payload.body
    behind = b""
    if message.model_name != model:
        behind = _MODEL_NAME + _text(model)
    if message.model_version != version:
        behind += _MODEL_VERSION + _text(version)
    return body + behind if behind else body


def _text(value: str) -> bytes:
    encoded = value.encode()
    return varint(len(encoded)) + encoded


def _made(model: str, version: str, content: InferContent) -> bytes:
    parts: list[bytes | memoryview] = [b""]
    try:
        message = schema.ModelInferRequest(model_name=model, model_version=version, id=content.id)
        for key, value in content.parameters.items():
            if key != _REST_ONLY:
                set_parameter(message.parameters[key], value)
        for tensor in content.inputs:
            if tensor.datatype == RAW:
                msg = (
                    "the model's endpoint needs each input's name, datatype and shape: "
                    "send them in JSON before the binary data"
                )
                raise Unsupported(msg)
            shape = tensor.array.shape
            message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
            data = to_binary(tensor.datatype, tensor.array)
            parts += (_RAW_INPUT_CONTENTS, varint(len(data)), data)
        for output in content.outputs or ():
            wanted = message.outputs.add(name=output.name)
            if output.classes:
                wanted.parameters["classification"].int64_param = output.classes
        parts[0] = message.SerializeToString()
    except ValueError as error:  # a number beyond 64 bits, text that is not Unicode
        msg = "the request's id, names or parameters hold a value that the endpoint cannot be sent"
        raise InvalidRequest(msg) from error
    return b"".join(parts)
