from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.batch.custom_ids import CustomIds
from headrace.batch.planner import Planner
from headrace.domain.errors import StoreUnavailable
from headrace.domain.jobs import FileProblem, Job
from headrace.ports.rows import RowHead
from headrace.transport.oip_rest.rows import OipRows
from tests.support import job_makers
from tests.support.batch_core import Core, a_row, failing, some_rows


async def _problems(core: Core, data: bytes) -> list[FileProblem]:
    """What is wrong with a file that is refused."""
    await core.job(data)
    job = await core.planner.plan(await core.held())
    assert job is not None
    assert (job.state, job.chunks, job.counts.total) == ("failed", 0, 0)
    assert await core.chunks(job) == []
    return list(job.problems)


async def _codes(core: Core, data: bytes) -> list[tuple[str, int | None]]:
    return [(problem.code, problem.line) for problem in await _problems(core, data)]


async def _rows_of_chunks(core: Core, job: Job) -> list[list[bytes]]:
    data = core.objects.objects[job.input_key]
    cut = [data[c.span.start : c.span.end].splitlines() for c in await core.chunks(job)]
    return [[line for line in lines if line.strip()] for lines in cut]


async def test_a_file_is_cut_by_rows() -> None:
    core = Core(chunk_rows=3)
    job = await core.planned(some_rows(8))
    assert [len(rows) for rows in await _rows_of_chunks(core, job)] == [3, 3, 2]
    assert [c.span.first_line for c in await core.chunks(job)] == [1, 4, 7]
    assert (job.chunks, job.open_chunks, job.counts.total) == (3, 3, 8)


async def test_a_file_is_cut_by_bytes() -> None:
    row = a_row("row-0")
    core = Core(chunk_bytes=2 * len(row) + 10, max_row_bytes=len(row) + 10)
    job = await core.planned(some_rows(5))
    assert [len(rows) for rows in await _rows_of_chunks(core, job)] == [2, 2, 1]


@settings(max_examples=60, deadline=None)
@given(
    blanks=st.lists(st.sampled_from([b"", b"\n", b"\r\n", b"  \n\n"]), min_size=1, max_size=25),
    ends=st.sampled_from([b"\n", b"\r\n"]),
    has_last=st.booleans(),
    chunk_rows=st.integers(1, 6),
    chunk_bytes=st.integers(200, 900),
    piece_bytes=st.sampled_from([1, 50, 1 << 20]),
)
async def test_chunks_hold_each_row_once_and_are_within_the_limits(
    *,
    blanks: list[bytes],
    ends: bytes,
    has_last: bool,
    chunk_rows: int,
    chunk_bytes: int,
    piece_bytes: int,
) -> None:
    rows = [a_row(f"row-{n}", n) for n in range(len(blanks))]
    data = b"".join(blank + row + ends for blank, row in zip(blanks, rows, strict=True))
    data = data if has_last else data.removesuffix(ends)
    core = Core(
        chunk_rows=chunk_rows, chunk_bytes=chunk_bytes, max_row_bytes=200, piece_bytes=piece_bytes
    )

    job = await core.planned(data)

    found = await _rows_of_chunks(core, job)
    assert [row for chunk in found for row in chunk] == rows
    end = 0
    for chunk, held in zip(await core.chunks(job), found, strict=True):
        span = chunk.span
        assert end <= span.start < span.end <= len(data)
        assert span.rows == len(held) <= chunk_rows
        assert span.end - span.start <= chunk_bytes
        assert data[: span.start].count(b"\n") == span.first_line - 1
        assert span.start == 0 or data[span.start - 1 : span.start] == b"\n"
        assert not data[end : span.start].strip()
        end = span.end
    assert not data[end:].strip()


async def test_many_chunks_are_written_down_as_they_come() -> None:
    core = Core(chunk_rows=1, piece_bytes=1000)
    job = await core.planned(some_rows(200))
    assert [len(rows) for rows in await _rows_of_chunks(core, job)] == [1] * 200
    assert core.store.calls["add_chunks"] > 3


# --- refused as a whole --------------------------------------------------------------------------


