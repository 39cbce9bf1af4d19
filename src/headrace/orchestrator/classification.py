"""The classification extension: an output as its highest classes, with their labels.

Source: Triton `docs/protocol/extension_classification.md`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headrace.domain.errors import InvalidRequest
from headrace.domain.tensors import Array, Tensor


def classify(tensor: Tensor, classes: int, labels: Sequence[str], *, batched: bool) -> Tensor:
    """The top `classes` of each row of `tensor` as BYTES "<value>:<index>[:<label>]".

    The answer has shape [rows, classes], or [classes] where there is no batch axis; fewer than
    asked where the output has fewer elements. Among equals the lower index comes first.

    Raises:
        InvalidRequest: the output is BYTES or BOOL, and so has no highest values.
    """
    if tensor.datatype in {"BYTES", "BOOL"}:
        msg = f"output '{tensor.name}' is {tensor.datatype} and cannot be classified"
        raise InvalidRequest(msg)
    rows = tensor.array.shape[0] if batched else 1
    table = tensor.array.reshape(rows, -1)
    count = min(classes, table.shape[1])
    order = np.argsort(_descending(table), axis=1, kind="stable")[:, :count]
    answer: Array = np.empty((rows, count), dtype=np.object_)
    for row in range(rows):
        for place, index in enumerate(order[row].tolist()):
            text = f"{_number(table[row, index])}:{index}"
            if index < len(labels):
                text += f":{labels[index]}"
            answer[row, place] = text.encode()
    return Tensor(tensor.name, "BYTES", answer if batched else answer[0])


def _descending(table: Array) -> Array:
    """What ascends where `table` descends; `~` does so for whole numbers, the extremes included."""
    return -table if table.dtype.kind == "f" else ~table


def _number(value: np.generic) -> str:
    return f"{value:f}" if value.dtype.kind == "f" else str(value.item())
