"""What a version's runs have cost so far, by batch size: the base of two decisions.

Costs are processor time. On a busy machine the time on the clock tells of others' work: a run on a
thread that waited for the interpreter would look long, and be kept on the thread for it.
"""

from __future__ import annotations

import math
from typing import Final

_RISE: Final = 0.2  # weight of an observation over the average
_FALL: Final = 0.5  # and of one below it: most of what rises is an interruption
_GAIN: Final = 0.75  # a larger batch must cost less than this share per row to be worth forming
_DECISIVE: Final = 3  # batches of 4 to 7 rows show what merging is worth
_SIZES: Final = 24  # batches are told apart by the power of two below their rows
_LOOK_AGAIN: Final = 32  # runs after which a decision is made anew


class ExecutionTime:
    """Moving averages of a run's processor seconds, one for each power of two of rows.

    `useful_rows` is how many rows are worth merging, or None where nothing is known. It is 1 for
    a model whose time grows with rows: there, merging only makes the first wait for the last.
    That is found out at small sizes, since at most twice the rows of what was observed are tried.
    """

    __slots__ = ("_most_rows", "_per_row", "_runs", "_seconds", "useful_rows")

    def __init__(self) -> None:
        self._seconds = [0.0] * _SIZES
        self._per_row = [0.0] * _SIZES
        self._most_rows = 0
        self._runs = 0
        self.useful_rows: int | None = None

    def observe(self, rows: int, seconds: float) -> None:
        """Take in one run."""
        size = min(rows.bit_length(), _SIZES - 1)
        known = self._seconds[size]
        per_row = seconds / max(rows, 1)
        if known:
            self._seconds[size] = _moved(known, seconds)
            self._per_row[size] = _moved(self._per_row[size], per_row)
        else:
            self._seconds[size] = seconds
            self._per_row[size] = per_row
        self._most_rows = max(self._most_rows, rows)
        self._runs += 1
        if not known or self._runs % _LOOK_AGAIN == 0:
            self.useful_rows = self._useful_rows()

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

    def _useful_rows(self) -> int | None:
        single = self._per_row[1]
        if not single:
            return None
        merged = [(cost, size) for size, cost in enumerate(self._per_row) if cost and size > 1]
        largest = max((size for _, size in merged), default=1)
        if largest >= _DECISIVE and min(merged)[0] > _GAIN * single:
            return 1
        return 2 * self._most_rows


def _moved(average: float, observed: float) -> float:
    weight = _FALL if observed < average else _RISE
    return average + weight * (observed - average)