async def test_a_file_without_rows_is_refused() -> None:
    for data in (b"", b"\n\r\n  \n"):
        assert await _codes(Core(), data) == [("empty_file", None)]


async def test_every_line_that_is_no_row_is_told_with_its_number() -> None:
    lines = [
        a_row("a"),
        b"",
        b"{",
        b"[]",
        b"\xff",
        a_row("b", url="/v2/models/other/infer"),
        b'{"custom_id":"c","method":"POST","url":"/v2/models/mlp/infer"}',
    ]
    assert await _codes(Core(), b"\n".join(lines)) == [
        ("invalid_json_line", 3),
        ("invalid_json_line", 4),
        ("invalid_json_line", 5),
        ("mismatched_url", 6),
        ("missing_required_parameter", 7),
    ]


async def test_a_byte_order_mark_is_told_as_such() -> None:
    data = b"\xef\xbb\xbf" + some_rows(2)
    assert await _codes(Core(), data) == [("invalid_file", 1)]


async def test_a_row_over_the_limit_is_refused_even_if_it_begins_blank() -> None:
    row = a_row("a")
    core = Core(max_row_bytes=len(row))
    assert await _codes(core, row + b"\n" + row + b" \n") == [("row_too_large", 2)]
    core = Core(max_row_bytes=len(row))
    assert await _codes(core, b" " * len(row) + row + b"\n") == [("row_too_large", 1)]


async def test_one_row_too_many_is_told_once_and_the_file_is_not_read_on() -> None:
    core = Core(max_rows=2, piece_bytes=10)
    reads = 0

    async def gate(name: str) -> None:
        nonlocal reads
        reads += name == "read"

    core.objects.gate = gate
    assert await _codes(core, some_rows(1000)) == [("too_many_rows", 3)]
    assert reads < 1000


@pytest.mark.parametrize("piece_bytes", [110, 1 << 20])
async def test_so_many_problems_are_told_and_no_more(piece_bytes: int) -> None:
    core = Core(piece_bytes=piece_bytes)
    assert await _codes(core, b"x\n" * 5000) == [("invalid_json_line", n) for n in range(1, 101)]


async def test_an_input_that_is_gone_is_told() -> None:
    core = Core()
    job = await core.job(some_rows(2))
    core.objects.objects.clear()
    refused = await core.planner.plan(await core.held())
    assert refused is not None
    assert (refused.id, refused.state) == (job.id, "failed")
    assert [problem.code for problem in refused.problems] == ["file_not_found"]


async def test_an_input_that_goes_before_it_is_read_again_is_told() -> None:
    core = Core(chunk_rows=1)
    # with an id that comes twice, so that it is read once more to find its lines
    job = await core.job(some_rows(40) + a_row("row-3") + b"\n")
    opened = 0

    async def remove_at_last(name: str) -> None:
        nonlocal opened
        opened += name == "read"
        if opened == 3:  # the first time it was one piece
            core.objects.objects.clear()

    core.objects.gate = remove_at_last
    refused = await core.planner.plan(await core.held())
    assert refused is not None
    assert (refused.state, await core.chunks(job)) == ("failed", [])
    assert [problem.code for problem in refused.problems] == ["file_not_found"]


# --- custom ids ----------------------------------------------------------------------------------


async def test_ids_that_come_twice_are_told_with_the_line_of_the_first() -> None:
    lines = [a_row("a"), a_row("b"), b"", a_row("a"), a_row("c"), a_row("b"), a_row("a")]
    problems = await _problems(Core(), b"\n".join(lines))
    assert [(p.code, p.line, p.param) for p in problems] == [
        ("duplicate_custom_id", 4, "custom_id"),
        ("duplicate_custom_id", 6, "custom_id"),
        ("duplicate_custom_id", 7, "custom_id"),
    ]
    assert "line 1 already" in problems[0].message
    assert "line 2 already" in problems[1].message


async def test_ids_far_apart_are_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.batch.planner.CustomIds", lambda **_: CustomIds(run=10))
    data = some_rows(95) + a_row("row-3") + b"\n" + some_rows(50, first=95)
    assert await _codes(Core(), data) == [("duplicate_custom_id", 96)]


