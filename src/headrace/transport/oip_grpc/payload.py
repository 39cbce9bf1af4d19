"""The message of an inference request, its tensors decoded when somebody asks.

Source: open-inference-protocol `open_inference_grpc.proto`; Triton `grpc_service.proto`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np

from headrace.domain.binary import from_binary, shaped
from headrace.domain.datatypes import DATATYPES
from headrace.domain.errors import InvalidRequest
from headrace.domain.inference import rows_of
from headrace.domain.tensors import (
    MAX_CLASSES,
    NO_PARAMETERS,
    Array,
    InferContent,
    Parameters,
    RequestedOutput,
    Tensor,
)

MAX_AXES: Final = 32
_MAX_TENSORS: Final = 1024

#: The field of InferTensorContents that holds a datatype's elements.
_CONTENTS: Final = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_NARROW: Final = {"INT8", "INT16", "UINT8", "UINT16"}  # narrower than the field's elements


class GrpcPayload:
    """A parsed ModelInferRequest: its strings and numbers are read, its tensors are not.

    `body` is the message as it came, for an endpoint that is sent it as it is.
    """

    __slots__ = ("_parameters", "body", "message")

    def __init__(self, message: Any, body: bytes) -> None:
        self.message = message
        self.body = body
        self._parameters: Parameters | None = None

    @property
    def size_bytes(self) -> int:
        """See Payload.size_bytes."""
        return len(self.body)

    def parameters(self) -> Parameters:
        """The request's own parameters."""
        parameters = self._parameters
        if parameters is None:
            sent = self.message.parameters
            parameters = self._parameters = read_parameters("", sent) if sent else NO_PARAMETERS
        return parameters

    def rows(self) -> int | None:
        """See Payload.rows."""
        inputs = self.message.inputs
        return rows_of(inputs[0].shape if inputs else [])

    def refuse_shared_memory(self) -> None:
        """Look for it where tensors are not decoded. Raises InvalidRequest, as `decode` does."""
        for tensors in (self.message.inputs, self.message.outputs):
            for tensor in tensors:
                if tensor.parameters:
                    _refuse_shared_memory(tensor.name, tensor.parameters)

    def decode(self) -> InferContent:
        """Decode everything. Raises InvalidRequest naming the field."""
        message = self.message
        outputs = message.outputs
        return InferContent(
            _inputs(message.inputs, message.raw_input_contents),
            message.id,
            self.parameters(),
            _outputs(outputs) if outputs else None,
            binary_outputs=True,
        )


def _inputs(inputs: Sequence[Any], raw: Sequence[bytes]) -> list[Tensor]:
    _bound("inputs", inputs)
    if raw and len(raw) != len(inputs):
        msg = (
            f"the request has {len(inputs)} inputs but {len(raw)} raw_input_contents; "
            "either every input has one, or none has"
        )
        raise InvalidRequest(msg)
    tensors = []
    for i, tensor in enumerate(inputs):
        name, datatype, shape = tensor.name, tensor.datatype, list(tensor.shape)
        require_form(f"inputs[{i}]", datatype, shape)
        if tensor.parameters:
            _refuse_shared_memory(name, read_parameters(f"inputs[{i}].", tensor.parameters))
        if not raw:
            array = from_contents(name, datatype, shape, tensor.contents)
        elif tensor.HasField("contents"):
            msg = f"input '{name}' has contents, which must not stand beside raw_input_contents"
            raise InvalidRequest(msg)
        else:
            array = from_binary(name, datatype, shape, raw[i])
        tensors.append(Tensor(name, datatype, array))
    return tensors


def require_form(where: str, datatype: str, shape: Sequence[int]) -> None:
    """Raise InvalidRequest where no tensor has such a datatype or shape; `where` is its place."""
    if datatype not in DATATYPES:
        msg = f"{where}.datatype: {datatype[:32]!a} is not a datatype"
        raise InvalidRequest(msg)
    if len(shape) > MAX_AXES or (shape and min(shape) < 0):
        msg = f"{where}.shape: expected at most {MAX_AXES} axes, none of them negative"
        raise InvalidRequest(msg)


