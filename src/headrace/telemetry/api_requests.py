"""What became of requests, by route and class of caller: the same count for every wire."""

from __future__ import annotations

from headrace.telemetry.metrics import Counter, Metrics

OK = "ok"


class ApiRequests:
    """Children are kept here by their labels, so that a request pays a look-up."""

    def __init__(self, metrics: Metrics) -> None:
        self._requests = metrics.counter(
            "headrace_api_requests_total",
            "Requests by route, class of caller and outcome (ok or an error's code). Probes are"
            " left out.",
            ("route", "caller", "outcome"),
        )
        self._children: dict[tuple[str, str, str], Counter] = {}

    def count(self, route: str, caller: str, outcome: str) -> None:
        """Count one. `route` is a template, never a path: clients must make no series."""
        key = (route, caller, outcome)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._requests.labels(*key)
        child.value += 1