async def test_duplicates_are_told_up_to_the_limit() -> None:
    assert len(await _problems(Core(), some_rows(300) * 2)) == 100


@pytest.mark.parametrize("run", [10, 1000])
async def test_duplicates_are_told_beside_other_problems_in_the_order_of_lines(
    monkeypatch: pytest.MonkeyPatch, run: int
) -> None:
    monkeypatch.setattr("headrace.batch.planner.CustomIds", lambda **_: CustomIds(run=run))
    again = a_row("row-3") + b"\n"
    data = some_rows(90) + b"no JSON\n" + again + some_rows(5, first=90) + b"[]\n" + again
    assert await _codes(Core(), data) == [
        ("invalid_json_line", 91),
        ("duplicate_custom_id", 92),
        ("invalid_json_line", 98),
        ("duplicate_custom_id", 99),
    ]


async def test_of_too_many_problems_those_of_the_first_lines_are_told() -> None:
    twice = b"".join(a_row("a") + b"\n" for _ in range(31))
    codes = await _codes(Core(), twice + b"no JSON\n" * 500 + twice)
    assert codes[:30] == [("duplicate_custom_id", line) for line in range(2, 32)]
    assert codes[30:] == [("invalid_json_line", line) for line in range(32, 102)]
    codes = await _codes(Core(), b"no JSON\n" * 99 + twice)
    assert codes[99:] == [("duplicate_custom_id", 101)]
    rest = await _codes(Core(max_rows=3), a_row("a") + b"\n" + twice)
    assert rest == [("duplicate_custom_id", n) for n in (2, 3)] + [("too_many_rows", 4)]


class _Colliding(OipRows):
    """Custom ids all have one hash."""

    def heads(self, text: bytes, url: str) -> None:
        """They are asked for one by one."""

    def head(self, line: bytes | memoryview) -> RowHead:
        found = super().head(line)
        return RowHead(_OneHash(found.custom_id), found.url, found.problem, found.code, found.param)


class _OneHash(str):
    __slots__ = ()

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other) is True


async def test_ids_that_only_have_the_same_hash_are_no_duplicates() -> None:
    job = await Core(codec=_Colliding()).planned(some_rows(20))
    assert job.counts.total == 20
    assert await _codes(Core(codec=_Colliding()), some_rows(5) + a_row("row-2")) == [
        ("duplicate_custom_id", 6)
    ]


# --- what happens meanwhile ----------------------------------------------------------------------


async def test_of_a_job_that_was_cancelled_before_nothing_is_planned() -> None:
    core = Core()
    job = await core.job(b"not even JSON")
    await core.store.cancel_job(job.tenant, job.id)
    planned = await core.planner.plan(await core.held())
    assert planned is not None
    assert (planned.state, planned.chunks, planned.counts.total) == ("cancelling", 0, 0)


async def test_a_cancelled_job_is_not_planned_to_its_end() -> None:
    core = Core(chunk_rows=1, piece_bytes=100)
    job = await core.job(some_rows(5000))

    async def cancel(name: str) -> None:
        if name == "add_chunks" and core.store.calls[name] == 2:
            core.store.gate = None
            await core.store.cancel_job(job.tenant, job.id)

    core.store.gate = cancel
    planned = await core.planner.plan(await core.held())
    assert planned is not None
    assert (planned.state, planned.chunks) == ("cancelling", 0)
    assert core.store.calls["add_chunks"] == 3
    assert (await core.finish()).state == "cancelled"


async def test_a_job_whose_window_ends_meanwhile_has_its_chunks_skipped() -> None:
    core = Core(chunk_rows=1)
    job = await core.job(some_rows(3))
    held = await core.held()
    core.now += job.window_s
    await core.store.expire_jobs(10)
    planned = await core.planner.plan(held)
    assert planned is not None
    assert (planned.state, planned.ending, planned.open_chunks) == ("finalizing", "expired", 0)
    assert [chunk.state for chunk in await core.chunks(job)] == ["skipped"] * 3


