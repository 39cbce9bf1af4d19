"""What OpenAI's API asks of batch files and jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Protocol

from headrace.domain.batch_requests import Again, Description, NewJob, Page
from headrace.domain.calls import Call
from headrace.domain.files import File
from headrace.domain.jobs import Job


class Files(Protocol):
    """See headrace.batch.files."""

    @property
    def max_bytes(self) -> int: ...

    def require(self, said: Description) -> None: ...

    async def upload(
        self,
        call: Call,
        pieces: AsyncIterator[bytes],
        describe: Callable[[], Description],
        *,
        at_least: int = 0,
    ) -> File: ...

    async def get(self, call: Call, id_: str) -> File: ...

    async def find(
        self,
        call: Call,
        *,
        limit: int | None = None,
        after: str = "",
        ascending: bool = False,
        purpose: str = "",
    ) -> Page[File]: ...

    def read(self, file: File, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]: ...

    async def presigned(self, file: File) -> str: ...

    async def delete(self, call: Call, id_: str) -> None: ...


class Jobs(Protocol):
    """See headrace.batch.jobs."""

    async def create(self, call: Call, wanted: NewJob) -> Job: ...

    async def get(self, call: Call, id_: str, *, tenant: str = "") -> Job: ...

    async def find(
        self, call: Call, *, limit: int | None = None, after: str = "", tenant: str = ""
    ) -> Page[Job]: ...

    async def cancel(self, call: Call, id_: str, *, tenant: str = "") -> Job: ...

    async def retry(self, call: Call, id_: str, again: Again) -> Job: ...

    async def follow(
        self, call: Call, id_: str, *, seen: int | None = None
    ) -> AsyncIterator[Job | None]: ...
