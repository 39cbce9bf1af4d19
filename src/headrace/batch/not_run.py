"""What is told of rows that never ran."""

from __future__ import annotations

from headrace.domain.errors import BatchCancelled, BatchExpired, ChunkDead, HeadraceError
from headrace.domain.jobs import Ending, Job


def not_run(ending: Ending, *, dead: bool = False) -> HeadraceError:
    """Why a row of a job that ends so was not run."""
    if dead:
        return ChunkDead("This request was given up: its part of the file failed repeatedly.")
    if ending == "expired":
        return BatchExpired("This request could not be executed before the batch expired.")
    return BatchCancelled("This request was not run: the batch was cancelled.")


def request_id(job: Job, line: int) -> str:
    """Of a row that never ran, by its line of the job's file: the same whoever tells of it."""
    return f"{job.id.removeprefix('batch_')}-{line}"
