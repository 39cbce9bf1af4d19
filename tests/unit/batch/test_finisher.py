from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from headrace.domain.chunks import Chunk, ChunkRef, Part
from headrace.domain.errors import BatchInconsistent, InvalidRequest, NotFound, StoreUnavailable
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.jobs import Job
from tests.support.batch_core import Core, a_row, codes_of, failing, ids_of, some_rows


def _refuse_odd(request: InferRequest) -> InferResponse | None:
    """Make rows fail whose value is odd."""
    if (request.content.inputs[0].array % 2 == 1).any():
        raise InvalidRequest("odd")
    return None


async def _bury(core: Core, job: Job, index: int) -> None:
    assert await core.store.bury_chunk(ChunkRef(job.id, index), 0)


async def test_parts_are_joined_in_the_rows_order_whoever_was_done_first() -> None:
    core = Core(chunk_rows=3)
    core.model.fails = _refuse_odd
    job = await core.planned(some_rows(10))
    await core.work(job, [3, 0, 2, 1])
    done = await core.finish()
    assert done.state == "completed"
    assert (done.counts.total, done.counts.completed, done.counts.failed) == (10, 5, 5)
    assert ids_of(await core.file(done, done.output_file)) == [f"row-{n}" for n in (0, 2, 4, 6, 8)]
    assert ids_of(await core.file(done, done.error_file)) == [f"row-{n}" for n in (1, 3, 5, 7, 9)]


async def test_files_are_the_tenants_and_named_after_the_job() -> None:
    core = Core(output_retention_s=5000)
    core.model.fails = _refuse_odd
    job = await core.planned(some_rows(2))
    await core.work(job)
    done = await core.finish()
    output = await core.store.file(job.tenant, done.output_file)
    errors = await core.store.file(job.tenant, done.error_file)
    assert (output.filename, errors.filename) == (f"{job.id}_output.jsonl", f"{job.id}_error.jsonl")
    assert (output.purpose, errors.purpose) == ("batch_output", "batch_output")
    assert output.size_bytes == len(core.objects.objects[output.key])
    assert output.expires_at == errors.expires_at == int(core.now) + 5000


async def test_a_job_may_say_how_long_its_files_are_kept() -> None:
    core = Core()
    job = await core.planned(some_rows(1), output_expires_after_s=7200)
    await core.work(job)
    done = await core.finish()
    output = await core.store.file(job.tenant, done.output_file)
    assert output.expires_at == int(core.now) + 7200


async def test_a_file_without_lines_is_none() -> None:
    core = Core()
    job = await core.planned(some_rows(2))
    await core.work(job)
    done = await core.finish()
    assert (bool(done.output_file), done.error_file) == (True, "")

    core.model.fails = _refuse_odd
    job = await core.planned(a_row("odd", 1))
    await core.work(job)
    done = await core.finish()
    assert (done.state, done.output_file, bool(done.error_file)) == ("completed", "", True)


async def test_rows_of_chunks_that_were_given_up_or_never_begun_are_told_in_their_place() -> None:
    core = Core(chunk_rows=2)
    core.model.fails = _refuse_odd
    job = await core.planned(some_rows(8))
    await core.work(job, [0, 3])
    await _bury(core, job, 2)
    await core.store.cancel_job(job.tenant, job.id)
    done = await core.finish()
    errors = await core.file(done, done.error_file)
    assert done.state == "cancelled"
    assert (done.counts.completed, done.counts.failed) == (2, 6)
    assert ids_of(errors) == [f"row-{n}" for n in (1, 2, 3, 4, 5, 7)]
    assert codes_of(errors) == [
        "invalid_request",
        *["batch_cancelled"] * 2,
        *["chunk_dead"] * 2,
        "invalid_request",
    ]


