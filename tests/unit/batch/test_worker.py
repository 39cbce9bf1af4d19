from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from headrace.batch.parts import PartWriter
from headrace.domain.chunks import ChunkRef
from headrace.domain.errors import (
    DeadlineExceeded,
    HeadraceError,
    InvalidRequest,
    StorageFull,
    StoreUnavailable,
    UnknownModel,
)
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.jobs import Job
from headrace.domain.tensors import Tensor
from headrace.ports.job_queue import DeadLetter, Delivery, Message
from headrace.ports.job_store import ClaimedChunk
from tests.support import job_makers
from tests.support.batch_core import (
    Core,
    Delivered,
    codes_of,
    failing,
    ids_of,
    some_rows,
)
from tests.support.waiting import until


@pytest.fixture(autouse=True)
def _no_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.batch.worker._BACK_OFF_S", 0.0)


async def _published(core: Core, job: Job) -> None:
    await core.queue.publish([Message(ref=ChunkRef(job.id, n)) for n in range(job.chunks)])


async def _state(core: Core, job: Job, index: int = 0) -> tuple[str, int]:
    """The state of a chunk, and how often it failed."""
    chunk = (await core.chunks(job))[index]
    return chunk.state, chunk.failures


def _unknown(_: InferRequest) -> None:
    raise UnknownModel("no such model")


def _refusing(*values: float) -> Callable[[InferRequest], InferResponse | None]:
    def fail(request: InferRequest) -> InferResponse | None:
        if np.isin(request.content.inputs[0].array, values).any():
            raise InvalidRequest("it is refused")
        return None

    return fail


# --- a message -----------------------------------------------------------------------------------


async def test_a_chunk_is_run_written_and_committed_and_then_acknowledged() -> None:
    core = Core()
    job = await core.planned(some_rows(10))
    delivery = core.delivered(job)
    await core.worker.see_to(delivery)
    (chunk,) = await core.chunks(job)
    assert chunk.state == "done"
    assert chunk.result is not None
    assert (chunk.result.completed, chunk.result.failed) == (10, 0)
    part = chunk.result.output
    assert part.key == f"batch/jobs/{job.id}/00000000-1-output.jsonl"
    assert ids_of(core.objects.objects[part.key]) == [f"row-{n}" for n in range(10)]
    assert part.size_bytes == len(core.objects.objects[part.key])
    assert chunk.result.errors.key == ""
    assert delivery.acknowledged == 1
    assert delivery.calls_before["complete_chunk"] == 1
    assert core.told == 1


async def test_the_last_chunk_s_job_is_given_to_hands_that_wait_and_not_looked_for() -> None:
    core = Core(chunk_rows=5)
    job = await core.planned(some_rows(10))
    taking = asyncio.create_task(core.hands.take_given())
    await asyncio.sleep(0)
    await core.work(job)

    async def has_ended() -> bool:
        return (await core.read(job)).state == "completed"

    await until(has_ended)
    taking.cancel()
    assert core.told == 0
    assert core.done == 2


async def test_rows_that_fail_do_not_keep_the_others_from_their_answers() -> None:
    core = Core()
    core.model.fails = _refusing(3, 7)
    job = await core.planned(some_rows(10))
    await core.work(job)
    done = await core.finish()
    assert (done.counts.completed, done.counts.failed) == (8, 2)
    assert ids_of(await core.file(done, done.error_file)) == ["row-3", "row-7"]
    assert codes_of(await core.file(done, done.error_file)) == ["invalid_request"] * 2
    assert core.value('headrace_batch_job_rows_total{model="mlp",outcome="completed"}') == 8
    assert core.value('headrace_batch_job_rows_total{model="mlp",outcome="failed"}') == 2


async def test_rows_that_time_out_as_often_as_the_job_allows_are_told_as_such() -> None:
    core = Core()

    def time_out(_: InferRequest) -> None:
        raise DeadlineExceeded("too late")

    core.model.fails = time_out
    job = await core.planned(some_rows(1), max_attempts=2)
    await core.work(job)
    done = await core.finish()
    assert len(core.model.asked) == 2
    assert codes_of(await core.file(done, done.error_file)) == ["deadline_exceeded"]


