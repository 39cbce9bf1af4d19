"""The body of an inference request, decoded when somebody asks.

A body is JSON, or JSON followed by binary tensors (`Inference-Header-Content-Length` tells where
the JSON ends), or, with a header length of 0, the bytes of the model's only input.
Source: open-inference-protocol `inference_rest.md`; Triton `extension_binary_data.md`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, TypeAlias

import msgspec
import numpy as np

from headrace.domain.binary import from_binary
from headrace.domain.datatypes import DATATYPES
from headrace.domain.errors import InvalidRequest, PayloadTooLarge
from headrace.domain.inference import rows_of
from headrace.domain.tensors import (
    MAX_CLASSES,
    NO_PARAMETERS,
    RAW,
    InferContent,
    Parameters,
    RequestedOutput,
    Tensor,
)
from headrace.transport.oip_rest.tensor_json import from_json

_MAX_AXES: Final = 32
_MAX_TENSORS: Final = 1024
_MAX_LOOK_BYTES: Final = 4 * 1024 * 1024
_MAX_NAME: Final = 1024  # of a tensor, in characters: messages repeat it
_NOTHING: Final = memoryview(b"")

_Axis: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Name: TypeAlias = Annotated[str, msgspec.Meta(max_length=_MAX_NAME)]
_Shape: TypeAlias = Annotated[list[_Axis], msgspec.Meta(max_length=_MAX_AXES)]
_Parameters: TypeAlias = dict[str, bool | int | float | str]


class _Input(msgspec.Struct, gc=False):
    name: _Name
    shape: _Shape
    datatype: str
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    parameters: _Parameters | msgspec.UnsetType = msgspec.UNSET


class _Output(msgspec.Struct, gc=False):
    name: _Name
    parameters: _Parameters | msgspec.UnsetType = msgspec.UNSET


class _Request(msgspec.Struct, gc=False):
    inputs: Annotated[list[_Input], msgspec.Meta(max_length=_MAX_TENSORS)]
    id: str | msgspec.UnsetType = msgspec.UNSET
    parameters: _Parameters | msgspec.UnsetType = msgspec.UNSET
    outputs: Annotated[list[_Output], msgspec.Meta(max_length=_MAX_TENSORS)] | msgspec.UnsetType = (
        msgspec.UNSET
    )


_decode_request: Final = msgspec.json.Decoder(_Request).decode


class RestPayload(msgspec.Struct, gc=False):
    """The body as received; `header_length` is None where all of it is JSON."""

    received: bytes | list[bytes | memoryview]  # a large one in the parts that came
    header_length: int | None = None
    _request: _Request | None = None  # its tensors' data is still text
    _bare: bool = False

    @property
    def bare(self) -> bool:
        """Whether `parameters` found that the request has no such key.

        But for one that is written with escapes, where nothing was decoded to tell.
        """
        request = self._request
        return self._bare or (request is not None and request.parameters is msgspec.UNSET)

    @property
    def body(self) -> bytes:
        """The whole body, joined when first asked for."""
        received = self.received
        if isinstance(received, list):
            received = self.received = b"".join(received)
        return received

    @property
    def size_bytes(self) -> int:
        """See Payload.size_bytes."""
        received = self.received
        return len(received) if isinstance(received, bytes) else sum(map(len, received))

    def parameters(self) -> Parameters:
        """The request's own parameters; decodes nothing where the body cannot have any."""
        if self._bare:
            return NO_PARAMETERS
        request = self._request
        if request is None:
            text = self.body if self.header_length is None else self.text()
            if b'"parameters"' not in text:
                self._bare = True
                return NO_PARAMETERS
            self._request = request = _checked(text)
        return request.parameters or NO_PARAMETERS

    def rows(self) -> int | None:
        """See Payload.rows: of raw bytes only the model knows the shape."""
        if self.header_length == 0:
            return None
        request = self._request = self._request or _checked(self.text())
        return rows_of(request.inputs[0].shape if request.inputs else [])

    def decode(self) -> InferContent:
        """Decode everything. Raises InvalidRequest naming the field."""
        if self.header_length == 0:
            raw = np.frombuffer(self.body, dtype=np.uint8)
            return InferContent([Tensor("", RAW, raw)], binary_outputs=True)
        text = self.body if self.header_length is None else self.text()
        request = self._request or _checked(text)
        colons, keys = text.count(b":"), _keys(request)
        # an escaped colon counts among the values' and not in the text, so it could hide a key
        if colons != keys and (b"\\" in text or colons != keys + _colons_in_values(request)):
            refuse_duplicate_keys(text)
        rest = _NOTHING if text is self.body else memoryview(self.body)[len(text) :]
        inputs, used = _inputs(request.inputs, rest)
        if used != len(rest):
            msg = f"the body has {len(rest) - used} bytes of binary data that no input takes"
            raise InvalidRequest(msg)
        parameters = request.parameters or NO_PARAMETERS
        return InferContent(
            inputs,
            request.id or "",
            parameters,
            _outputs(request.outputs, parameters) if request.outputs else None,
            parameters.get("binary_data_output") is True,
        )

    def text(self) -> bytes:
        """The JSON; copied only where binary data follows, which it is short beside.

        Raises:
            InvalidRequest: the body ends before the JSON does.
        """
        length, received = self.header_length, self.received
        if length is None:
            return self.body
        if isinstance(received, list) and received and len(received[0]) >= length:
            return bytes(received[0][:length])  # the tensors behind it stay as they came
        body = self.body
        if length > len(body):
            msg = (
                f"Inference-Header-Content-Length is {length}, "
                f"but the body has only {len(body)} bytes"
            )
            raise InvalidRequest(msg)
        return body[:length]


