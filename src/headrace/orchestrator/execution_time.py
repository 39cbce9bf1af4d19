"""What a version's runs have cost so far, by batch size: the base of two decisions."""

from __future__ import annotations

import math
from typing import Final

_WEIGHT: Final = 0.2  # of the newest observation
_GAIN: Final = 0.9  # a larger batch must cost less than this share per row to be worth forming
_SIZES: Final = 24  # batches are told apart by the power of two below their rows


class ExecutionTime:
    """Moving averages of a run's seconds, one for each power of two of rows."""

    __slots__ = ("_per_row", "_seconds")

    def __init__(self) -> None:
        self._seconds = [0.0] * _SIZES
        self._per_row = [0.0] * _SIZES

    def observe(self, rows: int, seconds: float) -> None:
        """Take in one run."""
        size = min(rows.bit_length(), _SIZES - 1)
        known = self._seconds[size]
        per_row = seconds / max(rows, 1)
        if known:
            self._seconds[size] += _WEIGHT * (seconds - known)
            self._per_row[size] += _WEIGHT * (per_row - self._per_row[size])
        else:
            self._seconds[size] = seconds
            self._per_row[size] = per_row

    def predict(self, rows: int) -> float:
        """Seconds that a run of `rows` may take; infinity where nothing is known.

        Where only smaller batches are known, their time per row is taken: batches cost at most
        that in practice.
        """
        size = min(rows.bit_length(), _SIZES - 1)
        if self._seconds[size]:
            return self._seconds[size]
        for smaller in range(size - 1, -1, -1):
            if self._seconds[smaller]:
                return self._per_row[smaller] * rows
        return math.inf

    def useful_rows(self, limit: int) -> int:
        """How many rows are worth merging: `limit`, or 1 for a model whose time grows with rows.

        Merging rows of such a model gains nothing and makes the first wait for the last.
        """
        single = self._per_row[1]
        if not single:
            return limit
        known = [cost for cost in self._per_row[2:] if cost]
        if known and min(known) > _GAIN * single:
            return 1
        return limit
