from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.batch.row_job import RowsRun
from headrace.domain.calls import Call
from headrace.domain.errors import (
    DeadlineExceeded,
    HeadraceError,
    ModelFailed,
    QueueFull,
    StoreUnavailable,
)
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.tensors import Tensor
from headrace.ports.rows import Row
from headrace.transport.oip_rest.rows import OipRows
from tests.support.row_bench import URL, Bench, a_row, some_rows


async def test_a_stop_in_the_middle_keeps_what_is_done_and_names_the_rest() -> None:
    bench = Bench(most_rows=10, in_flight=1)

    def stop() -> None:
        bench.stopped = True

    bench.on_write = stop
    rows = some_rows(100)
    rows[5] = b"nonsense"

    result = await bench.run(rows)

    done = {custom_id for custom_id, _ in bench.answers}
    assert result.completed > 0
    assert len(result.unrun) > 50
    assert done | set(result.unrun) | {"row-5"} == {f"row-{i}" for i in range(100)}
    assert result.completed + result.failed + len(result.unrun) == 100
    assert list(result.unrun) == sorted(result.unrun, key=lambda name: int(name[4:]))


async def test_others_get_their_turn_between_blank_lines_which_are_no_rows() -> None:
    bench = Bench(turn_bytes=1000)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    running = asyncio.create_task(other())
    first, last = some_rows(2)
    result = await bench.run([first, b"\n" * 100_000, b" \r\n" * 1000, last])
    running.cancel()
    assert (result.completed, result.failed) == (2, 0)
    assert turns > 100


async def test_a_stop_among_blank_lines_leaves_the_rows_behind_them() -> None:
    bench = Bench(turn_bytes=1000)
    bench.stopped = True
    first, last = some_rows(2)
    result = await bench.run([first, b"\n" * 5000, last])
    assert result.unrun == ("row-0", "row-1")


async def test_nothing_is_asked_of_a_run_that_was_stopped_before() -> None:
    bench = Bench()
    bench.stopped = True

    result = await bench.run(some_rows(3))

    assert result == RowsRun(0, 0, ("row-0", "row-1", "row-2"))
    assert bench.model.asked == []


async def test_a_stop_ends_a_wait_for_the_next_attempt() -> None:
    bench = Bench(look_s=0.25, retry_base_s=1000, retry_max_s=1000)

    def fail(_: InferRequest) -> None:
        bench.stopped = True
        raise QueueFull("full", retry_after_s=30)

    bench.model.fails = fail

    assert await bench.run(some_rows(2)) == RowsRun(0, 0, ("row-0", "row-1"))
    assert sum(bench.slept) <= 0.25


async def test_rows_are_not_run_past_the_jobs_deadline() -> None:
    bench = Bench(most_rows=1)

    def fail(_: InferRequest) -> None:
        bench.now += 6
        if bench.now > 110:
            raise DeadlineExceeded("late")

    bench.model.fails = fail

    result = await bench.run(some_rows(3), deadline=110.0)

    assert result == RowsRun(1, 0, ("row-1", "row-2"))
    assert all(call.deadline <= 110 for _, call in bench.model.asked)


def _slow(bench: Bench, seconds: float) -> None:
    """Each request takes so long."""

    def take(_: InferRequest) -> None:
        bench.now += seconds

    bench.model.fails = take


def _read(rows: list[bytes], left_bytes: int) -> int:
    """How many rows were read where so many bytes were not."""
    ends = [len(row) + 1 for row in reversed(rows)]
    sums = [sum(ends[:n]) for n in range(len(rows) + 1)]
    return len(rows) - sums.index(left_bytes)


async def test_when_its_time_is_over_no_more_rows_are_read_and_those_that_were_have_answers() -> (
    None
):
    bench = Bench(most_rows=4, in_flight=2)
    bench.slice_s = 5.0
    _slow(bench, 1.0)
    rows = some_rows(200)

    result = await bench.run(rows)

    read = _read(rows, result.left_bytes)
    assert 16 <= read <= 32
    assert (result.completed, result.failed, result.unrun) == (read, 0, ())
    assert [custom_id for custom_id, _ in bench.answers] == [f"row-{n}" for n in range(read)]


async def test_rows_that_wait_for_others_of_their_kind_are_asked_about_too() -> None:
    bench = Bench(most_rows=4, in_flight=1)
    bench.slice_s = 5.0
    _slow(bench, 1.0)
    rows = [a_row(f"row-{n}", [1.0] * (1 + n % 3)) for n in range(200)]

    result = await bench.run(rows)

    read = _read(rows, result.left_bytes)
    assert 0 < read < 60
    assert (result.completed, result.unrun) == (read, ())


