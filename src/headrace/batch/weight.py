"""What the answers to a model's rows weigh: how many of them fit into memory."""

from __future__ import annotations

from typing import Final

_UNKNOWN_BYTES: Final = 4 * 1024 * 1024  # of an answer, where none was seen yet
_GROWTH: Final = 8  # times the rows of the largest answer so far: the next ones may weigh more
_FALL: Final = 0.2  # weight of an answer below the average; one over it is believed at once


class Weight:
    """Learns how many bytes the answer to one row of a model has, as tensors and as text."""

    def __init__(self) -> None:
        self._row_bytes = float(_UNKNOWN_BYTES)
        self._most_rows = 0  # of one answer so far

    def told(self, rows: int, size_bytes: int) -> None:
        """Take in an answer to so many rows."""
        per_row, known = size_bytes / rows, self._row_bytes
        if self._most_rows and per_row < known:
            per_row = known + _FALL * (per_row - known)
        self._row_bytes = per_row
        self._most_rows = max(self._most_rows, rows)

    def of(self, rows: int) -> int:
        """Bytes that the answer to so many rows is likely to have."""
        return int(rows * self._row_bytes)

    def most(self, limit: int, size_bytes: int) -> int:
        """The most rows, of `limit` that may be merged at all, whose answers fit; one always does.

        Few, before much is known.
        """
        if limit < 2:  # noqa: PLR2004
            return limit
        grown = _GROWTH * max(self._most_rows, 1)
        fitting = int(min(size_bytes / self._row_bytes, limit)) if self._row_bytes else limit
        return max(1, min(limit, grown, fitting))
