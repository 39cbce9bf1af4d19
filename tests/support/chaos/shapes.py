"""Jobs of five shapes: what they ask for, and what has to become of it."""

from __future__ import annotations

import json
from typing import Final, Literal, TypeAlias, get_args

import msgspec

from tests.support.chaos.model import BAD, NAME, SHAKY

Name: TypeAlias = Literal["plain", "partial", "retry", "cancel", "duplicates"]
NAMES: Final[tuple[Name, ...]] = get_args(Name)
URL: Final = f"/v2/models/{NAME}/infer"


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """A job, and how it is treated."""

    name: Name
    rows: int = 18
    chunk_rows: int = 6
    chunk_s: float = 5.0  # where a chunk takes longer it is cut in two
    bad: int = 0  # every so-manieth row is refused by the model
    shaky: int = 0  # every so-manieth fails at first
    cancelled: bool = False  # as soon as some rows are done
    retried: bool = False  # once it has ended, its failed rows are run again
    workers: int = 1
    repeats: bool = False  # messages come several times, and to every worker
    model_s: float = 0.002

    def value(self, row: int) -> float:
        """What a row asks about."""
        if self.bad and row % self.bad == 1:
            return BAD + row
        if self.shaky and row % self.shaky == 2:
            return SHAKY + row
        return float(row)

    def input(self) -> bytes:
        """The job's file."""
        return b"".join(
            json.dumps(
                {
                    "custom_id": f"row-{row}",
                    "method": "POST",
                    "url": URL,
                    "body": {
                        "inputs": [
                            {
                                "name": "x",
                                "datatype": "FP64",
                                "shape": [1, 1],
                                "data": [self.value(row)],
                            }
                        ]
                    },
                }
            ).encode()
            + b"\n"
            for row in range(self.rows)
        )

    @property
    def refused(self) -> list[int]:
        """Rows that the model refuses."""
        return [row for row in range(self.rows) if self.value(row) >= BAD]


SHAPES: Final[dict[Name, Shape]] = {
    shape.name: shape
    for shape in (
        Shape(name="plain"),
        Shape(name="partial", bad=5, chunk_rows=18, chunk_s=0.001),
        Shape(name="retry", bad=6, shaky=4, retried=True),
        Shape(name="cancel", bad=5, cancelled=True, rows=30, model_s=0.04),
        Shape(name="duplicates", bad=5, workers=2, repeats=True),
    )
}