async def test_no_more_rows_of_a_slow_model_are_read_ahead_than_take_a_slice() -> None:
    """None is like another, and each takes so long that few of them are a slice."""
    bench = Bench(most_rows=4, in_flight=2)
    bench.slice_s = 5.0
    _slow(bench, 0.25)
    rows = [a_row(f"row-{n}", [1.0] * (1 + n)) for n in range(300)]

    result = await bench.run(rows)

    assert 20 <= result.completed <= 60
    assert result.completed == _read(rows, result.left_bytes)


async def test_one_request_that_takes_longer_than_the_time_there_is_gets_its_answer() -> None:
    bench = Bench(most_rows=1, in_flight=1)
    bench.slice_s = 5.0
    _slow(bench, 1000.0)
    rows = some_rows(50)

    result = await bench.run(rows)

    assert 1 <= result.completed <= 2
    assert result.completed == _read(rows, result.left_bytes)


async def test_a_chunk_that_is_nearly_done_is_not_left() -> None:
    bench = Bench(most_rows=4, in_flight=1)
    bench.slice_s = 5.0
    _slow(bench, 1.0)

    assert await bench.run(some_rows(24)) == RowsRun(24, 0)


async def test_lines_that_are_blank_are_no_rest() -> None:
    bench = Bench(most_rows=1, in_flight=1)
    bench.slice_s = 5.0
    _slow(bench, 100.0)
    text = some_rows(1)[0] + b"\n" + b" \n" * 200_000

    assert await bench.run(text) == RowsRun(1, 0)


async def test_what_is_not_a_row_is_not_all_that_is_run() -> None:
    bench = Bench(most_rows=1, in_flight=1)
    bench.slice_s = 1e-9
    bench.runner.clock = iter(range(1_000_000)).__next__  # each look takes longer than there is
    text = b" \n" * 200_000 + b"".join(row + b"\n" for row in some_rows(3))

    result = await bench.run(text)

    assert result.completed >= 1
    assert result.unrun == ()


async def test_a_run_that_is_stopped_when_its_time_is_over_names_what_it_had_read() -> None:
    bench = Bench(most_rows=4, in_flight=1)
    bench.slice_s = 5.0

    def take(_: InferRequest) -> None:
        bench.now += 6.0
        bench.stopped = True

    bench.model.fails = take
    rows = [a_row(f"row-{n}", [1.0] * (1 + n % 3)) for n in range(200)]

    result = await bench.run(rows)

    read = _read(rows, result.left_bytes)
    assert result.completed + len(result.unrun) == read < 200
    assert result.unrun


async def test_few_requests_are_under_way_at_a_time() -> None:
    bench = Bench(most_rows=2, in_flight=3)

    await bench.run(some_rows(40))

    assert bench.model.most_under_way == 3


@pytest.mark.parametrize(
    ("window", "most"), [({"window_rows": 10}, 10), ({"window_bytes": 2000}, 20)], ids=str
)
async def test_rows_are_not_read_far_ahead_of_one_that_is_slow(
    window: dict[str, Any], most: int
) -> None:
    bench = Bench(most_rows=1, in_flight=2, **window)
    slow = asyncio.Event()
    infer = bench.model.infer

    async def waits(request: InferRequest, call: Call) -> InferResponse:
        if request.content.inputs[0].array[0, 0] == 0:
            await slow.wait()
        return await infer(request, call)

    bench.model.infer = waits  # type: ignore[method-assign]
    running = asyncio.create_task(bench.run(some_rows(100)))
    for _ in range(1000):
        await asyncio.sleep(0)
    ahead = len(bench.model.asked)
    slow.set()

    assert (await running).completed == 100
    assert 1 < ahead <= most


async def test_answers_that_were_written_take_no_room() -> None:
    bench = Bench(most_rows=4, in_flight=2, window_bytes=1500)

    assert (await bench.run(some_rows(200))).completed == 200
    assert bench.model.most_under_way == 2


async def test_a_shape_that_is_rare_does_not_hold_up_the_others() -> None:
    bench = Bench(most_rows=8, window_rows=16)
    written: list[int] = []
    bench.on_write = lambda: written.append(len(bench.answers))
    rows = [a_row("rare", [1, 2, 3]), *some_rows(200)]

    assert (await bench.run(rows)).completed == 201
    assert written[0] <= 32


