"""What a version has done since it was loaded, as Triton's statistics extension tells it."""

from __future__ import annotations

import time
from typing import Any

import msgspec


class Duration(msgspec.Struct):
    """How often, and for how many nanoseconds altogether."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        """Count `count` more, `ns` altogether."""
        self.count += count
        self.ns += ns


class BatchStatistics(msgspec.Struct):
    """Runs of one batch size."""

    compute_input: Duration = msgspec.field(default_factory=Duration)
    compute_infer: Duration = msgspec.field(default_factory=Duration)
    compute_output: Duration = msgspec.field(default_factory=Duration)


class VersionStatistics(msgspec.Struct):
    """Totals of one version; requests and runs are counted apart.

    Source: Triton `docs/protocol/extension_statistics.md`.
    """

    last_inference_ms: int = 0  # since the epoch
    inference_count: int = 0  # rows
    execution_count: int = 0  # runs
    success: Duration = msgspec.field(default_factory=Duration)
    fail: Duration = msgspec.field(default_factory=Duration)
    cancel: Duration = msgspec.field(default_factory=Duration)
    queue: Duration = msgspec.field(default_factory=Duration)
    compute_input: Duration = msgspec.field(default_factory=Duration)
    compute_infer: Duration = msgspec.field(default_factory=Duration)
    compute_output: Duration = msgspec.field(default_factory=Duration)
    batches: dict[int, BatchStatistics] = {}

    @property
    def usual_run_s(self) -> float:
        """Mean seconds of a run's inference, by the successful requests; 0 before the first."""
        return self.compute_infer.ns / 1e9 / self.compute_infer.count if self.success.count else 0.0

    def add_run(self, rows: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """Count one run of a batch."""
        self.execution_count += 1
        self.last_inference_ms = time.time_ns() // 1_000_000
        batch = self.batches.get(rows)
        if batch is None:
            batch = self.batches[rows] = BatchStatistics()
        # here and below without a call for each: eight of them cost more than the counting
        for duration, ns in (
            (batch.compute_input, input_ns),
            (batch.compute_infer, infer_ns),
            (batch.compute_output, output_ns),
        ):
            duration.count += 1
            duration.ns += ns

    def add_success(
        self,
        requests: int,
        *,
        rows: int,
        queue_ns: int,
        input_ns: int,
        infer_ns: int,
        output_ns: int,
    ) -> None:
        """Count the requests of a run that succeeded; `queue_ns` is theirs together.

        Every request of a batch takes the whole time of its run.
        """
        self.inference_count += rows
        for duration, ns in (
            (self.success, queue_ns + requests * (input_ns + infer_ns + output_ns)),
            (self.queue, queue_ns),
            (self.compute_input, requests * input_ns),
            (self.compute_infer, requests * infer_ns),
            (self.compute_output, requests * output_ns),
        ):
            duration.count += requests
            duration.ns += ns

    def as_triton(self, name: str, version: str) -> dict[str, Any]:
        """One element of `model_stats`."""
        builtins = msgspec.to_builtins
        none = {"count": 0, "ns": 0}
        return {
            "name": name,
            "version": version,
            "last_inference": self.last_inference_ms,
            "inference_count": self.inference_count,
            "execution_count": self.execution_count,
            "inference_stats": {
                "success": builtins(self.success),
                "fail": builtins(self.fail),
                "queue": builtins(self.queue),
                "compute_input": builtins(self.compute_input),
                "compute_infer": builtins(self.compute_infer),
                "compute_output": builtins(self.compute_output),
                "cache_hit": none,
                "cache_miss": none,
                "cancel": builtins(self.cancel),
            },
            "batch_stats": [
                {"batch_size": size, **builtins(batch)}
                for size, batch in sorted(self.batches.items())
            ],
            "memory_usage": [],
            "response_stats": {},
        }