def from_contents(name: str, datatype: str, shape: Sequence[int], contents: Any) -> Array:
    """Decode the typed contents of a tensor; errors call it an input.

    Raises:
        InvalidRequest: they are not of `datatype`, or do not fit `shape`.
    """
    elements = require_contents(name, datatype, shape, contents)
    if datatype == "BYTES":
        array: Array = np.empty(len(elements), dtype=np.object_)
        array[:] = elements
    elif datatype in _NARROW:
        array = _narrowed(name, datatype, np.fromiter(elements, np.int64, len(elements)))
    else:
        array = np.fromiter(elements, DATATYPES[datatype].dtype, len(elements))
    return shaped(name, array, shape)


def require_contents(
    name: str, datatype: str, shape: Sequence[int], contents: Any
) -> Sequence[Any]:
    """The elements in the typed contents of a tensor, as many as `shape` takes.

    Raises:
        InvalidRequest: they are not of `datatype`, or do not fit `shape`.
    """
    field = _CONTENTS.get(datatype)
    if field is None:
        msg = f"input '{name}' is {datatype}, which has no contents; send raw_input_contents"
        raise InvalidRequest(msg)
    for descriptor, _ in contents.ListFields():
        if descriptor.name != field:
            msg = f"input '{name}' is {datatype} and takes {field}, but has {descriptor.name}"
            raise InvalidRequest(msg)
    elements: Sequence[Any] = getattr(contents, field)
    if len(elements) != math.prod(shape):
        msg = (
            f"input '{name}' has {len(elements)} elements in {field}, "
            f"but shape {list(shape)} takes {math.prod(shape)}"
        )
        raise InvalidRequest(msg)
    return elements


def _narrowed(name: str, datatype: str, wide: Array) -> Array:
    dtype = DATATYPES[datatype].dtype
    narrow = wide.astype(dtype)
    if not np.array_equal(narrow, wide):
        msg = f"input '{name}' holds a number outside the range of {datatype}"
        raise InvalidRequest(msg)
    return narrow


def _outputs(outputs: Sequence[Any]) -> list[RequestedOutput]:
    _bound("outputs", outputs)
    wanted = []
    for i, output in enumerate(outputs):
        name, classes = output.name, 0
        if output.parameters:
            parameters = read_parameters(f"outputs[{i}].", output.parameters)
            _refuse_shared_memory(name, parameters)
            classes = parameters.get("classification", 0)
            if type(classes) is not int or not 0 <= classes <= MAX_CLASSES:
                what = f"classification must be a whole number from 0 to {MAX_CLASSES}"
                msg = f"output '{name}': {what}"
                raise InvalidRequest(msg)
        wanted.append(RequestedOutput(name, binary=True, classes=classes))
    return wanted


def read_parameters(where: str, parameters: Any) -> dict[str, Any]:
    """A map of InferParameter as Python values; `where` is what stands before it, with a dot.

    Raises:
        InvalidRequest: a value has none of the types that are known here.
    """
    values = {}
    for key, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            msg = f"{where}parameters.{key[:64]}: has no value of a type that is known here"
            raise InvalidRequest(msg)
        values[key] = getattr(parameter, choice)
    return values


def _bound(what: str, tensors: Sequence[Any]) -> None:
    if len(tensors) > _MAX_TENSORS:
        msg = f"the request has {len(tensors)} {what}; {_MAX_TENSORS} are allowed"
        raise InvalidRequest(msg)


def _refuse_shared_memory(name: str, parameters: Iterable[str]) -> None:
    for key in parameters:
        if key.startswith("shared_memory"):
            msg = f"'{name}': shared memory is not offered; send the data in the request"
            raise InvalidRequest(msg)
