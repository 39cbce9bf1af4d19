"""Running a version before anybody asks it: configured requests, and one to time it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from headrace.domain.binary import from_binary
from headrace.domain.datatypes import DATATYPES
from headrace.domain.errors import HeadraceError, ModelLoadFailed
from headrace.domain.models import Signature, Warmup, WarmupInput
from headrace.domain.tensors import Array
from headrace.orchestrator.execution_time import ExecutionTime
from headrace.ports.executor import Arrays, Executor, ModelSource

_PROBE_RUNS: Final = 3  # the first one pays for allocations; the last one counts
_PROBE_LIMIT: Final = 1_000_000  # elements of a probe input


def _untold(done: int, total: int) -> None:
    """Nobody asks how far the warm-up has come."""


def warm_up(
    executors: Sequence[Executor],
    source: ModelSource,
    *,
    times: ExecutionTime,
    progress: Callable[[int, int], None] = _untold,
) -> None:
    """Run the configured warm-up on every executor, and learn how long one row takes.

    Blocks. `progress` is called on this thread with the configured requests that were run, over
    all executors, and how many there are: before the first one and after each. Only executors
    whose time depends on shapes alone are timed with made-up input: a Python model could do
    anything with zeros.

    Raises:
        ModelLoadFailed: a configured warm-up failed, naming it.
    """
    rng = np.random.default_rng(0)
    done, total = 0, len(executors) * sum(warmup.count for warmup in source.config.warmup)
    if total:
        progress(0, total)
    for warmup in source.config.warmup:
        limit = executors[0].max_batch_size
        if limit and warmup.batch_size > limit:
            msg = f"warm-up '{warmup.name}' has {warmup.batch_size} rows, the model takes {limit}"
            raise ModelLoadFailed(msg)
        inputs = _inputs(warmup, limit, source.folder, rng)
        for executor in executors:
            for _ in range(warmup.count):
                try:
                    _run(executor, inputs)
                except HeadraceError as error:
                    msg = f"warm-up '{warmup.name}' failed: {error.message}"
                    raise ModelLoadFailed(msg) from error
                done += 1
                progress(done, total)
    if executors[0].bounded:
        _time_one_row(executors[0], times)


def _run(executor: Executor, inputs: Arrays) -> None:
    if executor.decoupled:
        for _ in executor.stream(inputs):
            pass
    else:
        executor.run(inputs)


def _time_one_row(executor: Executor, times: ExecutionTime) -> None:
    inputs = _zeros(executor.signature)
    if inputs is None:
        return
    for run in range(_PROBE_RUNS):
        begun = time.thread_time()
        try:
            executor.run(inputs)
        except HeadraceError:
            return  # the model dislikes zeros or axes of 1: it will be timed at work
        if run == _PROBE_RUNS - 1:
            times.observe(1, time.thread_time() - begun)


def _zeros(signature: Signature) -> Arrays | None:
    """One row of zeros for every input, open axes at 1; None where that is a lot of memory."""
    arrays = {}
    for spec in signature.inputs:
        shape = [1 if size < 0 else size for size in spec.shape]
        if np.prod(shape, dtype=np.float64) > _PROBE_LIMIT:
            return None
        arrays[spec.name] = _filled(spec.datatype, shape, 0)
    return arrays


def _filled(datatype: str, shape: Sequence[int], value: Any) -> Array:
    if datatype == "BYTES":
        return np.full(shape, b"", dtype=np.object_)
    return np.full(shape, value, dtype=DATATYPES[datatype].dtype)


def _inputs(
    warmup: Warmup, max_batch_size: int, folder: Path, rng: np.random.Generator
) -> dict[str, Array]:
    arrays = {}
    for name, wanted in warmup.inputs.items():
        shape = (max(warmup.batch_size, 1), *wanted.shape) if max_batch_size else wanted.shape
        arrays[name] = _input(name, wanted, shape, folder, rng)
    return arrays


def _input(
    name: str, wanted: WarmupInput, shape: Sequence[int], folder: Path, rng: np.random.Generator
) -> Array:
    dtype = DATATYPES[wanted.datatype].dtype
    if wanted.fill == "file":
        path = folder / "warmup" / wanted.data_file
        try:
            data = path.read_bytes()
            one = from_binary(name, wanted.datatype, wanted.shape, data)
        except (OSError, HeadraceError) as error:
            msg = f"warm-up data for input '{name}': {error}"
            raise ModelLoadFailed(msg) from error
        return np.broadcast_to(one, shape).copy()
    if wanted.fill == "zero" or wanted.datatype == "BYTES":
        return _filled(wanted.datatype, shape, 0)
    if dtype.kind == "f":
        return rng.random(shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)
