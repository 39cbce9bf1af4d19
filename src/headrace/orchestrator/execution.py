"""Running a batch: merge, run, split, and keep one request's failure to itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TypeAlias

import msgspec
import numpy as np

from headrace.domain.errors import HeadraceError, ModelFailed
from headrace.domain.tensors import Array
from headrace.orchestrator.pending import Pending
from headrace.orchestrator.statistics import ResponseStatistics, responses_at
from headrace.ports.executor import Arrays, Executor

Outcome: TypeAlias = Sequence[Array] | HeadraceError


class Execution(msgspec.Struct):
    """What became of a batch; times are in nanoseconds."""

    outcomes: list[Outcome]  # one per request, in order
    input_ns: int
    infer_ns: int
    output_ns: int
    cpu_ns: int  # of the executor, on the calling thread: free of waits for the interpreter
    responses: Sequence[ResponseStatistics] = ()  # of a stream, by their place in it


class BatchAxisMismatch(ModelFailed):
    """An output's axis 0 is not the number of rows that went in."""


def execute(executor: Executor, requests: Sequence[Pending], rows: int) -> Execution:
    """Run `requests` as one batch of `rows` rows; blocks.

    If a merged run fails, every request runs once more by itself, so that only the one at
    fault sees the failure.
    """
    begun = time.perf_counter_ns()
    if len(requests) == 1:
        inputs = requests[0].inputs
    else:
        inputs = merge([request.inputs for request in requests])
    merged = time.perf_counter_ns()
    cpu_begun = time.thread_time_ns()
    try:
        outputs = executor.run(inputs)
        cpu_ns = time.thread_time_ns() - cpu_begun
        ran = time.perf_counter_ns()
        if len(requests) == 1:
            if executor.max_batch_size:
                _check_rows(outputs, rows)
            outcomes: list[Outcome] = [outputs]
        else:
            outcomes = list(split(outputs, [request.rows for request in requests]))
    except HeadraceError as error:
        if len(requests) == 1:
            outcomes = [error]
        else:
            outcomes = [execute(executor, [r], r.rows).outcomes[0] for r in requests]
        cpu_ns = time.thread_time_ns() - cpu_begun
        ran = time.perf_counter_ns()  # after the repetitions: the batch has cost them too
    ended = time.perf_counter_ns()
    return Execution(outcomes, merged - begun, ran - merged, ended - ran, cpu_ns)


def execute_stream(executor: Executor, requests: Sequence[Pending], rows: int) -> Execution:
    """Run the only one of `requests`, and put its answers into its outlet; blocks.

    The executor is told to stop when nobody reads any more. As output counts the time that it
    took to hand answers over, waits for the reader included.
    """
    del rows  # the model's affair: each answer may have another number
    (request,) = requests
    outlet = request.outlet
    assert outlet is not None, "a decoupled version's request has an outlet"  # noqa: S101
    responses: list[ResponseStatistics] = []
    outcome: Outcome = ()
    infer_ns = output_ns = index = 0
    cpu_begun = time.thread_time_ns()
    answers = executor.stream(request.inputs)
    reads = True
    while reads:
        begun = time.perf_counter_ns()
        try:
            answer = next(answers, None)
        except HeadraceError as error:
            took_ns = time.perf_counter_ns() - begun
            infer_ns += took_ns
            responses_at(responses, index).failed(took_ns)
            outcome = error
            break
        ran = time.perf_counter_ns()
        infer_ns += ran - begun
        if answer is None:
            responses_at(responses, index).was_empty(ran - begun)
            break
        reads = outlet.put(answer)
        del answer  # it is the reader's
        put_ns = time.perf_counter_ns() - ran
        output_ns += put_ns
        if reads:
            responses_at(responses, index).succeeded(ran - begun, put_ns)
            index += 1
    if not reads:
        begun = time.perf_counter_ns()
        if (close := getattr(answers, "close", None)) is not None:
            close()
        responses_at(responses, index).cancel.add(time.perf_counter_ns() - begun)
    cpu_ns = time.thread_time_ns() - cpu_begun
    return Execution([outcome], 0, infer_ns, output_ns, cpu_ns, responses)


def merge(inputs: Sequence[Arrays]) -> Arrays:
    """Join requests along axis 0: inputs [n_i, ...] become one [sum(n_i), ...] per name."""
    return {name: np.concatenate([each[name] for each in inputs]) for name in inputs[0]}


def split(outputs: Sequence[Array], sizes: Sequence[int]) -> list[list[Array]]:
    """Undo a merge: outputs [sum(sizes), ...] become one list of [sizes[i], ...] per request.

    Raises:
        BatchAxisMismatch: an output's axis 0 is not sum(sizes).
    """
    _check_rows(outputs, sum(sizes))
    parts = []
    at = 0
    for size in sizes:
        end = at + size
        parts.append([output[at:end] for output in outputs])
        at = end
    return parts


def _check_rows(outputs: Sequence[Array], rows: int) -> None:
    for output in outputs:
        if output.ndim == 0 or output.shape[0] != rows:
            msg = f"the model answered an output of shape {list(output.shape)} to {rows} rows"
            raise BatchAxisMismatch(msg)
