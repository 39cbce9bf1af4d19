"""What `headrace batch` says of batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

from rich.table import Table

from headrace.compose.batch_views import Batch, StoredFile
from headrace.compose.text_table import add_row, moment, new_table

_MINUTE_S: Final = 60
_HOUR_S: Final = 60 * _MINUTE_S
_DAY_S: Final = 24 * _HOUR_S
_PROBLEMS_SHOWN: Final = 20
_TIMES: Final = (
    ("created", "created_at"),
    ("in progress", "in_progress_at"),
    ("finalizing", "finalizing_at"),
    ("cancelling", "cancelling_at"),
    ("completed", "completed_at"),
    ("failed", "failed_at"),
    ("cancelled", "cancelled_at"),
    ("expired", "expired_at"),
)


def duration(seconds: float) -> str:
    """A time as people say it, in its two largest units."""
    whole = max(0, round(seconds))
    if whole < _MINUTE_S:
        return f"{whole} s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min {whole % _MINUTE_S} s"
    if whole < _DAY_S:
        return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S} min"
    return f"{whole // _DAY_S} d {whole % _DAY_S // _HOUR_S} h"


def rows_of(count: int) -> str:
    """Some rows."""
    return f"{count:,} row{'' if count == 1 else 's'}"


def batches_table(batches: Iterable[Batch], *, now: float) -> Table:
    """A batch a row."""
    batches = list(batches)
    whose = any(batch.tenant for batch in batches)
    table = new_table(
        "id", *(["tenant"] if whose else []), "status", "model", "rows", "failed", "age"
    )
    for batch in batches:
        counts = batch.request_counts
        add_row(
            table,
            batch.id,
            *([batch.tenant] if whose else []),
            batch.status,
            batch.model or batch.endpoint,
            f"{counts.total:,}",
            f"{counts.failed:,}",
            duration(now - batch.created_at),
        )
    return table


def batch_lines(batch: Batch, files: Sequence[tuple[str, StoredFile]]) -> Iterator[str]:
    """All of a batch; `files` by what they are of it."""
    counts = batch.request_counts
    yield f"{batch.id} is {batch.status}"
    yield f"for          {batch.endpoint}"
    if batch.tenant:
        yield f"tenant       {batch.tenant}"
    yield (
        f"rows         {counts.total:,}, of which {counts.completed:,} completed and "
        f"{counts.failed:,} failed"
    )
    if batch.retry_of:
        yield f"retry of     {batch.retry_of}"
    yield f"priority     {batch.priority}"
    if batch.max_attempts is not None:
        yield f"attempts     {batch.max_attempts} of a row at most"
    for name, value in sorted((batch.metadata or {}).items()):
        yield f"metadata     {name} = {value}"
    for name, field in _TIMES:
        at = getattr(batch, field)
        if at:
            yield f"{name:<12} {_moment(at)}"
    if batch.expires_at and not batch.has_ended:
        yield f"expires      {_moment(batch.expires_at)}, {batch.completion_window} after its start"
    for what, file in files:
        yield f"{what:<12} {file.id}, {file.bytes:,} bytes"
    yield from problem_lines(batch)


def problem_lines(batch: Batch, *, name: str = "") -> Iterator[str]:
    """What is wrong with a batch's file, which is called `name`."""
    for problem in batch.problems[:_PROBLEMS_SHOWN]:
        place = f"line {problem.line}: " if problem.line else ""
        yield f"{name and f'{name} '}{place}{problem.message} ({problem.code})"
    more = len(batch.problems) - _PROBLEMS_SHOWN
    if more > 0:
        yield f"and {more} more: `headrace batch show {batch.id} --json` has all of them"


def end_line(batch: Batch) -> str:
    """How a batch has ended."""
    counts = batch.request_counts
    if batch.status == "failed" and not counts.total:
        return f"{batch.id} is failed: no row was run"
    told = (
        f"{batch.id} is {batch.status}: {counts.completed:,} of {rows_of(counts.total)} completed"
    )
    if counts.failed:
        told += f", {counts.failed:,} failed"
    began, ended = batch.in_progress_at, batch.ended_at
    if began and ended and ended > began and counts.completed:
        told += f", in {duration(ended - began)} ({counts.done / (ended - began):,.0f} rows/s)"
    return told


def _moment(at_s: int) -> str:
    return moment(datetime.fromtimestamp(at_s, UTC).isoformat())
