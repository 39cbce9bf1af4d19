"""What the platform answers about batches, as far as the commands look at it."""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec

from headrace.domain.jobs import FINAL

_LAST_MOMENT: Final = 253_402_214_400  # the last day that a calendar here has
#: Seconds since 1970.
Moment: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=_LAST_MOMENT)]
Size: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Counts(msgspec.Struct, frozen=True):
    """Rows of a batch; `total` is 0 until its file was read."""

    total: Size = 0
    completed: Size = 0
    failed: Size = 0

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
    created_at: Moment
    input_file_id: str
    model: str | None = None
    errors: Problems | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: Moment | None = None
    expires_at: Moment | None = None
    finalizing_at: Moment | None = None
    completed_at: Moment | None = None
    failed_at: Moment | None = None
    expired_at: Moment | None = None
    cancelling_at: Moment | None = None
    cancelled_at: Moment | None = None
    request_counts: Counts = Counts()
    metadata: dict[str, str] | None = None
    priority: int = 0
    max_attempts: int | None = None
    retry_of: str | None = None
    tenant: str = ""  # where the request named one

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
    bytes: Size
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