async def test_an_answer_that_does_not_fit_its_rows_is_none() -> None:
    core = Core()
    core.model.fails = lambda _: InferResponse(
        "mlp", "1", [Tensor("y", "FP32", np.zeros((9, 1), np.float32))]
    )
    job = await core.planned(some_rows(3))
    await core.work(job)
    done = await core.finish()
    assert done.output_file == ""
    assert len(codes_of(await core.file(done, done.error_file))) == 3


async def test_a_job_passes_through_its_states_and_its_counts_only_grow() -> None:
    core = Core(chunk_rows=2)
    core.model.fails = _refusing(1, 4)
    job = await core.job(some_rows(6))
    seen = [await core.read(job)]
    await core.planner.plan(await core.held())
    seen.append(await core.read(job))
    for index in (2, 0, 1):
        await core.work(job, [index])
        seen.append(await core.read(job))
    await core.finish()
    seen.append(await core.read(job))
    assert [now.state for now in seen] == [
        "validating", *["in_progress"] * 3, "finalizing", "completed",
    ]  # fmt: skip
    counts = [(now.counts.completed, now.counts.failed) for now in seen]
    assert counts == [(0, 0), (0, 0), (1, 1), (2, 2), (4, 2), (4, 2)]
    revisions = [now.revision for now in seen]
    assert revisions == sorted(set(revisions))


async def test_a_message_that_comes_twice_is_acknowledged_and_counted() -> None:
    core = Core()
    job = await core.planned(some_rows(2))
    await core.work(job)
    again = core.delivered(job)
    await core.worker.see_to(again)
    assert again.acknowledged == 1
    assert core.metrics.duplicates.value == 1
    assert (await core.read(job)).counts.completed == 2
    unknown = Delivered(Message(ref=ChunkRef("batch_gone", 3)))
    await core.worker.see_to(unknown)
    assert unknown.acknowledged == 1


async def test_a_message_that_cannot_be_read_goes_to_the_dead_letters() -> None:
    core = Core()
    delivery = Delivered(None, b"{no JSON")
    await core.worker.see_to(delivery)
    (letter,) = core.queue.letters
    assert (letter.raw, letter.source, letter.ref) == (b"{no JSON", "chunks/0/7", None)
    assert delivery.acknowledged == 1
    assert core.metrics.dead_letters.value == 1


async def test_a_message_whose_letter_is_not_safe_is_not_acknowledged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    core = Core()

    async def fail(_: DeadLetter) -> None:
        raise StoreUnavailable("no answer")

    monkeypatch.setattr(core.queue, "bury", fail)
    delivery = Delivered(None, b"{")
    with pytest.raises(StoreUnavailable):
        await core.worker.see_to(delivery)
    assert delivery.acknowledged == 0
    assert core.metrics.dead_letters.value == 0


# --- models that others have ----------------------------------------------------------------------


async def test_a_chunk_whose_model_others_have_is_handed_back_and_has_not_failed() -> None:
    core = Core()
    job = await core.planned(some_rows(2))
    core.knows = False
    delivery = core.delivered(job)
    await core.worker.see_to(delivery)
    assert await _state(core, job) == ("waiting", 0)
    assert delivery.acknowledged == 1
    assert core.value("headrace_batch_passed_on_total") == 1
    assert core.model.asked == []
    assert (core.told, core.done) == (0, 0), "nobody here is woken: others are to look first"
    await core.work(job)
    assert await _state(core, job) == ("waiting", 0), "it is left alone for a while"
    core.now += 0.5
    core.knows = True
    await core.work(job)
    assert await _state(core, job) == ("done", 0)


async def test_a_chunk_whose_model_nobody_has_is_run_in_the_end() -> None:
    core = Core(model_patience_s=20.0, max_retry_delay_s=5.0, max_chunk_failures=2)
    core.model.fails = _unknown
    core.knows = False
    job = await core.planned(some_rows(2))
    begun = core.now
    for _ in range(100):
        await core.work(job)
        if (await _state(core, job))[0] == "done":
            break
        core.now += 0.5
    assert 20.0 <= core.now - begun <= 30.0
    done = await core.finish()
    assert codes_of(await core.file(done, done.error_file)) == ["model_not_found"] * 2


