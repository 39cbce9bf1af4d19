"""A client of the Open Inference Protocol, on the standard library's HTTP."""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypeVar

import msgspec
import numpy as np

from headrace.domain.errors import HeadraceError
from headrace.domain.tensors import Array

TIMEOUT_S: Final = 30.0
_OK: Final = 200
_T = TypeVar("_T")


class _Output(msgspec.Struct):
    name: str
    datatype: Literal["FP32"]
    shape: tuple[int, ...]
    data: list[float] = []


class _Answer(msgspec.Struct):
    outputs: tuple[_Output]


class _Refusal(msgspec.Struct):
    error: str


class _TensorMetadata(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]


class _Metadata(msgspec.Struct):
    platform: str
    versions: list[str]
    inputs: list[_TensorMetadata]
    outputs: list[_TensorMetadata]


class Client:
    """One connection to a platform. It blocks: call it from a worker thread."""

    def __init__(self, address: tuple[str, int], *, token: str) -> None:
        self._connection = http.client.HTTPConnection(*address, timeout=TIMEOUT_S)
        self._authorization = {"Authorization": f"Bearer {token}"}

    def get(self, path: str, *, authorized: bool = True) -> tuple[int, bytes]:
        """Status and body. Raises HeadraceError where there is no answer."""
        headers = self._authorization if authorized else {}
        answer, body = self._exchange("GET", path, headers)
        return answer.status, body

    def metadata(self, model: str) -> str:
        """A model's metadata in one line. Raises HeadraceError, as `infer_json` does."""
        status, body = self.get(model_path(model))
        _require_ok(status, body)
        found = _decode(body, _Metadata)
        inputs, outputs = (
            ", ".join(f"{tensor.name} {tensor.datatype}{tensor.shape}" for tensor in tensors)
            for tensors in (found.inputs, found.outputs)
        )
        return f"{found.platform}, version {', '.join(found.versions)}: {inputs} -> {outputs}"

    def infer_json(self, model: str, name: str, row: Array) -> Array:
        """Send an input of one INT32 row as JSON; the model's only output, FP32, from JSON.

        Raises:
            HeadraceError: no answer, a refusal, or an answer that is not one.
        """
        body = json_request(name, row)
        _, answer = self._infer(model, body, {"Content-Type": "application/json"})
        output = _decode(answer, _Answer).outputs[0]
        return _array(np.array(output.data, dtype="<f4").tobytes(), output.shape)

    def infer_binary(self, model: str, name: str, row: Array) -> Array:
        """As `infer_json`, with the tensors behind the JSON in both directions."""
        data = row.astype("<i4").tobytes()
        tensor = _input(name, row) | {"parameters": {"binary_data_size": len(data)}}
        head = msgspec.json.encode({"inputs": [tensor], "parameters": {"binary_data_output": True}})
        headers = {
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(len(head)),
        }
        length, answer = self._infer(model, head + data, headers)
        output = _decode(answer[:length], _Answer).outputs[0]
        return _array(answer[length:], output.shape)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _infer(self, model: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """The length of the answer's JSON part, and the answer."""
        answer, data = self._exchange(
            "POST", infer_path(model), {**headers, **self._authorization}, body
        )
        _require_ok(answer.status, data)
        length = answer.headers.get("Inference-Header-Content-Length", "")
        return int(length) if length.isdecimal() else len(data), data

    def _exchange(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> tuple[http.client.HTTPResponse, bytes]:
        try:
            self._connection.request(method, path, body, dict(headers))
            answer = self._connection.getresponse()
            return answer, answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()  # the next request opens it again
            msg = f"no answer to {method} {path}: {str(error) or type(error).__name__}"
            raise HeadraceError(msg) from error


def model_path(model: str) -> str:
    """Where a model's metadata is."""
    return f"/v2/models/{model}"


def infer_path(model: str) -> str:
    """Where a model's requests go."""
    return f"{model_path(model)}/infer"


def json_request(name: str, row: Array, outputs: Sequence[Mapping[str, Any]] = ()) -> bytes:
    """The body of a request with one INT32 row; without `outputs`, all are asked for."""
    request: dict[str, Any] = {"inputs": [_input(name, row) | {"data": row.tolist()}]}
    if outputs:
        request["outputs"] = outputs
    return msgspec.json.encode(request)


def _input(name: str, row: Array) -> dict[str, Any]:
    return {"name": name, "datatype": "INT32", "shape": [1, len(row)]}


def _require_ok(status: int, body: bytes) -> None:
    if status == _OK:
        return
    reason = body[:200].decode(errors="replace")
    with contextlib.suppress(msgspec.DecodeError):
        reason = msgspec.json.decode(body, type=_Refusal).error
    msg = f"status {status}: {reason}"
    raise HeadraceError(msg)


def _decode(text: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        msg = f"the answer is not what the protocol says: {error}"
        raise HeadraceError(msg) from error


def _array(data: bytes, shape: tuple[int, ...]) -> Array:
    try:
        return np.frombuffer(data, dtype="<f4").reshape(shape)
    except ValueError as error:
        msg = f"the answer has {len(data)} bytes of FP32 for the shape {list(shape)}"
        raise HeadraceError(msg) from error