@pytest.mark.parametrize("ending", ["cancelled", "expired"])
@pytest.mark.parametrize(
    "line", [b"\n" * 1000, a_row("a") + b"\n" + b" \n" * 200], ids=["blank", "with a row"]
)
async def test_a_job_that_is_ended_is_noticed_in_time_whatever_its_file_holds(
    line: bytes, ending: str
) -> None:
    core = Core(look_s=1.0, piece_bytes=1000)
    job = await core.job(line * 2000)
    reads = 0

    async def read(name: str) -> None:
        nonlocal reads
        reads += name == "read"
        core.now += 0.1
        if reads == 5 and ending == "cancelled":
            await core.store.cancel_job(job.tenant, job.id)
        elif reads == 5:
            core.now += job.window_s
            await core.store.expire_jobs(10)

    core.objects.gate = read
    planned = await core.planner.plan(await core.held())
    assert planned is not None
    assert (planned.ending, planned.chunks, planned.counts.total) == (ending, 0, 0)
    assert reads < 30
    assert (await core.finish()).state == ending


async def test_a_job_is_planned_on_while_the_store_does_not_say_whether_it_was_ended() -> None:
    core = Core(look_s=1.0, piece_bytes=1000)
    job = await core.job(some_rows(200))

    async def later(_: str) -> None:
        core.now += 10.0

    core.objects.gate = later
    core.store.gate = failing("job")
    assert await core.planner.plan(await core.held()) is not None
    assert core.store.calls["job"] > 10
    core.store.gate = None
    assert (await core.read(job)).counts.total == 200


async def test_a_job_that_is_ended_while_its_ids_are_compared_is_not_read_to_its_end() -> None:
    core = Core(look_s=1.0, piece_bytes=1000)
    job = await core.job(some_rows(2000) + a_row("row-1999"))
    again = 0

    async def read(name: str) -> None:
        nonlocal again
        if name == "job" and not again:
            again = 1
            await core.store.cancel_job(job.tenant, job.id)

    whole = len(core.objects.objects[job.input_key]) / 1000
    reads = 0

    async def count(_: str) -> None:
        nonlocal reads
        reads += 1
        if reads > whole + 5:
            core.now += 1.0

    core.objects.gate, core.store.gate = count, read
    planned = await core.planner.plan(await core.held())
    assert planned is not None
    assert (planned.state, planned.chunks) == ("cancelling", 0)
    assert whole < reads < 1.5 * whole


async def test_of_a_job_that_expired_before_nothing_is_planned_even_if_nothing_can_be_read() -> (
    None
):
    core = Core()
    job = await core.job(some_rows(3))
    core.now += job.window_s
    await core.store.expire_jobs(10)
    core.objects.gate = failing("read")
    planned = await core.planner.plan(await core.held())
    assert planned is not None
    assert (planned.state, planned.chunks) == ("finalizing", 0)
    assert (await core.finish()).state == "expired"


async def test_a_job_that_was_cancelled_after_it_expired_has_expired() -> None:
    core = Core()
    job = await core.job(some_rows(3))
    core.now += job.window_s
    await core.store.expire_jobs(10)
    await core.store.cancel_job(job.tenant, job.id)
    planned = await core.planner.plan(await core.held())
    assert planned is not None
    assert (planned.ending, planned.chunks) == ("expired", 0)
    assert (await core.finish()).state == "expired"


@pytest.mark.parametrize("order", [1, -1], ids=["usual", "reversed"])
async def test_others_get_their_turn_between_a_few_hundred_lines(order: int) -> None:
    rows = [json.loads(line) for line in some_rows(3000).splitlines()]
    data = b"\n".join(json.dumps(dict(list(row.items())[::order])).encode() for row in rows)
    core = Core(piece_bytes=1 << 20)
    await core.job(b" \n" + data.replace(b"\n", b"\n\n"))
    held = await core.held()
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    running = asyncio.create_task(other())
    assert await core.planner.plan(held) is not None
    running.cancel()
    assert turns >= 3000 // 300