async def test_a_worker_that_is_stopped_while_it_asks_for_the_model_hands_the_chunk_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    core = Core()
    job = await core.planned(some_rows(2))
    asked = asyncio.Event()

    async def leave_s(_: ClaimedChunk) -> float | None:
        asked.set()
        await asyncio.get_running_loop().create_future()
        return None

    monkeypatch.setattr(core.known_models, "leave_s", leave_s)
    working = asyncio.create_task(core.worker.see_to(core.delivered(job)))
    await asked.wait()
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert await _state(core, job) == ("waiting", 0)


# --- stores that do not answer -------------------------------------------------------------------


async def test_a_message_is_kept_until_the_store_says_what_it_is_worth() -> None:
    """Queues wait for what was taken: one that nobody acknowledges would stop them."""
    core = Core()
    job = await core.planned(some_rows(2))
    core.store.gate = failing("claim_chunk", times=3)
    delivery = core.delivered(job)
    with pytest.raises(StoreUnavailable):
        await core.worker.see_to(delivery)
    assert delivery.acknowledged == 0
    await core.worker._see_to(delivery)  # noqa: SLF001 - as `run` does
    assert delivery.acknowledged == 1
    assert await _state(core, job) == ("done", 0)


async def test_a_message_that_is_anothers_by_now_is_left_to_it() -> None:
    core = Core()
    job = await core.planned(some_rows(2))
    core.store.gate = failing("claim_chunk")
    delivery = core.delivered(job)

    async def revoke(_: str) -> None:
        delivery.revoked = True
        raise StoreUnavailable("no answer")

    core.store.gate = revoke
    await core.worker._see_to(delivery)  # noqa: SLF001 - as `run` does
    assert delivery.acknowledged == 0


@pytest.mark.parametrize("where", ["gate", "after_gate"])
async def test_a_result_is_told_again_while_the_lease_lasts(where: str) -> None:
    core = Core()
    job = await core.planned(some_rows(2))
    setattr(core.store, where, failing("complete_chunk", times=3))
    await core.work(job)
    assert await _state(core, job) == ("done", 0)
    assert (await core.read(job)).counts.completed == 2
    assert (await core.finish()).state == "completed"


async def test_a_result_that_nobody_heard_within_the_lease_is_run_again() -> None:
    core = Core(lease_s=15.0)
    job = await core.planned(some_rows(2))

    async def silent(name: str) -> None:
        if name in {"complete_chunk", "release_chunk"}:
            core.now += 5.0
            raise StoreUnavailable("no answer")

    core.store.gate = silent
    delivery = core.delivered(job)
    await core.worker.see_to(delivery)
    core.store.gate = None
    assert core.store.calls["complete_chunk"] == 3
    assert await _state(core, job) == ("running", 0)
    assert delivery.acknowledged == 1  # the store gives the chunk to another by itself
    await core.warden.leases()
    await core.work(job)
    assert await _state(core, job) == ("done", 1)
    assert (await core.read(job)).counts.completed == 2


@pytest.mark.parametrize("error", [StoreUnavailable("no answer"), StorageFull("no room")])
@pytest.mark.parametrize("name", ["read", "put"])
async def test_a_chunk_is_not_to_blame_for_objects_that_do_not_answer(
    name: str, error: HeadraceError
) -> None:
    core = Core(max_retry_delay_s=30.0)
    job = await core.planned(some_rows(2))
    core.objects.gate = failing(name, error=error)
    for n in range(8):
        delivery = core.delivered(job)
        await core.worker.see_to(delivery)
        assert await _state(core, job) == ("waiting", 0)
        assert delivery.acknowledged == 1
        core.now += min(2.0**n, 30.0) - 0.5
        await core.work(job)
        assert (await core.chunks(job))[0].attempt == n + 1  # it is too early
        core.now += 0.5
    core.objects.gate = None
    await core.work(job)
    assert await _state(core, job) == ("done", 0)


