"""What a version has done since it was loaded, as Triton's statistics extension tells it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec

#: Places of a stream that are told apart: a stream of tokens has thousands, nobody reads them all.
RESPONSE_PLACES: Final = 64


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


class ResponseStatistics(msgspec.Struct):
    """Responses at one place of their streams: the first ones, the second ones, and so on."""

    compute_infer: Duration = msgspec.field(default_factory=Duration)
    compute_output: Duration = msgspec.field(default_factory=Duration)
    success: Duration = msgspec.field(default_factory=Duration)
    fail: Duration = msgspec.field(default_factory=Duration)
    empty_response: Duration = msgspec.field(default_factory=Duration)  # the stream ended here
    cancel: Duration = msgspec.field(default_factory=Duration)  # its reader stopped here

    def succeeded(self, infer_ns: int, output_ns: int) -> None:
        """Count one that was sent."""
        self.compute_infer.add(infer_ns)
        self.compute_output.add(output_ns)
        self.success.add(infer_ns + output_ns)

    def failed(self, infer_ns: int) -> None:
        """Count an error in its place."""
        self.compute_infer.add(infer_ns)
        self.fail.add(infer_ns)

    def was_empty(self, infer_ns: int) -> None:
        """Count the end of a stream in its place."""
        self.compute_infer.add(infer_ns)
        self.empty_response.add(infer_ns)

    def merge(self, other: ResponseStatistics) -> None:
        """Add what another counted."""
        for name in self.__struct_fields__:
            more: Duration = getattr(other, name)
            getattr(self, name).add(more.ns, more.count)


def responses_at(responses: list[ResponseStatistics], index: int) -> ResponseStatistics:
    """The counts of responses at a place; those beyond the last place share it."""
    index = min(index, RESPONSE_PLACES - 1)
    while len(responses) <= index:
        responses.append(ResponseStatistics())
    return responses[index]


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
    cache_hit: Duration = msgspec.field(default_factory=Duration)
    cache_miss: Duration = msgspec.field(default_factory=Duration)
    batches: dict[int, BatchStatistics] = {}
    responses: list[ResponseStatistics] = []  # of a decoupled version, by place in their streams

    @property
    def usual_run_s(self) -> float:
        """Mean seconds of a run's inference, by the successful requests; 0 before the first."""
        infer = self.compute_infer
        return infer.ns / 1e9 / infer.count if infer.count else 0.0

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

    def add_cache_hit(self, ns: int) -> None:
        """Count a request that was answered without a run, which took `ns` to look up.

        It waited in no queue, and is counted there as Triton does: `queue` includes hits.
        """
        self.last_inference_ms = time.time_ns() // 1_000_000
        self.success.add(ns)
        self.queue.add(0)
        self.cache_hit.add(ns)

    def add_responses(self, responses: Sequence[ResponseStatistics]) -> None:
        """Count what a stream answered, by place."""
        for index, more in enumerate(responses):
            responses_at(self.responses, index).merge(more)

    def as_triton(self, name: str, version: str) -> dict[str, Any]:
        """One element of `model_stats`."""
        builtins = msgspec.to_builtins
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
                "cache_hit": builtins(self.cache_hit),
                "cache_miss": builtins(self.cache_miss),
                "cancel": builtins(self.cancel),
            },
            "batch_stats": [
                {"batch_size": size, **builtins(batch)}
                for size, batch in sorted(self.batches.items())
            ],
            "memory_usage": [],
            "response_stats": {
                str(index): builtins(each) for index, each in enumerate(self.responses)
            },
        }
