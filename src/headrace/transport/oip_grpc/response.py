"""The message of an inference response."""

from __future__ import annotations

from typing import Any, Final

from headrace.domain.binary import to_binary
from headrace.domain.inference import InferResponse
from headrace.transport.oip_grpc import schema

_RAW_OUTPUT_CONTENTS: Final = bytes([6 << 3 | 2])  # its number in ModelInferResponse, with a length
_MAX_INT64: Final = 2**63 - 1


def encode(response: InferResponse) -> bytes:
    """Encode a response; every output is raw, as Triton's are.

    The raw contents are the message's last field, so they are put behind what the library wrote:
    a large tensor is then copied once.
    """
    message = schema.ModelInferResponse(
        model_name=response.model, model_version=response.version, id=response.id
    )
    parts: list[bytes | memoryview] = [b""]
    for tensor in response.outputs:
        message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.array.shape)
        data = to_binary(tensor.datatype, tensor.array)
        parts += (_RAW_OUTPUT_CONTENTS, varint(len(data)), data)
    for key, value in response.parameters.items():
        set_parameter(message.parameters[key], value)
    parts[0] = message.SerializeToString()
    return b"".join(parts)


def set_parameter(parameter: Any, value: Any) -> None:
    """Put a value into an InferParameter. ValueError where no field of it holds such a value."""
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int) and value <= _MAX_INT64:
        parameter.int64_param = value
    elif isinstance(value, int):
        parameter.uint64_param = value
    elif isinstance(value, float):
        parameter.double_param = value
    else:
        parameter.string_param = str(value)


def varint(value: int) -> bytes:
    """Encode a number that is not negative, as a field's length."""
    low = value
    encoded = bytearray()
    while low > 0x7F:  # noqa: PLR2004 - seven bits a byte, and one that says that more follows
        encoded.append(low & 0x7F | 0x80)
        low >>= 7
    encoded.append(low)
    return bytes(encoded)
