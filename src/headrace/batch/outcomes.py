"""The lines that tell of a chunk's rows, written in the rows' order."""

from __future__ import annotations

from typing import Final

from headrace.batch.row_job import RowsRun

_UNRUN: Final = b""


class Outcomes:
    """Keeps lines until those of all earlier rows are known. Rows are known by their place."""

    def __init__(self) -> None:
        self._lines: list[bytes | None] = []  # of each row; None: not known yet, or taken
        self._failures: set[int] = set()
        self._unrun: dict[int, str] = {}
        self._completed = self._failed = 0
        #: The first row whose line was not taken.
        self.first = 0
        #: Bytes of answers that were not taken.
        self.held_bytes = 0

    @property
    def ahead(self) -> int:
        """Rows from the first one that was not taken to the last one that was read."""
        return len(self._lines) - self.first

    @property
    def is_empty(self) -> bool:
        """Whether no row was read."""
        return not self._lines

    @property
    def first_is_open(self) -> bool:
        """Whether it is the first row that the others wait for."""
        return self.ahead > 0 and self._lines[self.first] is None

    def expect(self, rows: int = 1) -> int:
        """Make room for the rows that were read next; the place of the first one."""
        place = len(self._lines)
        self._lines += [None] * rows
        return place

    def answer(self, place: int, line: bytes) -> None:
        """A row has its answer."""
        self._lines[place] = line
        self.held_bytes += len(line)

    def fail(self, place: int, line: bytes) -> None:
        """A row has failed."""
        self._lines[place] = line
        self._failures.add(place)

    def leave(self, place: int, custom_id: str) -> None:
        """A row is not run; no line tells of it."""
        self._lines[place] = _UNRUN
        self._unrun[place] = custom_id

    def take(self, most_bytes: int) -> tuple[bytes, bytes] | None:
        """What may be written next, of answers and of failures; None: nothing.

        It ends with the line that reaches `most_bytes`.
        """
        known, start = self._lines, self.first
        end, count, size = start, len(known), 0
        lines: list[bytes] = []
        while end < count and size < most_bytes and (line := known[end]) is not None:
            lines.append(line)
            size += len(line)
            end += 1
        if start == end:
            return None
        self.first = end
        known[start:end] = [None] * (end - start)  # they need not be kept
        errors = b""
        if self._failures and (failed := [place for place in self._failures if place < end]):
            failed.sort()
            errors = b"".join([lines[place - start] for place in failed])
            for place in failed:
                lines[place - start] = _UNRUN
            self._failures.difference_update(failed)
            self._failed += len(failed)
        self._completed += len(lines) - lines.count(_UNRUN)
        answers = b"".join(lines)
        self.held_bytes -= len(answers)
        return answers, errors

    def told(self) -> RowsRun:
        """What became of all rows, once every line was taken."""
        unrun = tuple([self._unrun[place] for place in sorted(self._unrun)])
        return RowsRun(self._completed, self._failed, unrun)
