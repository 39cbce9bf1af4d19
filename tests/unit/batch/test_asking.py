from __future__ import annotations

import numpy as np
import pytest

from headrace.batch.row_job import RowsRun
from headrace.domain.errors import (
    DeadlineExceeded,
    EndpointFailed,
    HeadraceError,
    InvalidRequest,
    ModelFailed,
    QueueFull,
    UnknownModel,
    Unsupported,
)
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.tensors import Tensor
from tests.support.row_bench import Bench, a_row, poisoned, raising, some_rows


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


@pytest.mark.parametrize(
    "error", [EndpointFailed("500"), ModelFailed("broke"), DeadlineExceeded("")]
)
async def test_with_one_attempt_each_row_is_asked_about_once(error: HeadraceError) -> None:
    bench = Bench()
    bench.model.fails = poisoned(13, error)

    assert await bench.run(some_rows(64), max_attempts=1) == RowsRun(63, 1)
    assert bench.failures == [("row-13", error.code)]
    assert bench.model.lengths == [1] * 64


async def test_a_row_that_was_merged_is_asked_about_alone_as_often_as_the_job_says() -> None:
    bench = Bench(retry_base_s=0)
    bench.model.fails = poisoned(13, EndpointFailed("500"))

    await bench.run(some_rows(64), max_attempts=4)
    asked = [request.content.inputs[0].array[:, 0] for request, _ in bench.model.asked]
    about = [len(values) for values in asked if 13 in values]
    assert about == [64, 32, 16, 8, 4, 2, 1, 1, 1, 1]


async def test_a_row_for_a_model_that_answers_in_a_stream_is_told_the_way_out() -> None:
    bench = Bench()
    bench.model.fails = raising(
        Unsupported("ModelInfer RPC doesn't support models with decoupled transaction policy")
    )

    await bench.run(some_rows(2))
    assert {code for _, code in bench.failures} == {"unsupported"}
    assert b"/v2/models/double/generate_stream" in bench.errors
    assert b"ModelInfer RPC" not in bench.errors


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


# Retries


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
