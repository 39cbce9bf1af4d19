"""Rows that are alike as one request, and its answer taken apart again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import msgspec
import numpy as np

from headrace.domain.errors import InvalidResponse
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.tensors import InferContent, Tensor
from headrace.ports.rows import Row

#: What rows that may be merged have in common. Texts for values: True, 1 and 1.0 are equal.
Alike: TypeAlias = tuple[object, ...]

#: What most rows of a file have in common, the length of their first axis included.
Form: TypeAlias = tuple[str, str, str, str, tuple[int, ...]]

_ALONE: Final = 0


class Batch(msgspec.Struct):
    """Rows of a chunk that are asked about together."""

    places: list[int]  # of the rows in the chunk, ascending
    rows: list[Row]
    lengths: list[int]  # of the first axis, of each row; 0: it must not be merged, nor taken apart
    length: int = 0  # of the first axis, of all
    size_bytes: int = 0
    request: InferRequest | None = None  # about all rows, where they were decoded together
    text: memoryview | bytes = b""  # their lines then; the rows have no requests of their own yet

    @property
    def rows_asked(self) -> int:
        """Rows of the model; those of the file, where nothing else is known."""
        return self.length or len(self.rows)

    def add(self, place: int, row: Row, length: int, size_bytes: int) -> None:
        """Take a row in."""
        self.places.append(place)
        self.rows.append(row)
        self.lengths.append(length)
        self.length += length
        self.size_bytes += size_bytes

    def halves(self) -> tuple[Batch, Batch]:
        """The same rows in two batches; there are two at least."""
        half = len(self.rows) // 2
        places, rows, lengths = self.places, self.rows, self.lengths
        return (
            Batch(places[:half], rows[:half], lengths[:half], sum(lengths[:half])),
            Batch(places[half:], rows[half:], lengths[half:], sum(lengths[half:])),
        )


def length_of(content: InferContent) -> int:
    """How many rows of a model a row of the file has; 0 where its inputs do not agree on that."""
    length = _ALONE
    for tensor in content.inputs:
        shape = tensor.array.shape
        if not shape or (length and shape[0] != length):
            return _ALONE
        length = shape[0]
    return length


def alike(request: InferRequest, content: InferContent) -> Alike:
    """Rows for which this is equal may be merged along their first axis."""
    inputs = content.inputs
    parameters, outputs = content.parameters, content.outputs
    said = repr(sorted(parameters.items())) if parameters else ""
    wanted = repr(outputs) if outputs is not None else ""
    if len(inputs) == 1:
        tensor = inputs[0]
        shape = tensor.array.shape[1:]
        return (request.model, request.version, said, wanted, tensor.name, tensor.datatype, shape)
    shapes = tuple([(t.name, t.datatype, t.array.shape[1:]) for t in inputs])
    return (request.model, request.version, said, wanted, shapes)


def form_of(request: InferRequest, content: InferContent) -> Form | None:
    """The form of a row that says nothing but one input: all else of it is known by this."""
    if content.parameters or content.outputs is not None or len(content.inputs) != 1:
        return None
    tensor = content.inputs[0]
    return request.model, request.version, tensor.name, tensor.datatype, tensor.array.shape


def request_of(batch: Batch) -> InferRequest:
    """One request that asks about all rows of a batch."""
    return batch.request or merged(batch.rows)


def merged(rows: Sequence[Row]) -> InferRequest:
    """One request that asks about all `rows`, which are alike."""
    first = rows[0].request
    assert first is not None, "rows without a request are not asked about"  # noqa: S101
    if len(rows) == 1:
        return first
    contents = [row.request.content for row in rows if row.request is not None]
    likeness = contents[0]
    inputs = [
        Tensor(
            tensor.name,
            tensor.datatype,
            np.concatenate([content.inputs[i].array for content in contents]),
        )
        for i, tensor in enumerate(likeness.inputs)
    ]
    content = InferContent(inputs, "", likeness.parameters, likeness.outputs)
    return InferRequest(first.model, first.version, None, content)


def check(batch: Batch, response: InferResponse) -> None:
    """Raise InvalidResponse where an answer does not fit what was asked."""
    request = batch.request or batch.rows[0].request
    assert request is not None, "rows without a request are not asked about"  # noqa: S101
    outputs = response.outputs
    wanted = request.content.outputs
    if not outputs:
        raise InvalidResponse(f"model '{response.model}' answered without any output")
    if wanted is not None:
        names = {output.name for output in outputs}
        for output in wanted:
            if output.name not in names:
                msg = f"the answer of model '{response.model}' lacks the output '{output.name}'"
                raise InvalidResponse(msg)
    if batch.lengths[0] == _ALONE:
        return
    for tensor in outputs:
        shape = tensor.array.shape
        if not shape or shape[0] != batch.length:
            what = f"shape {list(shape)} for {batch.length} rows"
            msg = f"output '{tensor.name}' of model '{response.model}' has {what}"
            raise InvalidResponse(msg)


def part_of(response: InferResponse, start: int, end: int) -> InferResponse:
    """The answer to the model's rows from `start` to before `end`: views of the whole."""
    views = [Tensor(t.name, t.datatype, t.array[start:end]) for t in response.outputs]
    return InferResponse(response.model, response.version, views, "", response.parameters)


def taken_apart(batch: Batch, response: InferResponse) -> list[InferResponse]:
    """The answers to a batch's rows, of one that fits; their outputs are views of the whole."""
    outputs = response.outputs
    answers, start = [], 0
    for row, length in zip(batch.rows, batch.lengths, strict=True):
        end = start + length
        views = outputs
        if len(batch.rows) > 1:
            views = [Tensor(t.name, t.datatype, t.array[start:end]) for t in outputs]
        identity = row.request.content.id if row.request is not None else ""
        answers.append(
            InferResponse(response.model, response.version, views, identity, response.parameters)
        )
        start = end
    return answers
