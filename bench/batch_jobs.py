"""Small batch jobs at a steady rate, whatever became of those before.

Runs as its own process (`python -m bench.batch_jobs`). All jobs read one file, which was uploaded.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from bench import child
from bench.batch_client import BatchClient
from bench.failure import BenchFailure
from bench.server import ask

_CLIENTS: Final = 32
_LOOK_S: Final = 0.25  # each costs the server some milliseconds
_PATIENCE_S: Final = 60.0


class JobsTask(msgspec.Struct, frozen=True):
    """What to begin where, how often and for how long."""

    port: int
    file_id: str
    endpoint: str
    per_s: float
    seconds: float


class JobsOutcome(msgspec.Struct, frozen=True):
    """What became of the jobs: all were accepted, and all were completed."""

    jobs: int
    accepted_per_s: float
    accept_p99_ms: float
    finished_per_s: float  # from the first one's begin to the last one's end
    backlog: int  # the most jobs at a time that were accepted and not finished
    drained_s: float  # from the last one's begin to the last one's end


class _Jobs:
    def __init__(self, task: JobsTask) -> None:
        self._task = task
        self._own = threading.local()
        self.accepted = 0
        self.latencies_s: list[float] = []

    def begin(self, due: float) -> None:
        """Begin one, when it is due."""
        time.sleep(max(0.0, due - time.perf_counter()))
        if not hasattr(self._own, "client"):
            self._own.client = BatchClient(self._task.port)
        self._own.client.create(self._task.file_id, self._task.endpoint)
        self.latencies_s.append(time.perf_counter() - due)
        self.accepted += 1


def measure(task: JobsTask) -> JobsOutcome:
    """Begin what is due until the time is over, and wait for the last one's end.

    Raises:
        BenchFailure: one was refused or failed, or they did not end in time.
    """
    jobs, count = _Jobs(task), round(task.per_s * task.seconds)
    before = _ended(task.port)
    began = time.perf_counter()
    backlog = ended = 0
    now = accepted_s = 0.0
    with ThreadPoolExecutor(_CLIENTS) as pool:
        futures = [pool.submit(jobs.begin, began + i / task.per_s) for i in range(count)]
        while ended < count:
            time.sleep(_LOOK_S)
            accepted = jobs.accepted
            ended = _ended(task.port) - before
            backlog = max(backlog, accepted - ended)
            now = time.perf_counter() - began
            if accepted == count:
                accepted_s = accepted_s or now
            for future in futures:
                if future.done():
                    future.result()
            if now > task.seconds + _PATIENCE_S:
                pool.shutdown(cancel_futures=True)
                raise BenchFailure(f"{ended} of {count} jobs ended within {now:.0f} s")
    ordered = sorted(jobs.latencies_s)
    return JobsOutcome(
        jobs=count,
        accepted_per_s=count / max(accepted_s, task.seconds),
        accept_p99_ms=ordered[len(ordered) * 99 // 100] * 1000,
        finished_per_s=count / now,
        backlog=backlog,
        drained_s=max(0.0, now - accepted_s),
    )


def _ended(port: int) -> int:
    """Jobs that were completed so far."""
    _, _, body = ask(port, "GET", "/metrics")
    ended = {
        sample.labels["state"]: sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if sample.name == "headrace_batch_jobs_total"
    }
    if set(ended) - {"completed"}:
        raise BenchFailure(f"jobs did not end as they should: {ended}")
    return int(ended.get("completed", 0))


if __name__ == "__main__":
    try:
        child.answer(measure(child.task(JobsTask)))
    except BenchFailure as failure:
        child.refuse(str(failure))