async def test_a_chunk_that_cannot_be_handed_back_is_left_to_its_lease() -> None:
    core = Core(lease_s=15.0)
    job = await core.planned(some_rows(2))
    core.objects.gate = failing("read")
    core.store.gate = failing("release_chunk")
    await core.work(job)
    assert await _state(core, job) == ("running", 0)
    core.now += 15.0
    assert await core.warden.leases() == 1
    assert await _state(core, job) == ("waiting", 1)


# --- chunks that fail ----------------------------------------------------------------------------


async def test_an_attempt_writes_where_none_before_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    core = Core()
    job = await core.planned(some_rows(2))
    put = core.objects.put
    taken: list[str] = []

    async def late(key: str, data: bytes) -> None:
        if not taken:
            taken.append(key)
            core.objects.objects[key] = b"another's"
        await put(key, data)

    monkeypatch.setattr(core.objects, "put", late)
    await core.work(job)
    (chunk,) = await core.chunks(job)
    assert (chunk.state, chunk.failures) == ("waiting", 1)
    assert "is there already" in chunk.story[0]
    core.now += 10.0
    await core.work(job)
    (chunk,) = await core.chunks(job)
    assert chunk.result is not None
    assert chunk.result.output.key not in taken
    assert ids_of(core.objects.objects[chunk.result.output.key]) == ["row-0", "row-1"]
    assert core.objects.objects[taken[0]] == b"another's"


async def test_a_chunk_whose_input_was_cut_is_not_run() -> None:
    core = Core()
    job = await core.planned(some_rows(2))
    core.objects.objects[job.input_key] = some_rows(1)
    delivery = core.delivered(job)
    await core.worker.see_to(delivery)
    (chunk,) = await core.chunks(job)
    assert (chunk.state, chunk.failures) == ("waiting", 1)
    assert "has changed" in chunk.story[0]
    assert (core.model.asked, delivery.acknowledged) == ([], 1)


async def test_a_chunk_that_has_other_rows_than_were_planned_is_not_done() -> None:
    core = Core()
    data = some_rows(2)
    job = await core.planned(data)
    core.objects.objects[job.input_key] = data.replace(b"\n", b" ", 1)
    await core.work(job)
    (chunk,) = await core.chunks(job)
    assert (chunk.state, chunk.failures) == ("waiting", 1)


async def test_a_chunk_whose_input_is_gone_fails_with_its_story() -> None:
    core = Core()
    job = await core.planned(some_rows(2))
    core.objects.objects.clear()
    await core.work(job)
    (chunk,) = await core.chunks(job)
    assert (chunk.failures, len(chunk.story)) == (1, 1)
    assert job.input_key in chunk.story[0]


async def test_a_defect_is_the_story_of_the_chunk_that_ran_into_it() -> None:
    core = Core()

    def fail(_: InferRequest) -> None:
        raise RuntimeError("a defect")

    core.model.fails = fail
    job = await core.planned(some_rows(2))
    delivery = core.delivered(job)
    await core.worker.see_to(delivery)
    (chunk,) = await core.chunks(job)
    assert chunk.story == ("RuntimeError: a defect",)
    assert core.metrics.failures.value == 1
    assert delivery.acknowledged == 1


async def test_a_chunk_that_failed_waits_longer_each_time() -> None:
    core = Core(max_retry_delay_s=3.0)
    job = await core.planned(some_rows(2))
    core.objects.objects[job.input_key] = b""
    for failures, delay_s in enumerate([1.0, 2.0, 3.0, 3.0]):
        await core.work(job)
        assert await _state(core, job) == ("waiting", failures + 1)
        core.now += delay_s - 0.5
        assert await core.store.queue_chunks(by="x", window=9, shared=True) == []
        core.now += 0.5


# --- leases --------------------------------------------------------------------------------------


async def test_a_result_under_a_lease_that_is_anothers_is_thrown_away_and_counted() -> None:
    core = Core(lease_s=15.0)
    job = await core.planned(some_rows(4))

    async def pause(name: str) -> None:
        if name == "put":
            core.objects.gate = None
            core.now += 15.0
            await core.warden.leases()
            await job_makers.claimed(core.store, job, 0, "another")

    core.objects.gate = pause
    delivery = core.delivered(job)
    await core.worker.see_to(delivery)
    assert core.metrics.lost_leases.value == 1
    assert (await core.read(job)).counts.completed == 0
    assert await _state(core, job) == ("running", 1)
    assert delivery.acknowledged == 1


