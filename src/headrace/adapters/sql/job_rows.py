"""How files, jobs and chunks lie in their tables."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from headrace.adapters.sql.database import Parameters, Row
from headrace.domain.chunks import Chunk, ChunkRef, ChunkResult, Part, Span
from headrace.domain.errors import InvalidRequest
from headrace.domain.files import File
from headrace.domain.jobs import Counts, FileProblem, Job, Timeline
from headrace.ports.job_store import JobClaim

_SECOND_US: Final = 1_000_000
_JOB: Final = msgspec.json.Decoder(Job)
_PROBLEMS: Final = msgspec.json.Decoder(tuple[FileProblem, ...])
_STORY: Final = msgspec.json.Decoder(tuple[str, ...])
_STORIES: Final = 5  # of a chunk that are kept
_STORY_SIZE: Final = 1000  # characters
_FILE_COLUMNS: Final = 9
_JOB_COLUMNS: Final = 32  # that are read
_FAILURES: Final = 35  # the column that claims alone read
_CHUNK_COLUMNS: Final = 18  # that are read


def file_parameters(file: File) -> Parameters:
    """A file's columns, but for the time of its creation, which is the database's."""
    return {
        "id": file.id,
        "tenant": file.tenant,
        "purpose": file.purpose,
        "filename": document(file.filename, "the file's name"),
        "size_bytes": file.size_bytes,
        "key": file.key,
        "expires_at": file.expires_at,
    }


def file_of(row: Row) -> File:
    """A row of `batch_files`."""
    _, id_, tenant, purpose, filename, size_bytes, key, created_at, expires_at = row[:_FILE_COLUMNS]
    return File(
        id=id_,
        tenant=tenant,
        purpose=purpose,
        filename=msgspec.json.decode(filename, type=str),
        size_bytes=size_bytes,
        key=key,
        created_at=created_at,
        expires_at=expires_at,
    )


class KeptJob(msgspec.Struct, frozen=True):
    """A job, and what callers do not see of it."""

    job: Job
    is_planned: bool
    has_ended: bool
    attempt: int

    @property
    def goes_on(self) -> bool:
        """Whether its chunks may be worked on."""
        return self.job.state == "in_progress" and self.job.ending == "completed"


def job_parameters(job: Job) -> Parameters:
    """A new job's columns."""
    return {
        "id": job.id,
        "tenant": job.tenant,
        "document": document(job, "the job"),
        "input_file": job.input_file,
        "input_key": job.input_key,
        "input_bytes": job.input_bytes,
        "priority": job.priority,
        "window_s": job.window_s,
    }


def kept_job(row: Row) -> KeptJob:
    """A row of `batch_jobs`."""
    (
        state, ending, total, completed, failed, chunks, open_chunks, output_file,
        error_file, problems, created_us, expires_at, in_progress_at, finalizing_at, completed_at,
        failed_at, expired_at, cancelling_at, cancelled_at, revision, planned, ended, _, attempt,
    ) = row[8:_JOB_COLUMNS]  # fmt: skip
    job = msgspec.structs.replace(
        _JOB.decode(row[3]),
        state=state,
        ending=ending,
        counts=Counts(total, completed, failed),
        chunks=chunks,
        open_chunks=open_chunks,
        expires_at=expires_at,
        output_file=output_file,
        error_file=error_file,
        problems=_PROBLEMS.decode(problems) if problems != "[]" else (),
        timeline=Timeline(
            created_at=created_us // _SECOND_US,
            in_progress_at=in_progress_at,
            finalizing_at=finalizing_at,
            completed_at=completed_at,
            failed_at=failed_at,
            expired_at=expired_at,
            cancelling_at=cancelling_at,
            cancelled_at=cancelled_at,
        ),
        revision=revision,
    )
    return KeptJob(job, bool(planned), bool(ended), attempt)


def claim_of(row: Row, holder: str) -> JobClaim:
    """A row that `holder` has just claimed."""
    kept = kept_job(row)
    to: Literal["plan", "finish"] = "finish" if kept.is_planned else "plan"
    return JobClaim(kept.job, kept.attempt, holder, to, failures=row[_FAILURES])


def job_of(row: Row) -> Job:
    """The same, as callers see it."""
    return kept_job(row).job


class KeptChunk(msgspec.Struct, frozen=True):
    """A chunk, and what callers do not see of it."""

    chunk: Chunk
    holder: str
    until_us: int  # of the lease


def chunk_parameters(job: str, number: int, span: Span) -> Parameters:
    """A new chunk's columns."""
    return {
        "job": job,
        "number": number,
        "start_byte": span.start,
        "end_byte": span.end,
        "first_line": span.first_line,
        "row_count": span.rows,
    }


def kept_chunk(row: Row) -> KeptChunk:
    """A row of `batch_chunks`."""
    (
        job, number, start_byte, end_byte, first_line, row_count, state, attempt, failures, story,
        completed, failed, output_key, output_bytes, errors_key, errors_bytes, holder, until_us,
    ) = row[:_CHUNK_COLUMNS]  # fmt: skip
    result = None
    if completed is not None:
        result = ChunkResult(
            completed=completed,
            failed=failed,
            output=Part(output_key, output_bytes),
            errors=Part(errors_key, errors_bytes),
        )
    chunk = Chunk(
        ref=ChunkRef(job, number),
        span=Span(start_byte, end_byte, first_line, row_count),
        state=state,
        attempt=attempt,
        failures=failures,
        story=_STORY.decode(story) if story != "[]" else (),
        result=result,
    )
    return KeptChunk(chunk, holder, until_us)


def chunk_of(row: Row) -> Chunk:
    """The same, as callers see it."""
    return kept_chunk(row).chunk


def result_parameters(result: ChunkResult) -> Parameters:
    """The columns of what became of a chunk."""
    return {
        "completed": result.completed,
        "failed": result.failed,
        "output_key": result.output.key,
        "output_bytes": result.output.size_bytes,
        "errors_key": result.errors.key,
        "errors_bytes": result.errors.size_bytes,
    }


def told(story: tuple[str, ...], more: str) -> str:
    """A story with one more line, as JSON; the oldest go. Any text will do."""
    line = more[:_STORY_SIZE].encode("utf-8", "replace").decode()
    return document((*story, line)[-_STORIES:], "the story")


def document(value: Any, name: str) -> str:
    """JSON. Raises InvalidRequest for half of a surrogate pair."""
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeError as error:
        raise InvalidRequest(f"{name} holds half of a surrogate pair, which is no text") from error


def story_of(chunk: Chunk) -> str:
    """A chunk's story as JSON, as it is."""
    return document(chunk.story, "the story")