async def test_requests_stay_within_a_size() -> None:
    bench = Bench(max_request_bytes=1000)

    await bench.run(some_rows(64))

    assert max(bench.model.lengths) < 12


async def test_others_get_a_turn_between_requests() -> None:
    bench = Bench(most_rows=4, turn_bytes=512)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(others())
    await bench.run(some_rows(400))
    beside.cancel()

    assert turns > 100


async def test_others_get_a_turn_while_many_rows_are_decoded() -> None:
    bench = Bench(most_rows=4000, window_rows=4000, turn_bytes=512)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while not bench.model.asked:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(others())
    await bench.run(some_rows(400))
    await beside

    assert turns > 60


async def test_what_writing_raises_ends_the_run() -> None:
    bench = Bench(most_rows=1)

    def fail() -> None:
        raise StoreUnavailable("gone")

    bench.on_write = fail

    with pytest.raises(StoreUnavailable):
        await bench.run(some_rows(10))
    assert len(bench.model.asked) < 10


async def test_cancelling_stops_what_is_under_way() -> None:
    bench = Bench()
    bench.model.gate = asyncio.Event()
    running: Awaitable[Any] = asyncio.create_task(bench.run(some_rows(10)))
    for _ in range(10):
        await asyncio.sleep(0)
    assert bench.model.under_way == 1

    running.cancel()  # type: ignore[attr-defined]
    with pytest.raises(asyncio.CancelledError):
        await running

    assert bench.model.under_way == 0


async def test_while_somebody_is_online_requests_are_as_large_as_a_stretch_allows() -> None:
    bench = Bench()
    bench.model.run_s = lambda rows: 0.0001 + rows * 0.0001

    bench.last_online = bench.now
    assert await bench.run(some_rows(200)) == RowsRun(200, 0)
    assert bench.model.lengths[0] == 1
    assert 5 <= max(bench.model.lengths) <= 9
    asked = len(bench.model.asked)

    bench.now += 60
    bench.output = b""
    assert await bench.run(some_rows(128)) == RowsRun(128, 0)
    assert bench.model.lengths[asked:] == [64, 64]


async def test_rows_that_take_longer_than_a_stretch_are_asked_about_one_by_one() -> None:
    bench = Bench()
    bench.model.run_s = lambda rows: rows * 0.011
    bench.last_online = bench.now

    assert await bench.run(_alike(20)) == RowsRun(20, 0)
    assert bench.model.lengths == [1] * 20


async def test_rows_are_merged_as_before_where_they_hold_up_nobody() -> None:
    bench = Bench()  # of a model elsewhere, say: nobody tells how long it ran
    bench.last_online = bench.now

    assert await bench.run(some_rows(150)) == RowsRun(150, 0)
    assert bench.model.lengths[0] == 1
    assert max(bench.model.lengths) == 64


async def test_requests_and_answers_wait_while_the_loop_is_busy_with_others() -> None:
    bench = Bench(in_flight=1)
    bench.last_online = bench.now
    running = asyncio.create_task(bench.run(some_rows(1)))

    async def busy(turns: int) -> None:
        for _ in range(turns):
            bench.now += 0.0001
            await asyncio.sleep(0)

    await busy(50)
    assert bench.model.asked == []
    await asyncio.gather(running, busy(1))
    assert len(bench.answers) == 1


# Rows that are decoded together


class _OneByOne(OipRows):
    def block(self, *_: Any, **__: Any) -> None:
        """They are decoded one by one."""


def _alike(count: int) -> list[bytes]:
    """Rows that a program wrote, so that they can be decoded together."""
    body = '{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[%d,%d]}]}'
    return [
        f'{{"custom_id":"c{n}","method":"POST","url":"{URL}","body":{body % (n, -n)}}}'.encode()
        for n in range(count)
    ]


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 60),
    most_rows=st.integers(0, 9),
    bad=st.sets(st.integers(0, 59), max_size=4),
    blank=st.sets(st.integers(0, 59), max_size=4),
    refused=st.sets(st.integers(0, 59), max_size=3),
    # what no row is to blame for fails all that it is asked with, and these may be others
    error=st.sampled_from([ModelFailed("no"), QueueFull("full")]),
    turn_bytes=st.sampled_from([300, 2000, 100_000]),
)
async def test_rows_are_told_the_same_whether_or_not_they_are_decoded_together(
    *,
    count: int,
    most_rows: int,
    bad: set[int],
    blank: set[int],
    refused: set[int],
    error: HeadraceError,
    turn_bytes: int,
) -> None:
    lines = _alike(count)
    for n in bad:
        if n < count:
            lines[n] = lines[n].replace(b"]}]}", b",true]}]}")
    for n in sorted(blank, reverse=True):
        lines.insert(min(n, count), b"")
    told = []
    for codec in (OipRows(), _OneByOne()):
        bench = Bench(most_rows=most_rows, turn_bytes=turn_bytes)
        bench.runner.codec = codec
        tries: dict[float, int] = {}

        def fails(request: InferRequest, tries: dict[float, int] = tries) -> None:
            for value in request.content.inputs[0].array[:, 0].tolist():
                if value in refused:
                    tries[value] = tries.get(value, 0) + 1
                    if not error.retryable or tries[value] < 2:
                        raise error

        bench.model.fails = fails
        await bench.run(lines)
        told.append((bench.answers, [failure[:2] for failure in bench.failures]))
    assert told[0] == told[1]