async def test_a_lost_lease_stops_the_rows_and_writes_nothing() -> None:
    core = Core(lease_s=15.0)
    core.in_flight = 1
    job = await core.planned(some_rows(40))

    def lose(_: InferRequest) -> None:
        for lease in core.leases._held.values():  # noqa: SLF001 - as a renewal would
            lease.end()

    core.model.fails = lose
    await core.work(job)
    assert len(core.model.asked) < 5
    assert core.metrics.lost_leases.value == 1
    assert list(core.objects.objects) == [job.input_key]
    # it was this worker's after all: nobody has to wait for the end of the lease
    assert await _state(core, job) == ("waiting", 0)


@pytest.mark.parametrize("how", ["cancelled", "expired"])
async def test_a_job_that_ends_early_keeps_what_was_run_and_is_told_of_the_rest_in_order(
    how: str,
) -> None:
    core = Core()
    core.in_flight = 1
    job = await core.planned(some_rows(40))
    ended = asyncio.Event()

    async def end() -> None:
        if how == "cancelled":
            await core.store.cancel_job(job.tenant, job.id)
        else:
            core.now = float(job.expires_at)
            await core.store.expire_jobs(10)
        await core.leases.renew()
        ended.set()

    def fail(request: InferRequest) -> InferResponse | None:
        if len(core.model.asked) == 3:
            ending.append(asyncio.ensure_future(end()))
        return _refusing(1, 6)(request)

    ending: list[asyncio.Future[None]] = []
    core.model.fails = fail
    working = asyncio.create_task(core.work(job))
    await ended.wait()
    await working
    done = await core.finish()
    assert done.state == how
    assert done.counts.completed + done.counts.failed == 40
    output = ids_of(await core.file(done, done.output_file))
    told = await core.file(done, done.error_file)
    errors, codes = ids_of(told), codes_of(told)
    identities = [json.loads(line)["id"] for line in told.splitlines()]
    assert len(set(identities)) == len(identities)
    assert identities[-1] == f"batch_req_{job.id.removeprefix('batch_')}-40"
    assert 0 < len(output) < 38
    assert sorted(output + errors) == sorted(f"row-{n}" for n in range(40))
    for ids in (output, errors):
        assert ids == sorted(ids, key=lambda id_: int(id_.removeprefix("row-")))
    assert codes.count(f"batch_{how}") == 40 - len(output) - codes.count("invalid_request")
    assert "invalid_request" in codes


# --- answers far longer than their rows ----------------------------------------------------------


async def test_a_chunk_may_have_more_answers_than_memory_is_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("headrace.batch.worker.PartWriter", partial(PartWriter, held_bytes=20_000))
    core = Core()
    core.model.width = 1000
    job = await core.planned(some_rows(30))
    sizes: list[int] = []
    put = core.objects.put

    async def noted(key: str, data: bytes) -> None:
        sizes.append(len(data))
        await put(key, data)

    monkeypatch.setattr(core.objects, "put", noted)
    await core.work(job)
    done = await core.finish()
    assert max(sizes) < 60_000 < sum(sizes)
    assert ids_of(await core.file(done, done.output_file)) == [f"row-{n}" for n in range(30)]
    await core.warden.garbage()
    assert not [key for key in core.objects.objects if key.startswith("batch/jobs/")]


# --- for ever ------------------------------------------------------------------------------------


async def _running(core: Core) -> asyncio.Task[None]:
    return asyncio.create_task(core.worker.run())


