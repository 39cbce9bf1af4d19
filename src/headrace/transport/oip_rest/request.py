"""The body of an inference request, written for an endpoint: JSON with binary tensors behind."""

from __future__ import annotations

from typing import Any

import orjson

from headrace.domain.binary import to_binary
from headrace.domain.tensors import RAW, InferContent, RequestedOutput
from headrace.transport.time_left import shorter


def encode(content: InferContent, left_us: int = 0) -> tuple[int, list[bytes | memoryview]]:
    """The length of the JSON in bytes, and the body's parts. Outputs are asked for in binary.

    `left_us` is the time that the endpoint has, in microseconds; 0 where there is no deadline.
    """
    if content.inputs and content.inputs[0].datatype == RAW:  # the bytes of the only input
        return 0, [content.inputs[0].array.data]
    inputs: list[dict[str, Any]] = []
    parts: list[bytes | memoryview] = []
    for tensor in content.inputs:
        part = to_binary(tensor.datatype, tensor.array)
        parts.append(part)
        inputs.append(
            {
                "name": tensor.name,
                "shape": tensor.array.shape,
                "datatype": tensor.datatype,
                "parameters": {"binary_data_size": len(part)},
            }
        )
    document: dict[str, Any] = {
        "inputs": inputs,
        "parameters": {**content.parameters, "binary_data_output": True},
    }
    if left_us:
        document["parameters"]["timeout"] = shorter(content.parameters.get("timeout"), left_us)
    if content.id:
        document["id"] = content.id
    if content.outputs is not None:
        document["outputs"] = [_output(output) for output in content.outputs]
    header = orjson.dumps(document)
    return len(header), [header, *parts]


def _output(output: RequestedOutput) -> dict[str, Any]:
    parameters: dict[str, Any] = {"binary_data": True}
    if output.classes:
        parameters["classification"] = output.classes
    return {"name": output.name, "parameters": parameters}
