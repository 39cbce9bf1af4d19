"""NVIDIA's clients over either wire, used alike, on Triton itself or on a platform before it."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests.support.process import Server
from tests.support.triton import Triton

_MODULES: Final = {"http": tritonclient.http, "grpc": tritonclient.grpc}
_PATIENCE_S: Final = 20.0

Inputs = Mapping[str, npt.NDArray[Any]]


def endpoint(triton: Triton, wire: str) -> dict[str, str]:
    """What an endpoint's settings say of where it is: by REST, by gRPC, or by both."""
    match wire:
        case "rest":
            return {"url": triton.url}
        case "grpc":
            return {"url": f"grpc://{triton.grpc}", "protocol": "oip-grpc"}
        case _:
            return {"url": triton.url, "grpc_url": f"grpc://{triton.grpc}"}


def grpc_address(server: Server) -> str:
    """host:port of the platform's gRPC wire."""
    port = next(line["grpc_port"] for line in server.log() if "grpc_port" in line)
    return f"127.0.0.1:{port}"


def is_idle(server: Server) -> bool:
    """Whether no request is under way, neither here nor at an endpoint."""
    lines = server.request("GET", "/metrics").body.decode().splitlines()
    gauges = ("headrace_requests_in_flight", "headrace_endpoint_in_flight")
    return not any(float(line.rpartition(" ")[2]) for line in lines if line.startswith(gauges))


class TritonClient:
    """`wire` is "http" or "grpc"."""

    def __init__(self, wire: str, address: str) -> None:
        self.wire = wire
        self._module: Any = _MODULES[wire]
        self.client = self._module.InferenceServerClient(address)

    def infer(self, model: str, inputs: Inputs, **options: Any) -> Any:
        """Ask the model."""
        return self.client.infer(model, self.tensors(inputs), **options)

    def output(self, model: str, inputs: Inputs, **options: Any) -> npt.NDArray[Any]:
        """The only output that the model answers with."""
        answer = self.infer(model, inputs, **options)
        said = answer.get_response()
        outputs = said["outputs"] if isinstance(said, dict) else said.outputs
        (output,) = outputs
        found: npt.NDArray[Any] = answer.as_numpy(
            output["name"] if isinstance(output, dict) else output.name
        )
        return found

    def refusal(self, model: str, inputs: Inputs, **options: Any) -> tuple[str, str]:
        """The status and the sentence with which the model is not run."""
        with pytest.raises(InferenceServerException) as refused:
            self.infer(model, inputs, **options)
        return str(refused.value.status()).removeprefix("StatusCode."), refused.value.message()

    def tensors(self, inputs: Inputs) -> list[Any]:
        """As the client wants them."""
        tensors = []
        for name, value in inputs.items():
            tensor = self._module.InferInput(name, value.shape, np_to_triton_dtype(value.dtype))
            tensor.set_data_from_numpy(value)
            tensors.append(tensor)
        return tensors


@contextlib.contextmanager
def client_of(server: Server, wire: str) -> Iterator[TritonClient]:
    """A client of the platform, closed at the end of the block."""
    found = TritonClient(wire, server.address if wire == "http" else grpc_address(server))
    try:
        yield found
    finally:
        found.client.close()


class Stream:
    """A stream of NVIDIA's gRPC client: what is asked on it, and what comes back in order."""

    def __init__(self, client: TritonClient) -> None:
        self._client = client
        self._said: queue.Queue[tuple[Any, Any]] = queue.Queue()

    def ask(self, model: str, inputs: Inputs, **options: Any) -> None:
        """Send a request; its responses come in between those of others."""
        tensors = self._client.tensors(inputs)
        self._client.client.async_stream_infer(model, tensors, **options)

    def next(self) -> tuple[Any, Any]:
        """The next response, or the error in its place."""
        return self._said.get(timeout=_PATIENCE_S)

    def value(self, output: str) -> Any:
        """The only element of an output of the next response."""
        result, error = self.next()
        assert error is None, error
        (found,) = result.as_numpy(output).ravel().tolist()
        return found

    def is_final(self) -> bool:
        """Whether the next message says that its request is over, and nothing else."""
        result, error = self.next()
        assert error is None, error
        response = result.get_response()
        return not response.outputs and response.parameters["triton_final_response"].bool_param

    def cancel(self) -> None:
        """End it without waiting for what is under way."""
        self._client.client.stop_stream(cancel_requests=True)

    def open(self) -> None:
        self._client.client.start_stream(lambda result, error: self._said.put((result, error)))

    def close(self) -> None:
        self._client.client.stop_stream()


@contextlib.contextmanager
def stream_of(client: TritonClient) -> Iterator[Stream]:
    """A stream, which ends with the block when all has been answered."""
    stream = Stream(client)
    stream.open()
    try:
        yield stream
    finally:
        stream.close()


def floats(*values: float) -> npt.NDArray[np.float32]:
    """One row."""
    return np.array([values], np.float32)


def text(*values: str) -> npt.NDArray[np.object_]:
    """A list of strings."""
    return np.array([value.encode() for value in values], np.object_)
