"""The objects that clients of OpenAI's API are answered with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from starlette.responses import Response

from headrace.domain.files import File
from headrace.domain.jobs import Job


def answer(value: Mapping[str, Any]) -> Response:
    """An answer in JSON."""
    return Response(msgspec.json.encode(value), media_type="application/json")


def file_object(file: File) -> dict[str, Any]:
    """A file. What is here is whole: its status is always `processed`."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": file.created_at,
        "expires_at": file.expires_at,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def batch_object(job: Job) -> dict[str, Any]:
    """A job. `priority`, `max_attempts` and `retry_of` are this platform's own."""
    at = job.timeline
    return {
        "id": job.id,
        "object": "batch",
        "endpoint": job.target.url,
        "model": job.target.model or None,
        "errors": _errors(job),
        "input_file_id": job.input_file,
        "completion_window": job.completion_window,
        "status": job.state,
        "output_file_id": job.output_file or None,
        "error_file_id": job.error_file or None,
        "created_at": at.created_at,
        "in_progress_at": at.in_progress_at,
        "expires_at": job.expires_at or None,
        "finalizing_at": at.finalizing_at,
        "completed_at": at.completed_at,
        "failed_at": at.failed_at,
        "expired_at": at.expired_at,
        "cancelling_at": at.cancelling_at,
        "cancelled_at": at.cancelled_at,
        "request_counts": {
            "total": job.counts.total,
            "completed": job.counts.completed,
            "failed": job.counts.failed,
        },
        "metadata": dict(job.metadata) or None,
        "priority": job.priority,
        "max_attempts": job.max_attempts,
        "retry_of": job.retry_of or None,
    }


def list_object(items: Sequence[Mapping[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """A page; the next one begins after `last_id`."""
    return {
        "object": "list",
        "data": items,
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": has_more,
    }


def _errors(job: Job) -> dict[str, Any] | None:
    if not job.problems:
        return None
    data = [
        {
            "code": problem.code,
            "message": problem.message,
            "param": problem.param,
            "line": problem.line,
        }
        for problem in job.problems
    ]
    return {"object": "list", "data": data}
