from __future__ import annotations

import itertools
from typing import Any

import pytest

from headrace.batch.known_models import KnownModels
from headrace.batch.metrics import BatchMetrics
from headrace.batch.settings import BatchSettings
from headrace.domain.chunks import Chunk, ChunkRef, Claim, Span
from headrace.domain.jobs import Counts, Job, Target
from headrace.ports.job_store import ClaimedChunk
from headrace.telemetry.metrics import Metrics
from tests.support import job_makers


class Stage:
    """A process that knows no model, or all. `now` is its clock."""

    def __init__(self, **settings: Any) -> None:
        self.now = 100.0
        self.knows = False
        self.metrics = BatchMetrics(Metrics())
        self.known = KnownModels(
            self._knows,
            settings=BatchSettings(**settings),
            metrics=self.metrics,
            clock=lambda: self.now,
        )

    async def leave_s(self, attempt: int = 1, **fields: Any) -> float | None:
        """For how long the `attempt`th claim of a chunk is left to others."""
        job = job_makers.job(job_makers.file(), **{"id": "batch_one", **fields})
        ref = ChunkRef(job.id, 0)
        chunk = Chunk(ref=ref, span=Span(0, 1, 1, 1), attempt=attempt)
        return await self.known.leave_s(ClaimedChunk(Claim(ref, attempt, "here"), chunk, job))

    async def _knows(self, _: Job) -> bool:
        return self.knows


async def test_a_chunk_is_left_alone_for_longer_each_time_and_free_for_all_in_between() -> None:
    stage = Stage(max_retry_delay_s=3.0)
    left = [await stage.leave_s(attempt) for attempt in range(1, 10)]
    assert left == [0.5, 0.0, 1.0, 0.0, 2.0, 0.0, 3.0, 0.0, 3.0]
    assert stage.metrics.passed_on.value == 9


async def test_what_this_process_knows_is_run_here() -> None:
    stage = Stage()
    stage.knows = True
    assert await stage.leave_s() is None
    assert stage.metrics.passed_on.value == 0


async def test_a_job_whose_rows_name_their_models_is_run_here() -> None:
    assert await Stage().leave_s(target=Target("/v1/embeddings")) is None


@pytest.mark.parametrize(("patience_s", "longest_s"), [(600.0, 30.0), (10.0, 30.0), (7.0, 0.2)])
async def test_a_chunk_that_nobody_has_the_model_of_is_run_when_patience_is_over(
    patience_s: float, longest_s: float
) -> None:
    stage = Stage(model_patience_s=patience_s, max_retry_delay_s=longest_s)
    begun = stage.now
    for attempt in itertools.count(1):
        left_s = await stage.leave_s(attempt)
        if left_s is None:
            break
        stage.now += left_s
    assert patience_s <= stage.now - begun + 1e-9 <= patience_s * 2


async def test_without_patience_it_is_run_at_once() -> None:
    assert await Stage(model_patience_s=0.0).leave_s() is None


async def test_a_job_of_which_others_answer_rows_is_never_run_here() -> None:
    stage = Stage(model_patience_s=60.0)
    for done in range(1, 100):
        stage.now += 59.0
        assert await stage.leave_s(1000, counts=Counts(1000, done)) is not None
    stage.now += 60.0
    assert await stage.leave_s(1000, counts=Counts(1000, 99)) is None


async def test_rows_that_fail_are_no_sign_that_somebody_has_the_model() -> None:
    stage = Stage(model_patience_s=60.0)
    assert await stage.leave_s(1000, counts=Counts(1000, 0, 5)) is None


async def test_it_is_told_once_in_a_minute_and_job(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage()
    for _ in range(5):
        await stage.leave_s()
    assert len(caplog.records) == 1
    await stage.leave_s(id="batch_other")
    assert len(caplog.records) == 2
    stage.now += 60.0
    await stage.leave_s()
    assert len(caplog.records) == 3
    assert "left to processes that have its model" in caplog.text
