from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.batch.row_runner import RowJob, RowRunner, RowRunnerSettings, RowsRun
from headrace.domain.calls import Call, Principal
from headrace.domain.errors import (
    DeadlineExceeded,
    EndpointFailed,
    HeadraceError,
    InvalidRequest,
    ModelFailed,
    QueueFull,
    StoreUnavailable,
    UnknownModel,
)
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.tensors import Tensor
from headrace.ports.inference import Responses, single
from headrace.transport.oip_rest.rows import OipRows

URL = "/v2/models/double/infer"


class Doubling:
    """Answers twice its first input as "y", and a row's sum as "s"; notes what it was asked.

    `fails` may raise, or answer something else.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[InferRequest, Call]] = []
        self.fails: Callable[[InferRequest], InferResponse | None] = lambda _: None
        self.gate: asyncio.Event | None = None
        self.under_way = self.most_under_way = 0

    @property
    def lengths(self) -> list[int]:
        return [len(request.content.inputs[0].array) for request, _ in self.asked]

    async def infer(self, request: InferRequest, call: Call) -> InferResponse:
        self.asked.append((request, call))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            if self.gate is not None:
                await self.gate.wait()
            else:
                await asyncio.sleep(0)
            if (other := self.fails(request)) is not None:
                return other
        finally:
            self.under_way -= 1
        content = request.content
        first = content.inputs[0]
        if first.datatype == "BYTES":
            outputs = [Tensor("y", "BYTES", first.array * 2)]
        else:
            rest = tuple(range(1, first.array.ndim))
            outputs = [
                Tensor("y", first.datatype, first.array * 2),
                Tensor("s", "FP64", first.array.sum(axis=rest, dtype=np.float64)),
            ]
        if content.outputs is not None:
            wanted = {output.name for output in content.outputs}
            outputs = [tensor for tensor in outputs if tensor.name in wanted]
        return InferResponse("double", "1", outputs, content.id)

    def stream(self, request: InferRequest, call: Call) -> Responses:
        return single(self, request, call)


class Bench:
    """A runner with a clock that sleeping moves, and all that it wrote."""

    def __init__(self, *, most_rows: int = 64, **changes: Any) -> None:
        self.model = Doubling()
        self.now = 100.0
        self.slept: list[float] = []
        self.stopped = False
        self.output = b""
        self.errors = b""
        self.on_write: Callable[[], None] = lambda: None
        ids = (f"r{i}" for i in itertools.count())
        self.runner = RowRunner(
            service=self.model,
            codec=OipRows(),
            mergeable=lambda *_: most_rows,
            ids=lambda: next(ids),
            clock=lambda: self.now,
            sleep=self._sleep,
            chance=lambda: 0.5,
            settings=RowRunnerSettings(**{"in_flight": 2, **changes}),
        )

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)

    async def _write(self, output: bytes, errors: bytes) -> None:
        self.output += output
        self.errors += errors
        self.on_write()

    async def run(self, lines: bytes | Sequence[bytes], **job: Any) -> RowsRun:
        text = lines if isinstance(lines, bytes) else b"".join(line + b"\n" for line in lines)
        result = await self.runner.run(
            text,
            RowJob(**{"model": "double", **job}),
            write=self._write,
            stop=lambda: self.stopped,
        )
        assert result.completed == len(self.answers)
        assert result.failed == len(self.failures)
        return result

    @property
    def answers(self) -> list[tuple[str, Any]]:
        """Custom ids and bodies, in the order that they were written."""
        lines = [json.loads(line) for line in self.output.splitlines()]
        return [(line["custom_id"], line["response"]["body"]) for line in lines]

    @property
    def doubled(self) -> dict[str, Any]:
        return {custom_id: body["outputs"][0]["data"] for custom_id, body in self.answers}

    @property
    def failures(self) -> list[tuple[str, str]]:
        lines = [json.loads(line) for line in self.errors.splitlines()]
        return [(line["custom_id"], line["error"]["code"]) for line in lines]


def a_row(custom_id: str, data: Any, **more: Any) -> bytes:
    shape = more.pop("shape", [1, len(data)])
    datatype = more.pop("datatype", "FP32")
    entry = {"name": "x", "shape": shape, "datatype": datatype, "data": data}
    body = {"inputs": [entry, *more.pop("others", [])], **more}
    document = {"custom_id": custom_id, "method": "POST", "url": URL, "body": body}
    return json.dumps(document).encode()


def some_rows(count: int) -> list[bytes]:
    return [a_row(f"row-{i}", [i, 0.5]) for i in range(count)]


def raising(error: HeadraceError, *, times: int = 1_000_000) -> Callable[[InferRequest], None]:
    left = [times]

    def fail(_: InferRequest) -> None:
        if left[0]:
            left[0] -= 1
            raise error

    return fail


def poisoned(value: float, error: HeadraceError) -> Callable[[InferRequest], None]:
    def fail(request: InferRequest) -> None:
        if (request.content.inputs[0].array == value).any():
            raise error

    return fail


# --- what is answered ----------------------------------------------------------------------------


async def test_rows_that_are_alike_are_merged_and_answered_in_order() -> None:
    bench = Bench()

    result = await bench.run(some_rows(150))

    assert result == RowsRun(150, 0)
    assert bench.model.lengths == [64, 64, 22]
    assert [custom_id for custom_id, _ in bench.answers] == [f"row-{i}" for i in range(150)]
    assert bench.doubled == {f"row-{i}": [2.0 * i, 1.0] for i in range(150)}


async def test_calls_are_made_as_the_jobs_caller_at_batch_priority_and_with_a_deadline() -> None:
    bench = Bench(timeout_s=7)
    principal = Principal("p", "t")

    await bench.run(some_rows(1), principal=principal, version="4")

    ((request, call),) = bench.model.asked
    assert (request.model, request.version) == ("double", "4")
    assert (call.principal, call.batch) == (principal, True)
    assert (call.received, call.deadline) == (100.0, 107.0)


async def test_lines_that_are_blank_are_no_rows_and_the_last_one_needs_no_newline() -> None:
    bench = Bench()
    first, second = some_rows(2)

    assert await bench.run(b"\n" + first + b"\r\n \r\n" + second) == RowsRun(2, 0)
    assert list(bench.doubled) == ["row-0", "row-1"]


async def test_nothing_at_all_is_no_rows() -> None:
    assert await Bench().run(b"") == RowsRun(0, 0)


async def test_shapes_and_datatypes_that_differ_are_asked_about_apart_and_told_in_order() -> None:
    bench = Bench()
    rows = [
        a_row(f"row-{i}", [i] * (1 + i % 3), datatype="INT32" if i % 2 else "FP32")
        for i in range(60)
    ]

    assert await bench.run(rows) == RowsRun(60, 0)
    assert sorted(bench.model.lengths) == [10] * 6
    assert [custom_id for custom_id, _ in bench.answers] == [f"row-{i}" for i in range(60)]
    assert bench.doubled == {f"row-{i}": [2 * i] * (1 + i % 3) for i in range(60)}


async def test_rows_that_ask_for_other_outputs_or_say_other_parameters_are_not_merged() -> None:
    bench = Bench()
    rows = [
        a_row("plain", [1]),
        a_row("sum", [2], outputs=[{"name": "s"}]),
        a_row("one", [3], parameters={"p": 1}),
        a_row("true", [4], parameters={"p": True}),
        a_row("same", [5], parameters={"p": 1}),
    ]

    assert await bench.run(rows) == RowsRun(5, 0)
    assert [output["name"] for output in bench.answers[1][1]["outputs"]] == ["s"]
    said = [dict(request.content.parameters) for request, _ in bench.model.asked]
    assert said == [{}, {}, {"p": 1}, {"p": True}]
    assert bench.model.lengths == [1, 1, 2, 1]


async def test_ids_of_bodies_come_back_and_request_ids_are_the_rows_own() -> None:
    bench = Bench()

    await bench.run([a_row(f"c{i}", [i], id=f"id-{i}") for i in range(3)])

    assert [body["id"] for _, body in bench.answers] == ["id-0", "id-1", "id-2"]
    lines = [json.loads(line) for line in bench.output.splitlines()]
    assert len({line["id"] for line in lines}) == 3
    assert all(line["response"]["request_id"].startswith("r0-") for line in lines)


async def test_several_inputs_and_rows_of_several_batch_rows() -> None:
    bench = Bench(most_rows=4)

    def of(custom_id: str, length: int) -> bytes:
        other = {"name": "z", "shape": [length, 1], "datatype": "INT64", "data": [1] * length}
        return a_row(custom_id, [2.0] * 2 * length, shape=[length, 2], others=[other])

    assert await bench.run([of("a", 1), of("b", 3), of("c", 2), of("d", 3)]) == RowsRun(4, 0)
    assert bench.model.lengths == [4, 2, 3]
    shapes = [body["outputs"][0]["shape"] for _, body in bench.answers]
    assert shapes == [[1, 2], [3, 2], [2, 2], [3, 2]]


async def test_strings_are_merged_and_half_floats_refused() -> None:
    bench = Bench()
    rows = [a_row(f"c{i}", [f"é{i}"], datatype="BYTES") for i in range(3)]

    assert await bench.run([*rows, a_row("half", [1], datatype="FP16")]) == RowsRun(3, 1)
    assert bench.doubled == {f"c{i}": [f"é{i}é{i}"] for i in range(3)}
    assert bench.model.lengths == [3]


async def test_a_model_without_a_batch_axis_is_asked_row_by_row() -> None:
    bench = Bench(most_rows=0)

    assert await bench.run(some_rows(3)) == RowsRun(3, 0)
    assert bench.model.lengths == [1, 1, 1]


async def test_inputs_that_disagree_on_their_rows_go_to_the_model_by_themselves() -> None:
    bench = Bench()
    other = {"name": "z", "shape": [2, 1], "datatype": "FP32", "data": [1, 2]}

    await bench.run([a_row("a", [1], others=[other]), a_row("b", [1], others=[other])])

    assert len(bench.model.asked) == 2


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 3), st.booleans(), st.integers(-9, 9)),
        max_size=40,
    ),
    st.integers(0, 5),
    st.integers(1, 4),
    st.integers(1, 9),
)
def test_merged_and_taken_apart_is_the_same_as_row_by_row(
    rows: list[tuple[int, int, bool, int]], most_rows: int, in_flight: int, window: int
) -> None:
    lines = [
        a_row(
            f"c{i}",
            [value + k for k in range(length * width)],
            shape=[length, width],
            **({"id": f"id{i}"} if named else {}),
        )
        for i, (length, width, named, value) in enumerate(rows)
    ]
    merging = Bench(most_rows=most_rows, in_flight=in_flight, window_rows=window, turn_bytes=99)
    alone = Bench(most_rows=0)

    asyncio.run(merging.run(lines))
    asyncio.run(alone.run(lines))

    assert merging.answers == alone.answers
    assert len(alone.answers) == len(rows)


# --- failures ------------------------------------------------------------------------------------


async def test_rows_that_cannot_be_read_fail_and_the_others_are_answered() -> None:
    bench = Bench()
    rows = some_rows(6)
    rows[1] = rows[1].replace(b"[1, 0.5]", b"[1, nonsense]")
    rows[4] = rows[4].replace(b"[4, 0.5]", b"[4]")

    assert await bench.run(rows) == RowsRun(4, 2)
    assert bench.failures == [("row-1", "invalid_request"), ("row-4", "invalid_request")]
    assert bench.doubled == {f"row-{i}": [2.0 * i, 1.0] for i in (0, 2, 3, 5)}


@pytest.mark.parametrize("error", [InvalidRequest("odd"), ModelFailed("broke")])
async def test_a_poisoned_row_among_64_fails_alone(error: HeadraceError) -> None:
    bench = Bench()
    bench.model.fails = poisoned(13, error)

    assert await bench.run(some_rows(64)) == RowsRun(63, 1)
    assert bench.failures == [("row-13", error.code)]
    assert bench.doubled == {f"row-{i}": [2.0 * i, 1.0] for i in range(64) if i != 13}
    assert len(bench.model.asked) == 13  # all, and both halves of what holds it, six times
    assert bench.slept == []


async def test_a_row_for_which_a_server_fails_costs_the_others_no_attempt() -> None:
    bench = Bench(retry_base_s=0)
    bench.model.fails = poisoned(13, EndpointFailed("500"))

    assert await bench.run(some_rows(64), max_attempts=2) == RowsRun(63, 1)
    assert bench.failures == [("row-13", "endpoint_failed")]
    assert bench.model.lengths.count(1) == 3  # its neighbour, and it twice


async def test_what_no_row_is_to_blame_for_is_not_asked_again() -> None:
    bench = Bench()
    bench.model.fails = raising(UnknownModel("no such model"))

    assert await bench.run(some_rows(10)) == RowsRun(0, 10)
    assert len(bench.model.asked) == 1
    assert {code for _, code in bench.failures} == {"model_not_found"}


@pytest.mark.parametrize(
    "outputs",
    [
        [],
        [Tensor("y", "FP32", np.zeros((3, 2), np.float32))],
        [Tensor("y", "FP32", np.array(1, np.float32))],
        [
            Tensor("y", "FP32", np.zeros((2, 2), np.float32)),
            Tensor("s", "FP32", np.zeros((1,), np.float32)),
        ],
    ],
)
async def test_an_answer_that_does_not_fit_is_no_answer(outputs: list[Tensor]) -> None:
    bench = Bench()
    bench.model.fails = lambda _: InferResponse("double", "1", outputs)

    result = await bench.run(some_rows(2))

    assert result.completed + result.failed == 2
    assert ("row-0", "invalid_response") in bench.failures


async def test_an_answer_without_a_requested_output_is_no_answer() -> None:
    bench = Bench(most_rows=0)
    outputs = [Tensor("y", "FP32", np.zeros((1, 2), np.float32))]
    bench.model.fails = lambda _: InferResponse("double", "1", outputs)

    await bench.run([a_row("a", [1, 2], outputs=[{"name": "s"}])])

    assert bench.failures == [("a", "invalid_response")]


async def test_an_output_that_json_cannot_hold_fails_its_row() -> None:
    bench = Bench()

    def answer(_: InferRequest) -> InferResponse:
        array = np.array([[b"\xff"], [b"fine"]], object)
        return InferResponse("double", "1", [Tensor("y", "BYTES", array)])

    bench.model.fails = answer

    assert await bench.run(some_rows(2)) == RowsRun(1, 1)
    assert bench.doubled == {"row-1": ["fine"]}


async def test_rows_of_sequences_are_refused() -> None:
    bench = Bench()

    await bench.run([a_row("a", [1], parameters={"sequence_id": 7})])

    assert bench.failures == [("a", "unsupported")]


# --- retries -------------------------------------------------------------------------------------


async def test_a_failure_that_passes_is_retried_after_a_while() -> None:
    bench = Bench(retry_base_s=0.2, look_s=10)
    bench.model.fails = raising(QueueFull("full"), times=2)

    assert await bench.run(some_rows(4)) == RowsRun(4, 0)
    assert bench.model.lengths == [4, 4, 4]
    assert bench.slept == pytest.approx([0.1, 0.2])


async def test_what_the_server_asks_to_wait_is_waited_up_to_a_bound() -> None:
    for asked_s, waited_s in ((3, 3), (3000, 5)):
        bench = Bench(retry_base_s=0, longest_retry_after_s=5, look_s=60)
        bench.model.fails = raising(QueueFull("full", retry_after_s=asked_s), times=1)

        await bench.run(some_rows(1))

        assert bench.slept == [waited_s]


async def test_retries_are_used_up() -> None:
    bench = Bench(most_rows=0)
    bench.model.fails = raising(EndpointFailed("down"))

    assert await bench.run(some_rows(1), max_attempts=3) == RowsRun(0, 1)
    assert len(bench.model.asked) == 3
    assert bench.failures == [("row-0", "endpoint_failed")]


async def test_want_of_room_is_no_attempt_until_patience_is_over() -> None:
    bench = Bench(patience_s=20, retry_max_s=1)
    bench.model.fails = raising(QueueFull("full"))

    assert await bench.run(some_rows(4), max_attempts=2) == RowsRun(0, 4)
    assert {code for _, code in bench.failures} == {"queue_full"}
    assert 120 <= bench.now < 123


async def test_a_timeout_is_retried_with_fewer_rows_at_a_time() -> None:
    bench = Bench()

    def fail(request: InferRequest) -> None:
        if len(request.content.inputs[0].array) > 2:
            raise DeadlineExceeded("slow")

    bench.model.fails = fail

    assert await bench.run(some_rows(8), max_attempts=3) == RowsRun(8, 0)
    assert bench.model.lengths == [8, 4, 2, 2, 4, 2, 2]


async def test_a_timeout_that_stays_is_told() -> None:
    bench = Bench()
    bench.model.fails = raising(DeadlineExceeded("slow"))

    assert await bench.run(some_rows(1), max_attempts=2) == RowsRun(0, 1)
    assert bench.failures == [("row-0", "deadline_exceeded")]
    assert len(bench.model.asked) == 2


# --- stopping, and bounds ------------------------------------------------------------------------


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


async def test_few_requests_are_under_way_at_a_time() -> None:
    bench = Bench(most_rows=2, in_flight=3)

    await bench.run(some_rows(40))

    assert bench.model.most_under_way == 3


@pytest.mark.parametrize(
    ("window", "most"), [({"window_rows": 10}, 10), ({"window_bytes": 2000}, 20)], ids=str
)
async def test_rows_are_not_read_far_ahead_of_one_that_is_slow(
    window: dict[str, int], most: int
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


# --- rows that are decoded together --------------------------------------------------------------


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
