"""The orchestrator's metrics, per version."""

from __future__ import annotations

from typing import Final

import msgspec

from headrace.telemetry.metrics import Counter, Gauge, Histogram, Metrics

_SECONDS: Final = (
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005,
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
_LOAD_SECONDS: Final = (0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
_STATES: Final = 4  # children of one version in `state`
_MAX_VERSIONS: Final = 1000
_ROWS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


class VersionMetrics(msgspec.Struct):
    """The children of one version, held by its scheduler."""

    queue_seconds: Histogram
    batch_rows: Histogram
    executor_seconds: Histogram
    abandoned: Counter
    queue_depth: Gauge
    hung: Gauge


class CacheMetrics(msgspec.Struct):
    """The children of one version whose answers are kept."""

    hits: Counter
    misses: Counter


class OrchestratorMetrics:
    """The families; every version takes its children from here and gives them back."""

    def __init__(self, metrics: Metrics) -> None:
        labels = ("model", "version")
        self._queue_seconds = metrics.histogram(
            "headrace_queue_seconds", "Time from admission to the start of its run.", labels,
            buckets=_SECONDS,
        )  # fmt: skip
        self._batch_rows = metrics.histogram(
            "headrace_batch_rows", "Rows of each run.", labels, buckets=_ROWS
        )
        self._executor_seconds = metrics.histogram(
            "headrace_executor_seconds", "Time that a run took in the executor.", labels,
            buckets=_SECONDS,
        )  # fmt: skip
        self._abandoned = metrics.counter(
            "headrace_executor_abandoned_total",
            "Requests whose deadline passed while the executor worked on them.",
            labels,
        )
        self._queue_depth = metrics.gauge(
            "headrace_queue_requests", "Requests that wait for a run.", labels
        )
        self._hung = metrics.gauge(
            "headrace_executor_hung_instances",
            "Instances that nobody waits for, after 1 s and 3 times a usual run of work.",
            labels,
        )
        self.loads = metrics.counter(
            "headrace_model_loads_total", "Loads of versions by outcome.", ("model", "outcome")
        )
        self.ready = metrics.gauge(
            "headrace_model_ready", "1 where the version can run a request now.", labels
        )
        self.state = metrics.gauge(
            "headrace_model_state",
            "1 for the state that the version is in, 0 for the others.",
            (*labels, "state"),
            max_children=_STATES * _MAX_VERSIONS,
        )
        self.load_seconds = metrics.histogram(
            "headrace_model_load_seconds",
            "Time that loads of the model's versions took, by phase: files, warm_up.",
            ("model", "phase"),
            buckets=_LOAD_SECONDS,
        )
        self.drains = metrics.counter(
            "headrace_model_drains_total",
            "Versions that were served no more: 'ended' all they had, or 'cut_off' after drain_s.",
            ("model", "outcome"),
        )
        self._cache_hits = metrics.counter(
            "headrace_response_cache_hits_total",
            "Requests answered with an answer that was kept.",
            labels,
        )
        self._cache_misses = metrics.counter(
            "headrace_response_cache_misses_total",
            "Requests that could have been, had their answer been kept.",
            labels,
        )
        self.cache_bytes = metrics.gauge(
            "headrace_response_cache_bytes", "What the answers that are kept take in memory."
        ).labels()
        self.cache_entries = metrics.gauge(
            "headrace_response_cache_entries", "Answers that are kept."
        ).labels()
        self.cache_evictions = metrics.counter(
            "headrace_response_cache_evictions_total", "Answers dropped to make room for others."
        ).labels()

    def version(self, model: str, version: str) -> VersionMetrics:
        """The children of a version."""
        labels = (model, version)
        return VersionMetrics(
            self._queue_seconds.labels(*labels),
            self._batch_rows.labels(*labels),
            self._executor_seconds.labels(*labels),
            self._abandoned.labels(*labels),
            self._queue_depth.labels(*labels),
            self._hung.labels(*labels),
        )

    def cache(self, model: str, version: str) -> CacheMetrics:
        """The children of a version whose answers are kept."""
        return CacheMetrics(
            self._cache_hits.labels(model, version), self._cache_misses.labels(model, version)
        )

    def forget(self, model: str, version: str, *, counts: bool) -> None:
        """Remove the gauges of a version that is gone, and with `counts` all that is told of it.

        Counts stay as a rule. Those of versions that come and go by the thousand would fill the
        families' bound, and leave none to those that are there.
        """
        for family in (self._queue_depth, self._hung, self.ready):
            family.remove(model, version)
        if counts:
            for counted in (self._queue_seconds, self._batch_rows, self._executor_seconds):
                counted.remove(model, version)
            for counter in (self._abandoned, self._cache_hits, self._cache_misses):
                counter.remove(model, version)
