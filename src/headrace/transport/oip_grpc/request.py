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
from headrace.transport.time_left import shorter

# fields of ModelInferRequest, each with a length
_MODEL_NAME: Final = bytes([1 << 3 | 2])
_MODEL_VERSION: Final = bytes([2 << 3 | 2])
_RAW_INPUT_CONTENTS: Final = bytes([7 << 3 | 2])
#: An entry of its `parameters`, before its value: an int64_param of so many bytes for "timeout".
_TIMEOUTS: Final = tuple(
    b"%c%c\x0a\x07timeout\x12%c\x10" % (4 << 3 | 2, 12 + size, 1 + size) for size in range(11)
)
_WANTS_EMPTY_FINAL: Final = b"triton_enable_empty_final_response"
#: An entry of a ModelInferRequest's `parameters`, to be put behind it: a stream's end is told, in a
#: response of its own where it has to be.
WANTS_EMPTY_FINAL: Final = (
    b"%c%c\x0a%c" % (4 << 3 | 2, len(_WANTS_EMPTY_FINAL) + 6, len(_WANTS_EMPTY_FINAL))
    + _WANTS_EMPTY_FINAL
    + b"\x12\x02\x08\x01"
)
#: Says how REST's outputs are sent; all of gRPC's are raw.
_REST_ONLY: Final = "binary_data_output"


def encode(request: InferRequest, left_us: int = 0) -> bytes:
    """Encode a request for its model and version.

    `left_us` is the time that the endpoint has, in microseconds; 0 where there is no deadline.

    Raises:
        InvalidRequest: it is malformed, or its parameters do not fit the protocol.
        Unsupported: its body is a tensor without name, datatype and shape.
    """
    payload = request.payload
    if isinstance(payload, GrpcPayload):
        return _addressed(payload, request.model, request.version, left_us)
    return _made(request.model, request.version, request.content, left_us)


def _addressed(payload: GrpcPayload, model: str, version: str, left_us: int) -> bytes:
    """The client's message, for another model or version where it was meant for one.

    The last of several values of a field or of a map's key counts, so what is put behind the
    message replaces what is within it, and no tensor is touched.
    """
    # an endpoint could share memory with others, whose tensors are none of the client's
    payload.refuse_shared_memory()
    message, body = payload.message, payload.body
    behind = b""
    if message.model_name != model:
        behind = _MODEL_NAME + _text(model)
    if message.model_version != version:
        behind += _MODEL_VERSION + _text(version)
    if left_us:
        if own := payload.parameters():
            left_us = shorter(own.get("timeout"), left_us)
        behind += timeout_entry(left_us)
    return body + behind if behind else body


def timeout_entry(left_us: int) -> bytes:
    """The parameter `timeout`, encoded as a field of a ModelInferRequest."""
    number = varint(left_us)
    return _TIMEOUTS[len(number)] + number


def _text(value: str) -> bytes:
    encoded = value.encode()
    return varint(len(encoded)) + encoded


def _made(model: str, version: str, content: InferContent, left_us: int) -> bytes:
    parts: list[bytes | memoryview] = [b""]
    try:
        message = schema.ModelInferRequest(model_name=model, model_version=version, id=content.id)
        for key, value in content.parameters.items():
            if key != _REST_ONLY:
                set_parameter(message.parameters[key], value)
        if left_us:
            timeout_us = shorter(content.parameters.get("timeout"), left_us)
            message.parameters["timeout"].int64_param = timeout_us
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
