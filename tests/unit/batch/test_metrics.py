from __future__ import annotations

from headrace.batch.metrics import BatchMetrics
from headrace.domain.chunks import ChunkResult
from headrace.ports.job_store import Backlog
from headrace.telemetry.metrics import Metrics
from tests.support import job_makers


def _shown(metrics: Metrics) -> dict[str, float]:
    lines = metrics.render()[0].decode().splitlines()
    shown = [line.rsplit(" ", 1) for line in lines if line.startswith("headrace_batch_")]
    return {name.removeprefix("headrace_batch_"): float(value) for name, value in shown}


def test_rows_are_counted_by_model_and_outcome() -> None:
    metrics = Metrics()
    batch = BatchMetrics(metrics)
    job = job_makers.job(job_makers.file())
    for _ in range(2):
        batch.chunk(job, ChunkResult(completed=7, failed=3), 0.5)
    shown = _shown(metrics)
    assert shown['job_rows_total{model="mlp",outcome="completed"}'] == 14
    assert shown['job_rows_total{model="mlp",outcome="failed"}'] == 6
    assert shown["chunk_seconds_count"] == 2
    assert shown["chunk_seconds_sum"] == 1.0


def test_what_there_is_to_do_is_as_it_was_found_last() -> None:
    metrics = Metrics()
    batch = BatchMetrics(metrics)
    batch.backlog(Backlog(jobs=3, chunks_waiting=20, chunks_running=2, oldest_s=60.0))
    batch.backlog(Backlog(jobs=1, chunks_waiting=5, chunks_running=0, oldest_s=2.5))
    shown = _shown(metrics)
    assert shown["open_jobs"] == 1
    assert shown['chunks{state="waiting"}'] == 5
    assert shown['chunks{state="running"}'] == 0
    assert shown["oldest_job_seconds"] == 2.5


def test_what_went_wrong_is_there_before_it_ever_did() -> None:
    metrics = Metrics()
    BatchMetrics(metrics)
    shown = _shown(metrics)
    for name in (
        "duplicates", "chunk_failures", "job_failures", "lost_leases", "dead_letters", "orphans",
    ):  # fmt: skip
        assert shown[f"{name}_total"] == 0
