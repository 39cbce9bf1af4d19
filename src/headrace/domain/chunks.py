"""Chunks: the parts of a job's file that are worked on by themselves."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

#: waiting - nobody works on it; queued - a message about it is under way; running - somebody has
#: claimed it; done - its parts are written; dead - given up, its rows are told as failed;
#: skipped - its job was cancelled or expired before it ran.
ChunkState: TypeAlias = Literal["waiting", "queued", "running", "done", "dead", "skipped"]


class ChunkRef(msgspec.Struct, frozen=True, order=True):
    """Which chunk of which job."""

    job: str
    index: int  # 0 is the first of a plan, whose order is the file's; later come rests of chunks


class Span(msgspec.Struct, frozen=True):
    """Where a chunk lies in its job's file: whole lines."""

    start: int  # byte
    end: int  # the byte behind it
    first_line: int  # 1 is the file's first; empty lines count
    rows: int


class Part(msgspec.Struct, frozen=True):
    """An object that a chunk's lines were written to."""

    key: str = ""  # "" where there are no such lines
    size_bytes: int = 0


class ChunkResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a chunk's rows: `completed + failed` is how many it has."""

    completed: int
    failed: int
    output: Part = Part()
    errors: Part = Part()


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """One chunk. Whoever claimed it last, under `attempt`, alone may change it."""

    ref: ChunkRef
    span: Span
    state: ChunkState = "waiting"
    attempt: int = 0  # how often it was claimed: the fence
    failures: int = 0  # claims that ended without a result
    story: tuple[str, ...] = ()  # of those: why, the last ones
    result: ChunkResult | None = None


class Claim(msgspec.Struct, frozen=True):
    """The right to work on a chunk until the lease is over. `attempt` is the fence."""

    ref: ChunkRef
    attempt: int
    holder: str
