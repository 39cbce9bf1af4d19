from __future__ import annotations

import asyncio
import gc
import json
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.batch.row_job import RowJob, RowsRun
from headrace.domain.calls import Principal
from tests.support.row_bench import Bench, a_row, some_rows


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


@pytest.mark.parametrize("max_attempts", [1, 3])
async def test_what_was_written_is_let_go_of_when_a_run_ends(max_attempts: int) -> None:
    """And not when Python next looks for cycles, hundreds of megabytes later."""

    class Part:
        async def write(self, answers: bytes, failures: bytes) -> None:
            assert answers
            assert not failures

    bench, part = Bench(), Part()
    held = weakref.ref(part)
    lines = b"".join(line + b"\n" for line in some_rows(100))
    gc.collect()
    gc.disable()
    try:
        run = await bench.runner.run(
            lines,
            RowJob(model="double", max_attempts=max_attempts),
            write=part.write,
            stop=lambda: False,
            slice_s=5.0,
        )
        assert run == RowsRun(100, 0)
        del part
        assert held() is None
    finally:
        gc.enable()