async def test_rows_that_never_ran_have_ids_of_their_own_which_stay_the_same() -> None:
    core = Core(chunk_rows=2, chunks_in_hand=1)
    job = await core.planned(b"\n\n" + some_rows(3) + b"\n" + some_rows(2, first=3))
    await core.store.cancel_job(job.tenant, job.id)
    done = await core.finish()
    errors = await core.file(done, done.error_file)
    known = [json.loads(line)["id"].removeprefix("batch_req_") for line in errors.splitlines()]
    name = job.id.removeprefix("batch_")
    assert known == [f"{name}-{line}" for line in (3, 4, 5, 7, 8)]


async def test_rows_that_the_window_did_not_reach_are_told_as_expired() -> None:
    core = Core(chunk_rows=2)
    job = await core.planned(some_rows(4))
    await core.work(job, [0])
    core.now += job.window_s
    await core.store.expire_jobs(10)
    done = await core.finish()
    assert (done.state, done.counts.completed, done.counts.failed) == ("expired", 2, 2)
    assert codes_of(await core.file(done, done.error_file)) == ["batch_expired"] * 2


async def test_rows_longer_than_what_is_allowed_by_now_are_told_all_the_same() -> None:
    core = Core()
    job = await core.planned(some_rows(2) + a_row("x" * 500) + b"\n")
    await _bury(core, job, 0)
    later = Core(max_row_bytes=20)
    later.store, later.objects = core.store, core.objects
    finisher = type(core.finisher)(
        store=core.store,
        objects=core.objects,
        codec=core.codec,
        settings=later.settings,
        now=lambda: core.now,
    )
    done = await finisher.finish(await core.held())
    assert done is not None
    assert ids_of(await core.file(done, done.error_file)) == ["row-0", "row-1", "x" * 500]


async def test_a_job_without_chunks_ends_without_files() -> None:
    core = Core()
    job = await core.job(b"")
    await core.store.cancel_job(job.tenant, job.id)
    await core.planner.plan(await core.held())
    done = await core.finish()
    assert (done.state, done.output_file, done.error_file) == ("cancelled", "", "")


# --- done twice ----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["gate", "after_gate"])
async def test_finishing_anew_writes_the_same_under_the_same_names(where: str) -> None:
    core = Core(chunk_rows=2)
    core.model.fails = _refuse_odd
    job = await core.planned(some_rows(6))
    await core.work(job, [0, 2])
    await _bury(core, job, 1)
    setattr(core.store, where, failing("finish", times=1))
    with pytest.raises(StoreUnavailable):
        await core.finish()
    setattr(core.store, where, None)
    before = dict(core.objects.objects)
    core.now += 10_000.0
    if where == "gate":  # else the first one ended the job
        assert (await core.finish()).state == "completed"
    done = await core.read(job)
    assert done.state == "completed"
    assert core.objects.objects == before
    assert done.output_file == f"file-{job.id.removeprefix('batch_')}o"
    assert done.error_file == f"file-{job.id.removeprefix('batch_')}e"
    assert ids_of(await core.file(done, done.error_file)) == ["row-1", "row-2", "row-3", "row-5"]


async def test_of_two_who_finish_a_job_one_has_ended_it() -> None:
    core = Core()
    job = await core.planned(some_rows(3))
    await core.work(job)
    first = await core.held()
    core.now += 10_000.0
    second = await core.held()
    assert await core.finisher.finish(first) is None
    assert (await core.read(job)).state == "finalizing"
    assert await core.finisher.finish(second) is not None
    assert await core.finisher.finish(second) is None


async def test_who_knows_that_its_lease_is_lost_writes_nothing() -> None:
    core = Core()
    job = await core.planned(some_rows(3))
    await core.work(job)
    held = await core.held()
    held.lost = True
    before = dict(core.objects.objects)
    assert await core.finisher.finish(held) is None
    assert core.objects.objects == before


