"""OpenAI's Files and Batches over stores in memory, without workers: tests say how jobs go on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from headrace.batch.files import Files
from headrace.batch.jobs import Jobs
from headrace.batch.settings import BatchSettings
from headrace.batch.spare_hands import Offer, nobody
from headrace.batch.storage import Bounded, Storage
from headrace.domain.batch_requests import Description
from headrace.domain.calls import Call, Principal
from headrace.domain.chunks import ChunkResult, Part, Span
from headrace.domain.files import File
from headrace.domain.jobs import FileProblem, Job
from headrace.domain.scopes import BATCH, INFER, grants
from headrace.transport.access import GuardedRoute
from headrace.transport.openai.application import OpenAiWire
from tests.support.batch_routes import routed
from tests.support.idempotency import MemoryIdempotencyStore
from tests.support.memory_job_store import MemoryJobStore
from tests.support.memory_objects import MemoryObjects

ANN = Principal("ann", grants=grants([BATCH, INFER]))
ENDPOINT = "/v2/models/m/infer"


class Objects(MemoryObjects):
    """Objects whose store has URLs once it is told one, and that knows the sizes of pieces."""

    def __init__(self) -> None:
        super().__init__(piece_bytes=64 * 1024)
        self.sizes: list[int] = []  # of the pieces of uploads, as they came
        self.url: str | None = None

    async def upload(self, key: str, pieces: AsyncIterator[bytes], *, limit_bytes: int) -> int:
        async def seen() -> AsyncIterator[bytes]:
            async for piece in pieces:
                self.sizes.append(len(piece))
                yield piece

        return await super().upload(key, seen(), limit_bytes=limit_bytes)

    async def presigned(self, key: str, expires_s: int) -> str | None:
        return f"{self.url}/{key}?for={expires_s}" if self.url else None


class BatchApi:
    """Files, jobs and the wire over them. `principals` are callers by their tokens.

    `beside` are routes of other wires, served by the same application.
    """

    def __init__(
        self,
        settings: BatchSettings | None = None,
        *,
        beside: Sequence[GuardedRoute] = (),
        sleep: Callable[[float], Awaitable[None]] | None = None,
        offer: Offer = nobody,
    ) -> None:
        self.time = 1_800_000_000.0
        self.monotonic = 0.0
        self.settings = settings or BatchSettings()
        self.keys = MemoryIdempotencyStore(clock=self._now)
        self.store = MemoryJobStore(now=self._now, keys=self.keys)
        self.objects = Objects()
        self.storage = Storage(store=self.store, settings=self.settings)
        self.files = Files(
            store=self.store,
            objects=self.objects,
            storage=self.storage,
            settings=self.settings,
            clock=self._now,
        )
        self.jobs = Jobs(
            store=self.store,
            objects=self.objects,
            failed_rows=self._failed_rows,
            storage=self.storage,
            settings=self.settings,
            clock=self._now,
            monotonic=lambda: self.monotonic,
            sleep=sleep or self._sleep,
            changed=self._changed,
            offer=offer,
        )
        self.told = 0  # how often workers were told that there is something to do
        self.principals = {"ann": ANN}
        wire = OpenAiWire(files=self.files, jobs=self.jobs, idempotency=self.keys)
        self.routes = wire.routes()
        self.asgi = routed([*self.routes, *beside], principal=lambda token: self.principals[token])

    async def upload(
        self, data: bytes = b"{}\n", *, principal: Principal = ANN, name: str = "rows.jsonl"
    ) -> File:
        """A file as a caller would have uploaded it."""

        async def pieces() -> AsyncIterator[bytes]:
            yield data

        said = Description(filename=name, purpose="batch")
        return await self.files.upload(Call("r", principal), pieces(), lambda: said)

    async def refuse(self, job: Job, *problems: FileProblem) -> None:
        """Let the job's file be refused."""
        claim = await self.store.claim_job("w", 60.0)
        assert claim is not None
        assert claim.job.id == job.id
        await self.store.refuse(claim, problems)

    async def start(self, job: Job, *, rows: int = 2) -> None:
        """Let the job be planned, as one chunk."""
        claim = await self.store.claim_job("w", 60.0)
        assert claim is not None
        assert claim.job.id == job.id
        await self.store.add_chunks(claim, [Span(0, job.input_bytes, 1, rows)], first=0)
        await self.store.planned(claim, chunks=1, rows=rows)

    async def end(self, job: Job, *, completed: int = 1, failed: int = 1) -> Job:
        """Let the job's rows be run, and its files be written; it was started."""
        [queued] = await self.store.queue_chunks(by="w", window=1, shared=True)
        chunk = await self.store.claim_chunk(queued.ref, "w", 60.0)
        assert chunk is not None
        result = ChunkResult(
            completed=completed, failed=failed, output=Part("o", 1), errors=Part("e", 1)
        )
        assert await self.store.complete_chunk(chunk.claim, result)
        claim = await self.store.claim_job("w", 60.0)
        assert claim is not None
        files = {
            kind: File(
                id=f"file-{job.id.removeprefix('batch_')}{kind}",
                tenant=job.tenant,
                purpose="batch_output",
                filename=f"{job.id}-{kind}.jsonl",
                size_bytes=3,
                key=f"batch/files/{job.id}-{kind}",
            )
            for kind, rows in (("o", completed), ("e", failed))
            if rows
        }
        for file in files.values():
            self.objects.objects[file.key] = b"{}\n"
        ended = await self.store.finish(
            claim, output=files.get("o"), errors=files.get("e"), rows_failed=failed
        )
        assert ended is not None
        return ended

    def _now(self) -> float:
        return self.time

    def _changed(self) -> None:
        self.told += 1

    async def _sleep(self, seconds: float) -> None:
        self.monotonic += seconds

    async def _failed_rows(
        self, job: Job, key: str, *, codes: frozenset[str] | None, bounded: Bounded
    ) -> int:
        rows = job.counts.failed if codes is None or "chunk_dead" in codes else 0

        async def lines() -> AsyncIterator[bytes]:
            for _ in range(rows):
                yield b'{"custom_id": "2"}\n'

        limit = self.settings.max_file_bytes
        return await self.objects.upload(key, bounded(lines()), limit_bytes=limit)
