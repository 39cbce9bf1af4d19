"""Batch jobs: a file of rows that becomes a file of answers and a file of errors.

States and fields are those of OpenAI's batch object; where they say nothing, docs/batch.md does.
Times are seconds since 1970 by the store's clock, as all processes agree on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

import msgspec

JobState: TypeAlias = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]
#: How the rows of a job end that reached no answer: see docs/batch.md.
Ending: TypeAlias = Literal["completed", "expired", "cancelled"]

#: States in which nothing will change any more.
FINAL: Final[frozenset[JobState]] = frozenset({"failed", "completed", "expired", "cancelled"})


class Counts(msgspec.Struct, frozen=True):
    """Rows of a job. `completed` and `failed` only ever grow."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class FileProblem(msgspec.Struct, frozen=True):
    """Why an input file is refused as a whole."""

    code: str
    message: str
    line: int | None = None  # 1 is the first
    param: str | None = None


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """When a job entered its states; None: it did not."""

    created_at: int = 0
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None


class Target(msgspec.Struct, frozen=True):
    """What a job's rows are for: the `endpoint` of its creation, taken apart.

    `url` is what every row has to say. `model` is "" where the rows name it themselves.
    """

    url: str
    model: str = ""
    version: str = ""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One job."""

    id: str  # batch_ and 26 characters
    tenant: str
    principal: str  # the name of whoever created it, as which its rows run
    target: Target
    input_file: str  # a file's id
    input_key: str  # that file's object, which stays while the job needs it
    input_bytes: int
    window_s: int  # the completion window
    completion_window: str  # the same, as it was asked for
    metadata: Mapping[str, str] = {}
    priority: int = 0  # -10 to 10: how large its share is beside its tenant's others; more is more
    max_attempts: int = 3  # of a row whose failure may pass
    retry_of: str = ""  # the job whose failed rows these are
    state: JobState = "validating"
    #: As what it ends once no chunk is open any more.
    ending: Ending = "completed"
    counts: Counts = Counts()
    chunks: int = 0  # how many there are, once it is planned; more, as rests become chunks
    open_chunks: int = 0  # how many of them have no outcome yet
    expires_at: int = 0
    output_expires_after_s: int | None = None  # of its files; None: as the settings say
    output_file: str = ""  # a file's id; "" where there is none, or none yet
    error_file: str = ""
    problems: tuple[FileProblem, ...] = ()
    timeline: Timeline = Timeline()
    revision: int = 0  # grows with every change, so that whoever follows sees one