def _checked(text: bytes) -> _Request:
    try:
        return _decode_request(text)
    except msgspec.ValidationError as error:
        msg = f"invalid inference request: {error}"
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        msg = f"the request body is not JSON: {error}"
    except RecursionError:
        msg = "the request body is nested too deeply"
    raise InvalidRequest(msg)


def _keys(request: _Request) -> int:
    """How many keys the decoded request has, and so how many colons its text should have."""
    count = 1
    if request.id is not msgspec.UNSET:
        count += 1
    if request.parameters is not msgspec.UNSET:
        count += 1 + len(request.parameters)
    for tensor in request.inputs:
        count += 3
        if tensor.data is not msgspec.UNSET:
            count += 1
        if tensor.parameters is not msgspec.UNSET:
            count += 1 + len(tensor.parameters)
    if request.outputs is not msgspec.UNSET:
        count += 1
        for output in request.outputs:
            count += 1
            if output.parameters is not msgspec.UNSET:
                count += 1 + len(output.parameters)
    return count


def _colons_in_values(request: _Request) -> int:
    """Colons of the text that stand inside strings; right only where no character is escaped."""
    texts = [request.id or ""]
    named: list[_Input | _Output] = [*request.inputs, *(request.outputs or ())]
    for holder in (request, *named):
        texts += [v for v in (holder.parameters or {}).values() if isinstance(v, str)]
    texts += [tensor.name for tensor in named]
    count = sum(text.count(":") for text in texts)
    data = [t.data for t in request.inputs if t.data and t.datatype == "BYTES"]
    return count + sum(bytes(raw).count(b":") for raw in data)


def refuse_duplicate_keys(text: bytes) -> None:
    """Raise InvalidRequest where an object of a JSON text names a key twice.

    Parsers differ in which of the two they take, so a proxy and a server could see different
    requests in the same bytes. The typed decoder does not tell; this slow second look is taken
    only where the number of colons says that there may be something, and only up to a size: it
    would hold up everybody else.
    """
    if len(text) > _MAX_LOOK_BYTES:
        msg = (
            "the request body has keys that the protocol does not know, or escaped text beside "
            f"colons: such a body may have {_MAX_LOOK_BYTES} bytes at most; send it as binary data"
        )
        raise PayloadTooLarge(msg)
    try:
        json.loads(
            bytes(text), object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant
        )
    except RecursionError:
        msg = "the request body is nested too deeply"
        raise InvalidRequest(msg) from None
    except ValueError as error:
        msg = f"the request body is not JSON: {error}"
        raise InvalidRequest(msg) from None


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            msg = f"the request body names the key {key[:64]!a} twice in one object"
            raise InvalidRequest(msg)
        seen.add(key)


def _refuse_constant(name: str) -> None:
    msg = f"{name} is not a number of JSON"
    raise ValueError(msg)


def _inputs(inputs: list[_Input], rest: memoryview) -> tuple[list[Tensor], int]:
    tensors = []
    at = 0
    for i, tensor in enumerate(inputs):
        name, datatype, parameters = tensor.name, tensor.datatype, tensor.parameters
        if datatype not in DATATYPES:
            msg = f"inputs[{i}].datatype: {datatype[:32]!a} is not a datatype"
            raise InvalidRequest(msg)
        size = None
        if parameters:
            _refuse_shared_memory(name, parameters)
            size = parameters.get("binary_data_size")
        if size is not None:
            if type(size) is not int or size < 0:
                msg = f"inputs[{i}].parameters.binary_data_size: expected a whole number >= 0"
                raise InvalidRequest(msg)
            if tensor.data is not msgspec.UNSET:
                msg = f"input '{name}' has both data and binary_data_size"
                raise InvalidRequest(msg)
            if at + size > len(rest):
                msg = (
                    f"input '{name}' asks for {size} bytes of binary data, "
                    f"but only {len(rest) - at} are left in the body"
                )
                raise InvalidRequest(msg)
            array = from_binary(name, datatype, tensor.shape, rest[at : at + size])
            at += size
        elif tensor.data is msgspec.UNSET:
            msg = f"input '{name}' has neither data nor binary_data_size"
            raise InvalidRequest(msg)
        else:
            array = from_json(name, datatype, tensor.shape, tensor.data)
        tensors.append(Tensor(name, datatype, array))
    return tensors, at


def _outputs(outputs: list[_Output], request: Parameters) -> list[RequestedOutput]:
    all_binary = request.get("binary_data_output") is True
    wanted = []
    for output in outputs:
        parameters = output.parameters or {}
        _refuse_shared_memory(output.name, parameters)
        classes = parameters.get("classification", 0)
        if type(classes) is not int or not 0 <= classes <= MAX_CLASSES:
            what = f"classification must be a whole number from 0 to {MAX_CLASSES}"
            msg = f"output '{output.name}': {what}"
            raise InvalidRequest(msg)
        binary = parameters.get("binary_data", all_binary)
        if type(binary) is not bool:
            msg = f"output '{output.name}': binary_data must be true or false"
            raise InvalidRequest(msg)
        wanted.append(RequestedOutput(output.name, binary, classes))
    return wanted


def _refuse_shared_memory(name: str, parameters: Parameters) -> None:
    for key in parameters:
        if key.startswith("shared_memory"):
            msg = f"'{name}': shared memory is not offered; send the data in the request"
            raise InvalidRequest(msg)
