"""What the platform answers about batches, as far as the commands look at it."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from headrace.domain.jobs import FINAL


class Counts(msgspec.Struct, frozen=True):
    """Rows of a batch; `total` is 0 until its file was read."""

    total: int = 0
    completed: int = 0
    failed: int = 0

    @property
    def done(self) -> int:
        """Rows that have ended."""
        return self.completed + self.failed


class Problem(msgspec.Struct, frozen=True):
    """Why an input file is refused as a whole."""

    code: str
    message: str
    line: int | None = None


class Problems(msgspec.Struct, frozen=True):
    """All that is wrong with a file, as far as it was read."""

    data: tuple[Problem, ...] = ()


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch. Times are seconds since 1970."""

    id: str
    status: str
    endpoint: str
    completion_window: str
    created_at: int
    input_file_id: str
    model: str | None = None
    errors: Problems | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    expires_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: Counts = Counts()
    metadata: dict[str, str] | None = None
    priority: int = 0
    max_attempts: int | None = None
    retry_of: str | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in FINAL

    @property
    def ended_at(self) -> int | None:
        """When it ended, if it has."""
        return self.completed_at or self.failed_at or self.expired_at or self.cancelled_at

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong with its file."""
        return self.errors.data if self.errors else ()


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file at the platform."""

    id: str
    bytes: int
    filename: str = ""


class Told(msgspec.Struct, frozen=True):
    """An error as OpenAI's API tells it."""

    message: str
    code: str | None = None


#: `error` is a sentence where the Open Inference Protocol is asked.
ErrorText: TypeAlias = Told | str


class Refusal(msgspec.Struct, frozen=True):
    """The body of a refusal."""

    error: ErrorText