@pytest.mark.parametrize("name", ["join", "upload", "read"])
async def test_a_job_stays_while_the_objects_do_not_answer(name: str) -> None:
    core = Core(chunk_rows=2)
    job = await core.planned(some_rows(4))
    await core.work(job, [0])
    await _bury(core, job, 1)
    core.objects.gate = failing(name)
    with pytest.raises(StoreUnavailable):
        await core.finish()
    core.objects.gate = None
    assert (await core.read(job)).state == "finalizing"
    core.now += 10_000.0
    assert (await core.finish()).state == "completed"


# --- what does not add up ------------------------------------------------------------------------


class _Altered:
    """A store that tells of chunks otherwise than it was told."""

    def __init__(self, core: Core, index: int, **fields: Any) -> None:
        self._store = core.store
        self._index = index
        self._fields = fields

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def chunks(self, job: str) -> Any:
        async for chunk in self._store.chunks(job):
            yield self._altered(chunk) if chunk.ref.index == self._index else chunk

    def _altered(self, chunk: Chunk) -> Chunk:
        fields = dict(self._fields)
        result = fields.pop("result", None)
        if result is not None and chunk.result is not None:
            fields["result"] = msgspec.structs.replace(chunk.result, **result)
        return msgspec.structs.replace(chunk, **fields)


async def _inconsistent(core: Core, job: Job, index: int = 0, **fields: Any) -> None:
    altered: Any = _Altered(core, index, **fields)
    finisher = type(core.finisher)(
        store=altered,
        objects=core.objects,
        codec=core.codec,
        settings=core.settings,
        now=lambda: core.now,
    )
    with pytest.raises(BatchInconsistent, match=job.id):
        await finisher.finish(await core.held())
    after = await core.read(job)
    assert (after.state, after.output_file) == ("finalizing", "")


@pytest.mark.parametrize(
    "result",
    [
        {"completed": 1},
        {"completed": 3},
        {"completed": 1, "failed": 1},
        {"failed": 1},
        {"output": Part("batch/jobs/x", 1)},
    ],
    ids=["a row too few", "a row too many", "another outcome", "a failure too many", "other bytes"],
)
async def test_counts_and_bytes_that_do_not_add_up_end_nothing(result: dict[str, Any]) -> None:
    core = Core(chunk_rows=2)
    core.objects.objects["batch/jobs/x"] = b"something else"
    job = await core.planned(some_rows(4))
    await core.work(job)
    await _inconsistent(core, job, result=result)


async def test_a_chunk_that_is_still_open_is_not_told_as_ended() -> None:
    core = Core(chunk_rows=2)
    job = await core.planned(some_rows(4))
    await core.work(job, [0])
    await _bury(core, job, 1)
    await _inconsistent(core, job, index=1, state="running")


@pytest.mark.parametrize("data", [b"", some_rows(1), some_rows(4)[:-20]], ids=len)
async def test_an_input_that_was_cut_loses_no_rows_unnoticed(data: bytes) -> None:
    core = Core(chunk_rows=2)
    job = await core.planned(some_rows(4) + b"\n")
    await core.work(job, [0])
    await _bury(core, job, 1)
    core.objects.objects[job.input_key] = data
    with pytest.raises(BatchInconsistent, match="has changed"):
        await core.finish()
    assert (await core.read(job)).state == "finalizing"


async def test_a_part_that_is_gone_ends_nothing() -> None:
    core = Core()
    job = await core.planned(some_rows(2))
    await core.work(job)
    for key in [key for key in core.objects.objects if key.startswith("batch/jobs/")]:
        del core.objects.objects[key]
    with pytest.raises(NotFound):
        await core.finish()
    assert (await core.read(job)).state == "finalizing"


# --- an input that is gone -----------------------------------------------------------------------


async def _gone(core: Core, **fields: Any) -> Job:
    """A job whose input is gone, with a chunk that was done and one that was given up."""
    core.model.fails = _refuse_odd
    job = await core.planned(some_rows(4), **fields)
    await core.work(job, [0])
    await _bury(core, job, 1)
    del core.objects.objects[job.input_key]
    return job


