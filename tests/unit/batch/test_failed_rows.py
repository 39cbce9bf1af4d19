from __future__ import annotations

import json

import pytest

from headrace.domain.errors import (
    BatchInconsistent,
    HeadraceError,
    InvalidRequest,
    ModelFailed,
    NotFound,
    PayloadTooLarge,
)
from headrace.domain.jobs import Job
from tests.support import job_makers
from tests.support.batch_core import Core, a_row, some_rows

KEY = "batch/files/again"
BAD = InvalidRequest("bad")


async def _failed(core: Core, data: bytes, failures: list[tuple[str, HeadraceError]]) -> Job:
    """A job that reads `data` and whose error file tells of `failures`."""
    lines = [core.codec.error_line(id_, error, request_id="r") for id_, error in failures]
    errors = await core.store.add_file(job_makers.file(purpose="batch_output"))
    core.objects.objects[errors.key] = b"".join(lines)
    return await core.job(data, error_file=errors.id)


@pytest.mark.parametrize("piece_bytes", [1, 1 << 20])
async def test_a_retry_reads_the_failed_lines_as_they_were_in_their_order(piece_bytes: int) -> None:
    core = Core(piece_bytes=piece_bytes)
    rows = [a_row(f"row-{n}", n) + b" " * n for n in range(20)]
    data = b"\n\n".join(rows)  # the last one without a newline
    job = await _failed(core, data, [(f"row-{n}", BAD) for n in (0, 7, 8, 19)])
    wanted = b"".join(rows[n] + b"\n" for n in (0, 7, 8, 19))
    assert await core.failed_rows(job, KEY, codes=None) == len(wanted)
    assert core.objects.objects[KEY] == wanted


async def test_of_a_job_that_ended_all_failed_rows_are_run_again_whatever_they_failed_of() -> None:
    core = Core(chunk_rows=2)

    def fail(_: object) -> None:
        raise BAD

    core.model.fails = fail
    job = await core.planned(some_rows(6))
    await core.work(job, [0])
    await core.store.cancel_job(job.tenant, job.id)
    done = await core.finish()
    await core.failed_rows(done, KEY, codes=None)
    assert core.objects.objects[KEY] == some_rows(6)


async def test_rows_are_chosen_by_what_they_failed_of() -> None:
    core = Core()
    failures: list[tuple[str, HeadraceError]] = [
        ("row-0", BAD),
        ("row-1", ModelFailed("it broke")),
        ("row-2", BAD),
    ]
    job = await _failed(core, some_rows(3), failures)
    await core.failed_rows(job, KEY, codes=frozenset({"model_failed"}))
    assert core.objects.objects[KEY] == a_row("row-1", 1) + b"\n"
    assert await core.failed_rows(job, KEY, codes=frozenset({"batch_expired"})) == 0


async def test_ids_are_compared_by_what_they_are_not_by_how_they_are_written() -> None:
    core = Core()
    document = json.loads(a_row("né\u2028"))
    row = json.dumps(document, ensure_ascii=False).encode()
    job = await _failed(core, some_rows(1) + row, [("né\u2028", BAD)])
    await core.failed_rows(job, KEY, codes=None)
    assert core.objects.objects[KEY] == row + b"\n"


@pytest.mark.parametrize("failed", [["row-9"], ["row-1", "row-0"], ["row-0", "row-0"]])
async def test_an_error_without_its_row_is_told_and_nothing_is_written(failed: list[str]) -> None:
    core = Core()
    job = await _failed(core, some_rows(3), [(id_, BAD) for id_ in failed])
    with pytest.raises(BatchInconsistent, match=failed[-1]):
        await core.failed_rows(job, KEY, codes=None)
    assert KEY not in core.objects.objects


async def test_rows_and_errors_of_any_length_are_read() -> None:
    core = Core(max_row_bytes=100)  # less than when the job was planned
    row = a_row("row-1") + b" " * 5_000_000
    failures: list[tuple[str, HeadraceError]] = [("row-1", ModelFailed("x" * 5_000_000))]
    job = await _failed(core, a_row("row-0") + b"\n" + row, failures)
    assert await core.failed_rows(job, KEY, codes=None) == len(row) + 1


async def test_more_than_a_file_may_hold_is_refused() -> None:
    core = Core(max_file_bytes=100)
    job = await _failed(core, some_rows(3), [(f"row-{n}", BAD) for n in range(3)])
    with pytest.raises(PayloadTooLarge):
        await core.failed_rows(job, KEY, codes=None)


async def test_files_that_are_gone_are_told() -> None:
    core = Core()
    job = await _failed(core, some_rows(1), [("row-0", BAD)])
    del core.objects.objects[job.input_key]
    with pytest.raises(NotFound):
        await core.failed_rows(job, KEY, codes=None)
    await core.store.delete_file(job.tenant, job.error_file)
    with pytest.raises(NotFound):
        await core.failed_rows(job, KEY, codes=None)