async def test_rows_that_are_alike_are_decoded_together() -> None:
    bench = Bench(most_rows=8)
    decoded: list[bytes] = []
    row = bench.runner.codec.row

    def counted(line: Any, **target: Any) -> Any:
        decoded.append(line)
        return row(line, **target)

    bench.runner.codec.row = counted  # type: ignore[method-assign]
    await bench.run(_alike(8 * 1000))
    assert max(bench.model.lengths) == 8
    assert len(decoded) < 4000


def _heavy(row_bytes: int) -> Callable[[InferRequest], InferResponse]:
    """Answers so many bytes of tensors to each row, and as text as many once more."""

    def answer(request: InferRequest) -> InferResponse:
        rows = len(request.content.inputs[0].array)
        y = Tensor("y", "FP32", np.zeros((rows, row_bytes // 4), np.float32))
        return InferResponse("double", "1", [y])

    return answer


@pytest.mark.parametrize("knows", [False, True])
async def test_rows_are_merged_as_their_answers_fit(*, knows: bool) -> None:
    bench = Bench(knows=knows, most_rows=64, window_bytes=100_000)
    bench.model.fails = _heavy(4000)

    assert (await bench.run(some_rows(200))).completed == 200
    later = bench.model.lengths[3:] if knows else bench.model.lengths  # behind those read before
    assert 2 < max(later) <= 50_000 // 8000


async def test_of_answers_that_fill_the_window_one_is_under_way() -> None:
    bench = Bench(knows=False, in_flight=4, window_bytes=100_000)
    bench.model.fails = _heavy(80_000)
    under_way: list[int] = []
    bench.on_write = lambda: under_way.append(bench.model.under_way)
    infer = bench.model.infer

    async def counted(request: InferRequest, call: Call) -> InferResponse:
        under_way.append(bench.model.under_way + 1)
        return await infer(request, call)

    bench.model.infer = counted  # type: ignore[method-assign]
    assert (await bench.run(some_rows(20))).completed == 20
    assert bench.model.lengths == [1] * 20
    assert max(under_way) == 1


async def test_small_answers_are_merged_as_allowed_soon_and_in_the_next_chunk_at_once() -> None:
    bench = Bench(knows=False, most_rows=64)

    await bench.run(_alike(500))
    first = bench.model.lengths.copy()
    assert first[:2] == [2, 2]
    assert first.index(64) <= 5
    bench.model.asked.clear()
    bench.output = b""
    await bench.run(_alike(500))
    assert bench.model.lengths[0] == 64


async def test_lines_of_a_large_answer_are_written_while_others_are_made() -> None:
    bench = Bench(most_rows=64, in_flight=1, turn_bytes=10_000)
    bench.model.fails = _heavy(1000)
    made: list[int] = []

    class Counting(OipRows):
        def output_lines(self, rows: Sequence[Row], *args: Any, **more: Any) -> list[bytes] | None:
            made.append(len(rows))
            return super().output_lines(rows, *args, **more)

    bench.runner.codec = Counting()
    waiting: list[int] = []
    bench.on_write = lambda: waiting.append(sum(made) - bench.output.count(b"\n"))

    assert (await bench.run(_alike(128))).completed == 128
    assert 64 in bench.model.lengths
    assert max(made) == 10
    assert max(waiting) <= 20
    told = [json.loads(line)["response"]["request_id"] for line in bench.output.splitlines()]
    asked = [f"r{i}-{n}" for i, rows in enumerate(bench.model.lengths) for n in range(rows)]
    assert told == asked