async def test_a_job_fails_whose_rows_did_not_run_and_cannot_be_told() -> None:
    core = Core(chunk_rows=2)
    job = await _gone(core)
    done = await core.finish()
    assert (done.id, done.state) == (job.id, "failed")
    [problem] = done.problems
    assert (problem.code, problem.line) == ("file_not_found", None)
    assert "2 rows that did not run" in problem.message
    assert done.timeline.failed_at == int(core.now)
    assert done.timeline.completed_at is None
    assert await core.store.claim_job("somebody", 60.0) is None
    assert await core.read(job) == done


async def test_what_was_answered_before_the_input_went_is_kept_and_counted() -> None:
    core = Core(chunk_rows=2)
    await _gone(core)
    done = await core.finish()
    assert ids_of(await core.file(done, done.output_file)) == ["row-0"]
    assert ids_of(await core.file(done, done.error_file)) == ["row-1"]
    assert (done.counts.total, done.counts.completed, done.counts.failed) == (4, 1, 1)


async def test_nothing_but_its_files_stays_of_a_job_whose_input_is_gone() -> None:
    core = Core(chunk_rows=2)
    job = await _gone(core)
    done = await core.finish()
    await core.warden.garbage()
    files = [await core.store.file(job.tenant, id_) for id_ in (done.output_file, done.error_file)]
    assert set(core.objects.objects) == {file.key for file in files}


@pytest.mark.parametrize("ending", ["cancelled", "expired"])
async def test_so_does_one_that_was_to_end_otherwise(ending: str) -> None:
    core = Core(chunk_rows=2)
    job = await core.planned(some_rows(4))
    if ending == "cancelled":
        await core.store.cancel_job(job.tenant, job.id)
    else:
        core.now += job.window_s
        await core.store.expire_jobs(10)
    del core.objects.objects[job.input_key]
    done = await core.finish()
    assert (done.state, done.ending) == ("failed", ending)
    assert (done.output_file, done.error_file, done.counts.failed) == ("", "", 0)
    assert "4 rows" in done.problems[0].message


async def test_a_job_whose_rows_all_ran_needs_no_input_any_more() -> None:
    core = Core(chunk_rows=2)
    job = await core.planned(some_rows(4))
    await core.work(job)
    del core.objects.objects[job.input_key]
    done = await core.finish()
    assert (done.state, done.counts.completed, done.problems) == ("completed", 4, ())


async def test_an_input_that_only_cannot_be_read_now_fails_nothing() -> None:
    core = Core(chunk_rows=2)
    job = await _gone(core)
    core.objects.gate = failing("read", times=1)
    with pytest.raises(StoreUnavailable):
        await core.finish()
    assert (await core.read(job)).state == "finalizing"


async def test_who_lost_the_job_does_not_fail_it() -> None:
    core = Core(chunk_rows=2)
    job = await _gone(core)
    first = await core.held()
    core.now += 10_000.0
    second = await core.held()
    assert await core.finisher.finish(first) is None
    assert (await core.read(job)).state == "finalizing"
    assert await core.finisher.finish(second) is not None


async def test_a_job_whose_input_goes_while_it_runs_comes_to_its_end() -> None:
    core = Core(chunk_rows=2)
    job = await core.planned(some_rows(6))
    await core.work(job, [1])
    del core.objects.objects[job.input_key]
    while (now := await core.read(job)).state == "in_progress":
        await core.dispatcher.dispatch()
        for chunk in await core.chunks(job):
            if chunk.state == "queued":
                await core.work(job, [chunk.ref.index])
        core.now += core.settings.max_retry_delay_s
    assert now.state == "finalizing"
    assert [chunk.state for chunk in await core.chunks(job)] == ["dead", "done", "dead"]
    assert all("no object" in chunk.story[-1] for chunk in await core.chunks(job) if chunk.story)
    assert (await core.finish()).state == "failed"
