"""The body of an inference response: JSON, and behind it the tensors asked for in binary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson

from headrace.domain.binary import to_binary
from headrace.domain.datatypes import DATATYPES
from headrace.domain.errors import InvalidRequest
from headrace.domain.inference import InferResponse
from headrace.domain.tensors import InferContent, Tensor

_JSON: Final = b"content-type: application/json\r\n"
_BINARY: Final = (
    b"content-type: application/octet-stream\r\ninference-header-content-length: %d\r\n"
)


def encode(
    response: InferResponse, content: InferContent
) -> tuple[bytes, list[bytes | memoryview]]:
    """The header lines and the body parts that answer the request `content`.

    A NaN or an infinity of an output has no JSON form and becomes `null`, as JavaScript writes
    it; binary outputs carry it exactly.

    Raises:
        InvalidRequest: an output that JSON cannot hold was asked for in JSON.
    """
    binary = _binary_names(content)
    outputs: list[dict[str, Any]] = []
    parts: list[bytes | memoryview] = []
    for tensor in response.outputs:
        entry: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.array.shape,
        }
        if content.binary_outputs if binary is None else tensor.name in binary:
            part = to_binary(tensor.datatype, tensor.array)
            entry["parameters"] = {"binary_data_size": len(part)}
            parts.append(part)
        else:
            entry["data"] = in_json(tensor)
        outputs.append(entry)
    document: dict[str, Any] = {
        "model_name": response.model,
        "model_version": response.version,
        "outputs": outputs,
    }
    if response.id:
        document["id"] = response.id
    if response.parameters:
        document["parameters"] = response.parameters
    header = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not parts:
        return _JSON, [header]
    return _BINARY % len(header), [header, *parts]


def _binary_names(content: InferContent) -> Sequence[str] | None:
    if content.outputs is None:
        return None
    return [output.name for output in content.outputs if output.binary]


def in_json(tensor: Tensor) -> Any:
    """The elements of an output as orjson takes them, flat, row-major.

    Raises:
        InvalidRequest: JSON cannot hold them.
    """
    if tensor.datatype == "BYTES":
        try:
            return [element.decode() for element in tensor.array.ravel().tolist()]
        except UnicodeDecodeError:
            msg = (
                f"output '{tensor.name}' holds bytes that are not UTF-8; ask for it as binary data"
            )
            raise InvalidRequest(msg) from None
    if not DATATYPES[tensor.datatype].in_json:
        msg = (
            f"output '{tensor.name}' is {tensor.datatype}, which has no JSON form; "
            "ask for it as binary data"
        )
        raise InvalidRequest(msg)
    return tensor.array.reshape(-1)
