"""What is counted of the queue: this process's part of it."""

from __future__ import annotations

from headrace.adapters.kafka.queue import KafkaQueue
from headrace.telemetry.metrics import Metrics


class QueueMetrics:
    """The families `headrace_job_queue_*`, which are as the queue is when they are read."""

    def __init__(self, queue: KafkaQueue, metrics: Metrics) -> None:
        self._queue = queue
        self._lag = metrics.gauge(
            "headrace_job_queue_lag_messages",
            "Messages in this process's partitions that are not done, at the last look.",
            ("topic",),
        )
        self._partitions = metrics.gauge(
            "headrace_job_queue_partitions", "Partitions that are this process's.", ("topic",)
        )
        self._in_hand = metrics.gauge(
            "headrace_job_queue_in_hand_messages",
            "Messages that were delivered to this process and are not done.",
        ).labels()
        self._published = metrics.counter(
            "headrace_job_queue_published_total", "Messages that this process published."
        ).labels()
        self._taken = metrics.counter(
            "headrace_job_queue_taken_total", "Messages that this process took."
        ).labels()
        self._buried = metrics.counter(
            "headrace_job_queue_buried_total", "Dead letters that this process wrote."
        ).labels()
        self._commits = metrics.counter(
            "headrace_job_queue_commits_total", "Commits of offsets that brokers took."
        ).labels()
        self._commit_failures = metrics.counter(
            "headrace_job_queue_commit_failures_total",
            "Commits of offsets that failed, and are made again.",
        ).labels()
        self._rebalances = metrics.counter(
            "headrace_job_queue_rebalances_total",
            "How often partitions came to this process or went.",
        ).labels()
        metrics.observe(self._report)

    def _report(self) -> None:
        queue = self._queue
        for member in queue.members:
            self._lag.labels(member.topic).value = member.lag
            self._partitions.labels(member.topic).value = member.partitions
        self._in_hand.value = queue.in_hand
        self._published.value = queue.published
        self._taken.value = queue.taken
        self._buried.value = queue.buried
        self._commits.value = queue.commits
        self._commit_failures.value = queue.commit_failures
        self._rebalances.value = queue.rebalances