async def _ends(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_worker_has_no_more_chunks_in_hand_than_it_may() -> None:
    core = Core(chunk_rows=1, chunks_in_hand=2)
    core.model.gate = asyncio.Event()
    job = await core.planned(some_rows(6))
    await _published(core, job)
    running = await _running(core)
    await until(lambda: len(core.model.asked) == 2)
    for _ in range(50):
        await asyncio.sleep(0)
    assert core.store.calls["claim_chunk"] == 2
    core.model.gate.set()

    async def is_done() -> bool:
        return (await core.read(job)).state == "finalizing"

    await until(is_done)
    assert len(core.model.asked) == 6
    await _ends(running)


async def test_a_chunk_that_has_failed_is_worked_on_alone() -> None:
    core = Core(chunk_rows=1, chunks_in_hand=3)
    core.model.gate = asyncio.Event()
    job = await core.planned(some_rows(5))
    fresh = [Message(ref=ChunkRef(job.id, n)) for n in range(5)]
    failed = Message(ref=fresh[2].ref, failures=1)
    waiting = [*fresh[:2], failed, *fresh[3:]]
    taken = core.queue.take

    async def in_order() -> Delivery:
        if waiting:
            await core.queue.publish([waiting.pop(0)])
        return await taken()

    core.queue.take = in_order  # type: ignore[method-assign]
    running = await _running(core)
    await until(lambda: len(core.model.asked) == 2)
    for _ in range(50):
        await asyncio.sleep(0)
    assert [await _state(core, job, n) for n in range(3)] == [
        ("running", 0),
        ("running", 0),
        ("waiting", 0),
    ]
    core.model.gate.set()
    core.model.gate = asyncio.Event()
    await until(lambda: len(core.model.asked) == 3)
    for _ in range(50):
        await asyncio.sleep(0)
    assert [(await _state(core, job, n))[0] for n in range(5)] == [
        *["done"] * 2, "running", *["waiting"] * 2
    ]  # fmt: skip
    core.model.gate.set()
    await until(lambda: len(core.model.asked) == 5)
    await _ends(running)


async def test_a_message_from_before_a_chunk_failed_does_not_put_it_beside_others() -> None:
    core = Core()
    job = await core.planned(some_rows(2))
    core.objects.objects[job.input_key] = b""
    await core.work(job)
    core.now += 10.0
    old = core.delivered(job)
    await core.worker.see_to(old)
    (chunk,) = await core.chunks(job)
    assert (chunk.state, chunk.failures, chunk.attempt) == ("waiting", 1, 2)
    assert old.acknowledged == 1


async def test_a_cancelled_worker_hands_back_what_it_has_not_finished() -> None:
    core = Core(chunk_rows=1, chunks_in_hand=2)
    core.model.gate = asyncio.Event()
    job = await core.planned(some_rows(3))
    await _published(core, job)
    running = await _running(core)
    await until(lambda: len(core.model.asked) == 2)
    await _ends(running)
    assert [await _state(core, job, n) for n in range(3)] == [("waiting", 0)] * 3
    claimed = await job_makers.claimed(core.store, job, 0, "another")
    assert claimed.chunk.attempt == 2


async def test_a_worker_that_is_cancelled_while_it_commits_leaves_nothing_behind() -> None:
    core = Core()
    job = await core.planned(some_rows(2))
    committing = asyncio.Event()

    async def stuck(name: str) -> None:
        if name == "complete_chunk":
            committing.set()
            await asyncio.Event().wait()

    core.store.gate = stuck
    await _published(core, job)
    running = await _running(core)
    await committing.wait()
    await _ends(running)
    assert await _state(core, job) == ("waiting", 0)


async def test_a_worker_that_is_cancelled_while_it_claims_leaves_nothing_behind() -> None:
    core = Core()
    job = await core.planned(some_rows(2))
    claimed, answer = asyncio.Event(), asyncio.Event()

    async def slow(name: str) -> None:
        if name == "claim_chunk":
            claimed.set()
            await answer.wait()

    core.store.after_gate = slow
    await _published(core, job)
    running = await _running(core)
    await claimed.wait()
    running.cancel()
    await asyncio.sleep(0)
    answer.set()
    await _ends(running)
    assert await _state(core, job) == ("waiting", 0)


async def test_it_goes_on_after_a_queue_that_did_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    core = Core()
    job = await core.planned(some_rows(2))
    await _published(core, job)
    take = core.queue.take
    left: list[Exception] = [StoreUnavailable("no answer"), RuntimeError("a defect")]

    async def failing_take() -> object:
        if left:
            raise left.pop()
        return await take()

    monkeypatch.setattr(core.queue, "take", failing_take)
    running = await _running(core)

    async def is_done() -> bool:
        return (await core.read(job)).state == "finalizing"

    await until(is_done)
    await _ends(running)


async def test_stores_that_are_gone_for_a_while_stop_neither_the_worker_nor_its_queue() -> None:
    """What is not acknowledged counts as in hand: after so much of it a queue gives no more."""
    core = Core(chunk_rows=1, chunks_in_hand=2)
    job = await core.planned(some_rows(4))
    deliveries = [core.delivered(job, n) for n in range(4)]
    given = iter(deliveries)

    async def take() -> Delivered:
        delivery = next(given, None)
        if delivery is None:
            await asyncio.Event().wait()
        assert delivery is not None
        return delivery

    core.queue.take = take  # type: ignore[method-assign]
    core.store.gate = failing("claim_chunk", times=7)
    running = await _running(core)
    await until(lambda: all(delivery.acknowledged for delivery in deliveries))
    await _ends(running)
    assert (await core.read(job)).state == "finalizing"


async def test_a_message_that_ran_into_a_defect_is_not_in_hand_for_ever() -> None:
    core = Core()
    job = await core.planned(some_rows(2))
    core.store.gate = failing("claim_chunk", error=RuntimeError("a defect"))
    delivery = core.delivered(job)
    await core.worker._see_to(delivery)  # noqa: SLF001 - as `run` does
    assert delivery.acknowledged == 1  # the store tells of the chunk again


async def test_a_defect_over_one_message_is_not_the_end_of_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    core = Core(chunk_rows=1)
    job = await core.planned(some_rows(2))
    left = [1]

    async def broken(name: str) -> None:
        if name == "claim_chunk" and left:
            left.clear()
            raise RuntimeError("a defect")

    core.store.gate = broken
    await _published(core, job)
    running = await _running(core)

    async def is_one_done() -> bool:
        return (await core.read(job)).open_chunks == 1

    await until(is_one_done)
    assert "a defect" in caplog.text
    await _ends(running)


# --- a slice of a chunk --------------------------------------------------------------------------


def _slow(core: Core, seconds: float) -> None:
    """Each request takes so long."""

    def take(_: InferRequest) -> None:
        core.now += seconds

    core.model.fails = take


async def _worked_through(core: Core, job: Job) -> int:
    """Work on whatever waits of a job; how many chunks that were."""
    count = 0
    while True:
        waiting = [chunk for chunk in await core.chunks(job) if chunk.state == "waiting"]
        if not waiting:
            return count
        await core.work(job, [waiting[0].ref.index])
        count += 1


async def test_a_slow_chunk_is_worked_on_for_a_while_and_what_is_left_waits() -> None:
    core = Core(chunk_s=5.0)
    _slow(core, 1.0)
    job = await core.planned(some_rows(200))
    await core.work(job)
    done, rest = await core.chunks(job)
    assert (done.state, rest.state, rest.ref.index) == ("done", "waiting", 1)
    assert 16 <= done.span.rows <= 32
    assert rest.span.first_line == done.span.rows + 1
    assert rest.span.start == done.span.end
    assert rest.span.rows == 200 - done.span.rows
    now = await core.read(job)
    assert (now.state, now.counts.completed) == ("in_progress", done.span.rows)
    assert core.told == 1  # so that the rest is queued
    assert (
        core.value('headrace_batch_job_rows_total{model="mlp",outcome="completed"}')
        == done.span.rows
    )


async def test_slices_of_chunks_become_files_in_the_order_of_the_input() -> None:
    core = Core(chunk_s=2.0, chunk_rows=60)

    def fail(request: InferRequest) -> None:
        core.now += 1.0
        if (request.content.inputs[0].array == 77).any():
            raise InvalidRequest("it is refused")

    core.model.fails = fail
    data = some_rows(200).replace(b'\n{"custom_id": "row-9"', b'\n \n\n{"custom_id": "row-9"')
    job = await core.planned(data)
    assert await _worked_through(core, job) > 8
    done = await core.finish()
    assert (done.state, done.counts.completed, done.counts.failed) == ("completed", 199, 1)
    output = ids_of(await core.file(done, done.output_file))
    assert output == [f"row-{n}" for n in range(200) if n != 77]
    assert ids_of(await core.file(done, done.error_file)) == ["row-77"]


async def test_a_rest_knows_its_line_though_lines_ahead_of_it_are_blank() -> None:
    core = Core(chunk_s=2.0)
    _slow(core, 1.0)
    data = b"\n" + some_rows(200).replace(b"\n", b"\n\n")
    job = await core.planned(data)
    await core.work(job, [0])
    await core.work(job, [1])
    _, *rests = await core.chunks(job)
    assert len(rests) == 2
    for rest in rests:
        assert rest.span.first_line == data.count(b"\n", 0, rest.span.start) + 1
    await core.store.cancel_job(job.tenant, job.id)
    done = await core.finish()
    assert done.state == "cancelled"
    untold = [f"row-{n}" for n in range(done.counts.completed, 200)]
    assert ids_of(await core.file(done, done.error_file)) == untold


async def test_a_rest_is_queued_though_there_are_hands_that_wait_for_jobs() -> None:
    core = Core(chunk_s=2.0)
    _slow(core, 1.0)
    job = await core.planned(some_rows(200))
    taking = asyncio.create_task(core.hands.take_given())
    await asyncio.sleep(0)
    await core.work(job)
    taking.cancel()
    assert core.told == 1


async def test_a_job_that_is_cancelled_in_a_slice_is_not_worked_on_any_more() -> None:
    core = Core(chunk_s=3.0)
    job = await core.planned(some_rows(200))
    asked = 0

    def take(_: InferRequest) -> None:
        nonlocal asked
        asked += 1
        core.now += 1.0

    core.model.fails = take
    complete = core.store.complete_chunk

    async def cancelled_before(*args: object, **kwargs: object) -> object:
        await core.store.cancel_job(job.tenant, job.id)
        return await complete(*args, **kwargs)  # type: ignore[arg-type]

    core.store.complete_chunk = cancelled_before  # type: ignore[method-assign, assignment]
    await core.work(job)
    done, rest = await core.chunks(job)
    assert (done.state, rest.state) == ("done", "skipped")
    ended = await core.finish()
    assert (ended.state, ended.counts.completed) == ("cancelled", done.span.rows)
    assert (
        codes_of(await core.file(ended, ended.error_file)) == ["batch_cancelled"] * rest.span.rows
    )


async def test_a_slice_whose_lease_was_lost_leaves_nothing() -> None:
    core = Core(chunk_s=3.0)
    _slow(core, 1.0)
    job = await core.planned(some_rows(200))
    core.store.gate = None
    complete = core.store.complete_chunk

    async def late(*args: object, **kwargs: object) -> object:
        core.now += 100.0
        await core.store.release_overdue(10)
        return await complete(*args, **kwargs)  # type: ignore[arg-type]

    core.store.complete_chunk = late  # type: ignore[method-assign, assignment]
    await core.work(job)
    (chunk,) = await core.chunks(job)
    assert (chunk.state, chunk.span.rows, chunk.failures) == ("waiting", 200, 1)
    assert (await core.read(job)).counts.completed == 0


async def test_a_job_of_few_rows_is_done_between_the_slices_of_a_large_one() -> None:
    core = Core(chunk_s=5.0, chunks_in_hand=1, chunk_rows=100)
    _slow(core, 1.0)
    large = await core.planned(some_rows(400))
    await core.dispatcher.dispatch()
    small = await core.planned(some_rows(10))
    asked: list[str] = []
    for _ in range(5):
        await core.dispatcher.dispatch()
        delivery = await core.queue.take()
        assert delivery.message is not None
        asked.append(delivery.message.ref.job)
        await core.worker.see_to(delivery)
    assert asked.count(small.id) == 1
    assert (await core.read(small)).state == "finalizing"
    assert (await core.read(large)).state == "in_progress"
    assert core.now < 1_800_000_000.0 + 5 * 8


async def test_a_quick_chunk_is_worked_on_at_once() -> None:
    core = Core(chunk_s=0.5)
    job = await core.planned(some_rows(500))
    await core.work(job)
    (chunk,) = await core.chunks(job)
    assert (chunk.state, chunk.span.rows) == ("done", 500)
