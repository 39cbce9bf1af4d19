"""Does a request fit a version's signature? A pure question, answered with a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np

from headrace.domain.binary import from_binary, join_bytes
from headrace.domain.datatypes import DATATYPES
from headrace.domain.errors import InvalidRequest
from headrace.domain.models import Signature, TensorSpec
from headrace.domain.tensors import RAW, Array, InferContent, Tensor
from headrace.orchestrator.pending import BatchKey

_FITTING_KEPT: Final = 256


class Bound(msgspec.Struct):
    """A request's inputs, checked. `rows` is 1 where the version has no batch axis."""

    inputs: dict[str, Array]
    rows: int
    key: BatchKey


class RequestCheck:
    """Checks requests against one version; made once per version."""

    def __init__(self, model: str, signature: Signature, *, max_batch_size: int) -> None:
        self._model = model
        self._signature = signature
        self._specs = {spec.name: spec for spec in signature.inputs}
        self._required = sum(not spec.optional for spec in signature.inputs)
        self._max_rows = max_batch_size
        self._outputs = {spec.name for spec in signature.outputs}
        self._fitting: set[tuple[str, tuple[int, ...]]] = set()  # inputs and shapes seen to fit
        # requests differ only in rows where no other axis is dynamic and no input optional
        self._uniform = self._required == len(signature.inputs) and all(
            size >= 0 for spec in signature.inputs for size in spec.shape[1:]
        )

    def bind(self, content: InferContent) -> Bound:
        """Check names, datatypes, shapes and rows.

        Raises:
            InvalidRequest: naming the input or output.
        """
        tensors = content.inputs
        if len(tensors) == 1 and tensors[0].datatype == RAW:
            tensors = [self._raw(tensors[0].array)]
        inputs: dict[str, Array] = {}
        rows = 0
        for tensor in tensors:
            spec = self._specs.get(tensor.name)
            array = tensor.array
            if spec is None:
                raise InvalidRequest(self._unknown_input(tensor.name))
            if tensor.datatype != spec.datatype:
                msg = (
                    f"inference input data-type is '{tensor.datatype}', but for model "
                    f"'{self._model}' input '{spec.name}' expects '{spec.datatype}'"
                )
                raise InvalidRequest(msg)
            shape = array.shape
            if (tensor.name, shape) not in self._fitting:
                self._check_shape(spec, shape)
            if self._max_rows:
                if inputs and shape[0] != rows:
                    msg = (
                        f"input '{spec.name}' batch size {shape[0]} does not match "
                        f"the other inputs' {rows} for model '{self._model}'"
                    )
                    raise InvalidRequest(msg)
                rows = shape[0]
            inputs[tensor.name] = array
        if len(inputs) != len(tensors) or len(inputs) != len(self._specs):
            self._check_names(tensors)
        if content.outputs is not None:
            self._check_outputs([output.name for output in content.outputs])
        if self._max_rows:
            self._check_rows(rows)
        else:
            rows = 1
        if self._uniform:
            key: BatchKey = ()
        else:
            key = tuple((name, inputs[name].shape[1:]) for name in self._specs if name in inputs)
        return Bound(inputs, rows, key)

    def _check_rows(self, rows: int) -> None:
        if rows < 1:
            msg = f"inference request for model '{self._model}' has no rows"
            raise InvalidRequest(msg)
        if rows > self._max_rows:
            msg = f"inference request batch-size must be <= {self._max_rows} for '{self._model}'"
            raise InvalidRequest(msg)

    def _check_shape(self, spec: TensorSpec, shape: tuple[int, ...]) -> None:
        expected = spec.shape
        if len(shape) == len(expected) and all(
            wanted in {size, -1} for size, wanted in zip(shape, expected, strict=True)
        ):
            if len(self._fitting) < _FITTING_KEPT:
                self._fitting.add((spec.name, shape))
            return
        msg = (
            f"unexpected shape for input '{spec.name}' for model '{self._model}'. "
            f"Expected {_dims(expected)}, got {_dims(shape)}"
        )
        raise InvalidRequest(msg)

    def _check_names(self, tensors: Sequence[Tensor]) -> None:
        names = [tensor.name for tensor in tensors]
        for name in names:
            if names.count(name) > 1:
                msg = f"input '{name}' already exists in request for model '{self._model}'"
                raise InvalidRequest(msg)
        missing = [n for n, spec in self._specs.items() if not spec.optional and n not in names]
        if missing:
            most = len(self._specs)
            if self._required == most:
                told = f"expected {most} inputs but got {len(names)} inputs for"
            elif len(names) < self._required:
                told = (
                    f"expected number of inputs between {self._required} and {most} "
                    f"but got {len(names)} inputs for"
                )
            else:  # as many as would do, of which some are optional
                told = f"the {len(names)} inputs given are not all that are required for"
            names_of_missing = ", ".join(map(repr, missing))
            msg = f"{told} model '{self._model}'. Missing: {names_of_missing}"
            raise InvalidRequest(msg)

    def _check_outputs(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self._outputs:
                known = ", ".join(f"'{output}'" for output in sorted(self._outputs))
                msg = (
                    f"unexpected inference output {_quoted(name)} for model '{self._model}'; "
                    f"it has {known}"
                )
                raise InvalidRequest(msg)
        if len(set(names)) != len(names):
            msg = f"an output is requested twice of model '{self._model}'"
            raise InvalidRequest(msg)

    def _unknown_input(self, name: str) -> str:
        known = ", ".join(f"'{spec}'" for spec in self._specs)
        return (
            f"unexpected inference input {_quoted(name)} for model '{self._model}'; it has {known}"
        )

    def _raw(self, data: np.ndarray[Any, Any]) -> Tensor:
        """The only input, from the bytes of a raw request: one row, at most one open axis."""
        if len(self._signature.inputs) != 1:
            msg = (
                f"Raw request must only have 1 input (found {len(self._signature.inputs)}) to be "
                f"deduced but got {len(self._signature.inputs)} inputs in "
                f"'{self._model}' model configuration"
            )
            raise InvalidRequest(msg)
        spec = self._signature.inputs[0]
        shape = [1, *spec.shape[1:]] if self._max_rows else list(spec.shape)
        content = data.tobytes()
        if spec.datatype == "BYTES":
            content = join_bytes([content])  # a raw request is one element, without its length
            shape = [1 if size == -1 else size for size in shape]
        elif shape.count(-1) == 1:
            element = DATATYPES[spec.datatype].size_bytes
            rest = -math.prod(shape) * element
            shape[shape.index(-1)] = len(content) // rest if rest else 0
        elif -1 in shape:
            msg = (
                f"input '{spec.name}' of model '{self._model}' has several dynamic axes; "
                "a raw request cannot tell its shape"
            )
            raise InvalidRequest(msg)
        array = from_binary(spec.name, spec.datatype, shape, content)
        return Tensor(spec.name, spec.datatype, array)


def _dims(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _quoted(name: str) -> str:
    return ascii(name[:64])