async def test_a_disk_that_is_full_is_no_problem_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "headrace.batch.planner.CustomIds", lambda **given: CustomIds(run=10, **given)
    )
    core = Core()
    (tmp_path / "file").touch()
    planner = Planner(
        store=core.store,
        objects=core.objects,
        codec=core.codec,
        clock=lambda: core.now,
        folder=tmp_path / "file",
        settings=core.settings,
    )
    job = await core.job(some_rows(30))
    with pytest.raises(StoreUnavailable, match="custom ids"):
        await planner.plan(await core.held())
    assert (await core.read(job)).state == "validating"


@pytest.mark.parametrize("at_call", [1, 2, 3])
async def test_whoever_lost_the_lease_changes_nothing_and_ends(at_call: int) -> None:
    core = Core(chunk_rows=1, piece_bytes=500)
    job = await core.job(some_rows(150))
    held = await core.held()

    async def lose(name: str) -> None:
        if name == "add_chunks" and core.store.calls[name] == at_call:
            core.store.gate = None
            core.now += 10_000.0
            assert await core.store.claim_job("another", 60.0) is not None

    core.store.gate = lose
    assert await core.planner.plan(held) is None
    assert (await core.read(job)).state == "validating"
    assert core.store.calls["add_chunks"] == at_call
    assert "planned" not in core.store.calls


async def test_whoever_loses_the_lease_at_the_end_changes_nothing() -> None:
    core = Core()
    job = await core.job(some_rows(3))
    held = await core.held()
    core.now += 10_000.0
    assert await core.store.claim_job("another", 60.0) is not None
    assert await core.planner.plan(held) is None
    assert (await core.read(job)).state == "validating"
    assert await core.chunks(job) == []


async def test_a_lease_that_is_known_to_be_lost_ends_the_reading() -> None:
    core = Core(piece_bytes=10)
    await core.job(some_rows(1000) + b"no row")
    held = await core.held()

    reads = 0

    async def lose(_: str) -> None:
        nonlocal reads
        reads += 1
        held.lost = True

    core.objects.gate = lose
    assert await core.planner.plan(held) is None
    assert reads < 5
    assert "refuse" not in core.store.calls
    assert "add_chunks" not in core.store.calls


async def test_chunks_of_a_planning_before_are_replaced() -> None:
    core = Core(chunk_rows=1)
    await core.job(some_rows(3))
    held = await core.held()
    assert await core.store.add_chunks(held.claim, job_makers.spans(5), first=0)
    core.now += 10_000.0
    planned = await core.planner.plan(await core.held())
    assert planned is not None
    assert [len(rows) for rows in await _rows_of_chunks(core, planned)] == [1, 1, 1]


@pytest.mark.parametrize("name", ["add_chunks", "planned"])
async def test_planning_begins_anew_after_a_store_that_did_not_answer(name: str) -> None:
    core = Core(chunk_rows=1)
    job = await core.job(some_rows(70))
    core.store.after_gate = failing(name, times=2)
    for _ in range(2):
        held = await core.held()
        with pytest.raises(StoreUnavailable):
            await core.planner.plan(held)
        core.now += 10_000.0
        if (await core.read(job)).state == "in_progress":
            break
    else:
        assert await core.planner.plan(await core.held()) is not None
    assert len(await core.chunks(job)) == 70
    assert (await core.read(job)).counts.total == 70


async def test_an_objects_store_that_does_not_answer_is_no_problem_of_the_file() -> None:
    core = Core()
    job = await core.job(some_rows(3))
    core.objects.gate = failing("read")
    with pytest.raises(StoreUnavailable):
        await core.planner.plan(await core.held())
    assert (await core.read(job)).state == "validating"


async def test_custom_ids_are_kept_apart_from_what_they_say() -> None:
    ids: list[Any] = ["é", '"', "\\u00e9", " a", "a ", "a", "日本"]
    lines = [a_row(custom_id) for custom_id in ids]
    lines.append(json.dumps({**json.loads(a_row("é"))}, ensure_ascii=False).encode())
    assert await _codes(Core(), b"\n".join(lines)) == [("duplicate_custom_id", len(lines))]
