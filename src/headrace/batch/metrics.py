"""What is counted of batch jobs."""

from __future__ import annotations

from headrace.domain.chunks import ChunkResult
from headrace.domain.jobs import Job
from headrace.ports.job_store import Backlog
from headrace.telemetry.metrics import Metrics


class BatchMetrics:
    """The families `headrace_batch_*`."""

    def __init__(self, metrics: Metrics) -> None:
        self._rows = metrics.counter(
            "headrace_batch_job_rows_total", "Rows of batch jobs by outcome.", ("model", "outcome")
        )
        self._chunk_seconds = metrics.histogram(
            "headrace_batch_chunk_seconds", "How long chunks of batch jobs took."
        ).labels()
        self.duplicates = metrics.counter(
            "headrace_batch_duplicates_total",
            "Messages about chunks that were done, or that another works on.",
        ).labels()
        self.failures = metrics.counter(
            "headrace_batch_chunk_failures_total", "Chunks that were handed back after a failure."
        ).labels()
        self.passed_on = metrics.counter(
            "headrace_batch_passed_on_total",
            "Chunks that were left to others, because this process does not know their model.",
        ).labels()
        self.job_failures = metrics.counter(
            "headrace_batch_job_failures_total",
            "Jobs whose planning or finishing failed, and is tried again.",
        ).labels()
        self.lost_leases = metrics.counter(
            "headrace_batch_lost_leases_total",
            "Chunks whose result was thrown away, because their lease was another's by then.",
        ).labels()
        self.dead_letters = metrics.counter(
            "headrace_batch_dead_letters_total", "Messages and chunks that were given up."
        ).labels()
        self.orphans = metrics.counter(
            "headrace_batch_orphans_total",
            "Objects that were removed because no file and no job needed them.",
        ).labels()
        self._jobs = metrics.counter(
            "headrace_batch_jobs_total", "Jobs that ended here, by state.", ("state",)
        )
        self._open_jobs = metrics.gauge(
            "headrace_batch_open_jobs", "Jobs that have not ended."
        ).labels()
        self._chunks = metrics.gauge(
            "headrace_batch_chunks", "Chunks that are not done.", ("state",)
        )
        self._oldest = metrics.gauge(
            "headrace_batch_oldest_job_seconds", "Age of the oldest job that has not ended."
        ).labels()

    def chunk(self, job: Job, result: ChunkResult, seconds: float) -> None:
        """One chunk is done."""
        model = job.target.model
        self._rows.labels(model, "completed").value += result.completed
        self._rows.labels(model, "failed").value += result.failed
        self._chunk_seconds.observe(seconds)

    def ended(self, state: str) -> None:
        """One job has ended."""
        self._jobs.labels(state).value += 1

    def backlog(self, found: Backlog) -> None:
        """How much there is to do."""
        self._open_jobs.value = found.jobs
        self._chunks.labels("waiting").value = found.chunks_waiting
        self._chunks.labels("running").value = found.chunks_running
        self._oldest.value = found.oldest_s
