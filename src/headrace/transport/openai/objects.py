"""What clients of OpenAI's API are answered with. The OpenAPI document is made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from starlette.responses import Response

from headrace.domain.files import File, Purpose
from headrace.domain.jobs import Job, JobState

FileId = Annotated[str, msgspec.Meta(extra_json_schema={"pattern": "^file-[0-9a-z]+$"})]
BatchId = Annotated[str, msgspec.Meta(extra_json_schema={"pattern": "^batch_[0-9a-z]+$"})]
Tenant = Annotated[str, msgspec.Meta(description="Whose it is, where the request names a tenant.")]
Time = Annotated[int, msgspec.Meta(description="Seconds since 1970.")]


class FileObject(msgspec.Struct, frozen=True, kw_only=True):
    """A file. What is here is whole: its status is always `processed`."""

    id: FileId
    object: Literal["file"] = "file"
    bytes: int
    created_at: Time
    expires_at: Time | None
    filename: str
    purpose: Purpose
    status: Literal["processed"] = "processed"
    status_details: None = None


class FileDeletion(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is there no longer."""

    id: FileId
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class FilePage(msgspec.Struct, frozen=True, kw_only=True):
    """Some files. The next page begins `after` the `last_id`."""

    object: Literal["list"] = "list"
    data: Sequence[FileObject]
    first_id: FileId | None
    last_id: FileId | None
    has_more: bool


class BatchProblem(msgspec.Struct, frozen=True, kw_only=True):
    """Why an input file is refused as a whole. `line` 1 is the first."""

    code: str
    message: str
    param: str | None
    line: int | None


class BatchProblems(msgspec.Struct, frozen=True, kw_only=True):
    """All that was found in an input file, up to 100 problems."""

    object: Literal["list"] = "list"
    data: Sequence[BatchProblem]


class RequestCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of a batch. All of them only ever grow."""

    total: int
    completed: int
    failed: int


class BatchObject(msgspec.Struct, frozen=True, kw_only=True):
    """A batch. `priority`, `max_attempts`, `retry_of` and `tenant` are this platform's own."""

    id: BatchId
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: BatchProblems | None
    input_file_id: FileId
    completion_window: str
    status: JobState
    output_file_id: FileId | None
    error_file_id: FileId | None
    created_at: Time
    in_progress_at: Time | None
    expires_at: Time | None
    finalizing_at: Time | None
    completed_at: Time | None
    failed_at: Time | None
    expired_at: Time | None
    cancelling_at: Time | None
    cancelled_at: Time | None
    request_counts: RequestCounts
    metadata: Mapping[str, str] | None
    priority: int
    max_attempts: int
    retry_of: BatchId | None
    tenant: Tenant | msgspec.UnsetType = msgspec.UNSET


class BatchPage(msgspec.Struct, frozen=True, kw_only=True):
    """Some batches. The next page begins `after` the `last_id`."""

    object: Literal["list"] = "list"
    data: Sequence[BatchObject]
    first_id: BatchId | None
    last_id: BatchId | None
    has_more: bool


def answer(value: msgspec.Struct) -> Response:
    """An answer in JSON."""
    return Response(msgspec.json.encode(value), media_type="application/json")


def file_object(file: File) -> FileObject:
    """A file as it is told."""
    return FileObject(
        id=file.id,
        bytes=file.size_bytes,
        created_at=file.created_at,
        expires_at=file.expires_at,
        filename=file.filename,
        purpose=file.purpose,
    )


def file_page(files: Sequence[File], *, has_more: bool) -> FilePage:
    """A page of files."""
    first, last = (files[0].id, files[-1].id) if files else (None, None)
    data = [file_object(file) for file in files]
    return FilePage(data=data, first_id=first, last_id=last, has_more=has_more)


def batch_object(job: Job, *, with_tenant: bool = False) -> BatchObject:
    """A job as it is told."""
    at = job.timeline
    return BatchObject(
        id=job.id,
        endpoint=job.target.url,
        model=job.target.model or None,
        errors=_problems(job),
        input_file_id=job.input_file,
        completion_window=job.completion_window,
        status=job.state,
        output_file_id=job.output_file or None,
        error_file_id=job.error_file or None,
        created_at=at.created_at,
        in_progress_at=at.in_progress_at,
        expires_at=job.expires_at or None,
        finalizing_at=at.finalizing_at,
        completed_at=at.completed_at,
        failed_at=at.failed_at,
        expired_at=at.expired_at,
        cancelling_at=at.cancelling_at,
        cancelled_at=at.cancelled_at,
        request_counts=RequestCounts(
            total=job.counts.total, completed=job.counts.completed, failed=job.counts.failed
        ),
        metadata=job.metadata or None,
        priority=job.priority,
        max_attempts=job.max_attempts,
        retry_of=job.retry_of or None,
        tenant=job.tenant if with_tenant else msgspec.UNSET,
    )


def batch_page(jobs: Sequence[Job], *, has_more: bool, with_tenant: bool = False) -> BatchPage:
    """A page of jobs."""
    first, last = (jobs[0].id, jobs[-1].id) if jobs else (None, None)
    data = [batch_object(job, with_tenant=with_tenant) for job in jobs]
    return BatchPage(data=data, first_id=first, last_id=last, has_more=has_more)


def _problems(job: Job) -> BatchProblems | None:
    if not job.problems:
        return None
    return BatchProblems(
        data=[
            BatchProblem(
                code=problem.code, message=problem.message, param=problem.param, line=problem.line
            )
            for problem in job.problems
        ]
    )
