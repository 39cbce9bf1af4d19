"""What the gateway counts: requests as a client sees them, and whom it refused."""

from __future__ import annotations

from typing import Final

from headrace.telemetry.metrics import Counter, Histogram, Metrics

SECONDS: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025,
    0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip


class GatewayMetrics:
    """Children are kept here by model and version, so that a request pays a look-up."""

    def __init__(self, metrics: Metrics) -> None:
        self._requests = metrics.counter(
            "headrace_requests_total",
            "Inference requests by model, version and outcome (ok or an error's code).",
            ("model", "version", "outcome"),
        )
        self._seconds = metrics.histogram(
            "headrace_request_seconds",
            "Time from the whole request read to the answer handed to the connection.",
            ("model", "version", "outcome"),
            buckets=SECONDS,
        )
        self.in_flight = metrics.gauge(
            "headrace_requests_in_flight", "Inference requests under way."
        ).labels()
        self._children: dict[tuple[str, str, str], tuple[Counter, Histogram]] = {}
        self._limited = metrics.counter(
            "headrace_rate_limited_total", "Requests over a rate limit, by the limit.", ("policy",)
        )
        self.degraded = metrics.gauge(
            "headrace_ratelimit_degraded",
            "1 while the shared limiter is gone and this process grants its share of the quotas.",
        ).labels()
        self._refusals = metrics.counter(
            "headrace_admission_refusals_total",
            "Inference requests that were not let in, by the error's code.",
            ("code",),
        )
        self.waiting = metrics.gauge(
            "headrace_admission_waiting", "Inference requests that wait to be let in."
        ).labels()

    def record(self, model: str, version: str, outcome: str, seconds: float) -> None:
        """Count one request. Unknown models must come as "", so that clients make no series."""
        key = (model, version, outcome)
        pair = self._children.get(key)
        if pair is None:
            pair = (self._requests.labels(*key), self._seconds.labels(*key))
            self._children[key] = pair
        pair[0].value += 1
        pair[1].observe(seconds)

    def count_limited(self, policy: str) -> None:
        """Count a request that is over the limit `policy`."""
        self._limited.labels(policy).value += 1

    def count_refusal(self, code: str) -> None:
        """Count a request that was not let in."""
        self._refusals.labels(code).value += 1
