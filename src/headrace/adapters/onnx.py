"""ONNX models, run in this process by ONNX Runtime on the CPU."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from headrace.domain.errors import InvalidRequest, ModelFailed, ModelLoadFailed
from headrace.domain.models import Signature, TensorSpec
from headrace.domain.signatures import batch_limit, reconcile
from headrace.domain.tensors import Array
from headrace.ports.executor import Arrays, ModelSource

# ONNX Runtime reports its use to its maker unless told otherwise before it is loaded
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

#: ONNX Runtime's names of tensor types. Its Python binding cannot feed bfloat16 from numpy.
_DATATYPES: Final = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
_FATAL: Final = 4  # log severity: its errors reach us as exceptions, with the same text
#: Words of a run's failure that come from shapes; where clients choose shapes it is their mistake.
_OF_SHAPES: Final = ("shape", "dimension", "broadcast", "axis", "axes")
_OF_VALUES: Final = "out of data bounds"  # an index, as of a token, that the model does not have


class OnnxLoader:
    """Loads `model.onnx` files; the instances of a version share one session, which is safe."""

    def __init__(self, *, default_max_batch_size: int) -> None:
        self._default_max_batch_size = default_max_batch_size

    def load(self, source: ModelSource) -> Sequence[OnnxExecutor]:
        """See ExecutorLoader.load."""
        if source.config.decoupled:
            msg = (
                "the configuration says model_transaction_policy { decoupled: true }, "
                "but an ONNX model answers a request once: leave it out"
            )
            raise ModelLoadFailed(msg)
        session = _open(source.file, source.config.intra_op_threads)
        found = Signature(
            tuple(_spec(node, "input") for node in session.get_inputs()),
            tuple(_spec(node, "output") for node in session.get_outputs()),
        )
        max_batch_size = batch_limit(source.config, found, self._default_max_batch_size)
        signature = reconcile(source.config, found, max_batch_size)
        for spec in signature.inputs:
            if spec.optional:
                msg = f"the configuration makes input '{spec.name}' optional; the model requires it"
                raise ModelLoadFailed(msg)
        executor = OnnxExecutor(session, signature, max_batch_size, loops=_has_loops(source.file))
        return [executor] * max(source.config.instances, 1)


class OnnxExecutor:
    """One session.

    Its runs take a time that rows tell where no other axis is open and the graph has no loops.
    """

    decoupled = False

    def __init__(
        self, session: Any, signature: Signature, max_batch_size: int, *, loops: bool
    ) -> None:
        self.signature = signature
        self.max_batch_size = max_batch_size
        self._run = session.run
        self._outputs = [spec.name for spec in signature.outputs]
        batched = int(max_batch_size > 0)
        self._open_shapes = any(-1 in spec.shape[batched:] for spec in signature.inputs)
        self.bounded = not (self._open_shapes or loops)
        self._text_inputs = [s.name for s in signature.inputs if s.datatype == "BYTES"]
        self._text_outputs = [
            i for i, spec in enumerate(signature.outputs) if spec.datatype == "BYTES"
        ]

    def run(self, inputs: Arrays) -> Sequence[Array]:
        """See Executor.run."""
        if self._text_inputs:
            inputs = _with_text(inputs, self._text_inputs)
        try:
            outputs: list[Array] = self._run(self._outputs, inputs)
        except ort_errors.InvalidArgument as error:
            msg = f"the model refuses the input: {_first_line(error)}"
            raise InvalidRequest(msg) from error
        except Exception as error:  # ONNX Runtime's own classes share no base but this
            text = _first_line(error)
            shapes = self._open_shapes and any(word in text.lower() for word in _OF_SHAPES)
            if shapes or _OF_VALUES in text:
                msg = f"the model refuses the input: {text}"
                raise InvalidRequest(msg) from error
            msg = f"the model failed: {text}"
            raise ModelFailed(msg) from error
        for i in self._text_outputs:
            outputs[i] = _encoded(outputs[i])
        return outputs

    def stream(self, inputs: Arrays) -> Iterator[Sequence[Array]]:
        """See Executor.stream."""
        yield self.run(inputs)

    def close(self) -> None:
        """Let go of the session; its memory goes with the last instance's reference."""
        self._run = _closed


def _closed(*_: Any) -> list[Array]:
    msg = "the model is unloaded"
    raise ModelFailed(msg)


def _open(file: Path, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    # idle workers that spin would take the processor from the event loop
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own classes share no base but this
        reason = _first_line(error).replace(str(file), file.name)
        msg = f"{file.name} cannot be loaded: {reason}"
        raise ModelLoadFailed(msg) from error


def _has_loops(file: Path) -> bool:
    """Whether the file may hold an operator that runs as often as its input says.

    Looks for the operators' names, which also stand in other places: then the model is only kept
    off the event loop without need.
    """
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(b"Loop") >= 0 or data.find(b"Scan") >= 0


def _spec(node: Any, kind: str) -> TensorSpec:
    datatype = _DATATYPES.get(node.type)
    if datatype is None:
        hint = "; export it with zipmap=False" if "map(" in node.type else ""
        msg = f"{kind} '{node.name}' is a {node.type}, which cannot be served{hint}"
        raise ModelLoadFailed(msg)
    # an open axis is a symbol's name, or None
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape)
    return TensorSpec(node.name, datatype, shape)


def _with_text(inputs: Arrays, names: Sequence[str]) -> Mapping[str, Array]:
    """ONNX strings are text: BYTES must be UTF-8."""
    fed = dict(inputs)
    for name in names:
        array = fed.get(name)
        if array is None:
            continue  # ONNX Runtime names what is missing
        text: Array = np.empty(array.shape, dtype=np.object_)
        try:
            text.reshape(-1)[:] = [element.decode() for element in array.ravel().tolist()]
        except UnicodeDecodeError:
            msg = f"input '{name}' holds bytes that are not UTF-8, which the model's strings are"
            raise InvalidRequest(msg) from None
        fed[name] = text
    return fed


def _encoded(array: Array) -> Array:
    data: Array = np.empty(array.shape, dtype=np.object_)
    data.reshape(-1)[:] = [str(element).encode() for element in array.ravel().tolist()]
    return data


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:500]
