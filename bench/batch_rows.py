"""Files of rows for batch jobs, as any program would write them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import orjson

from bench.workload import Workload

_DISTINCT: Final = 2500  # rows, which then come again under other ids
_AT_ONCE: Final = 10_000


class RowsFile(msgspec.Struct, frozen=True):
    """A file of rows, one line each."""

    path: str
    rows: int
    model: str

    @property
    def endpoint(self) -> str:
        """What a job over these rows asks for."""
        return f"/v2/models/{self.model}/infer"


def write(work: Workload, rows: int, file: Path) -> RowsFile:
    """Write `rows` rows of `work`'s model, each with another custom_id."""
    bodies = _bodies(work, min(rows, _DISTINCT))
    url = work.path
    with file.open("wb") as out:
        for first in range(0, rows, _AT_ONCE):
            out.write(
                b"".join(
                    b'{"custom_id": "row-%d", "method": "POST", "url": "%b", "body": %b}\n'
                    % (number, url.encode(), bodies[number % len(bodies)])
                    for number in range(first, min(first + _AT_ONCE, rows))
                )
            )
    return RowsFile(str(file), rows, work.model)


def _bodies(work: Workload, count: int) -> Sequence[bytes]:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((count, *work.row.shape)).astype(work.row.dtype)
    entry: dict[str, Any] = {
        "name": work.input_name, "shape": work.row.shape, "datatype": work.datatype,
    }  # fmt: skip
    return [
        orjson.dumps({"inputs": [entry | {"data": row.ravel()}]}, option=orjson.OPT_SERIALIZE_NUMPY)
        for row in values
    ]
