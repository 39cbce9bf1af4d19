"""What servers of endpoints count of their models, as this platform's metrics.

Source: Triton `docs/protocol/extension_statistics.md`: counts and nanoseconds since the model was
loaded there. They begin anew when it is loaded again, so that differences are added up here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, TypeAlias

from headrace.domain.catalog import Endpoint
from headrace.domain.errors import HeadraceError, Unsupported, why
from headrace.ports.remote_models import RemoteModels
from headrace.resilience.health_checks import HealthCheckSettings
from headrace.router.member import Member
from headrace.telemetry.metrics import Counter, CounterFamily, Metrics

_logger = logging.getLogger(__name__)

#: By model and version: the numbers of `_NUMBERS`, in their order.
_Reading: TypeAlias = Mapping[tuple[str, str], tuple[int, ...]]

_LABELS: Final = ("tenant", "endpoint", "model", "version")
_MOST_CHILDREN: Final = 10_000  # every tenant's endpoints share a family's bound
_MOST_VERSIONS: Final = 4096  # of an address that are remembered
_MOST_COUNTED: Final = 256  # versions of an endpoint that are series
_LEAST_TIMEOUT_S: Final = 5.0  # a server may have thousands of models to tell of
_NS: Final = 1e-9

#: Where a number stands in an element of `model_stats`, what it is called here, and its unit.
_NUMBERS: Final[Sequence[tuple[tuple[str, ...], str, float, str]]] = (
    (("inference_count",), "inferences", 1, "Inferences; each row of a batch is one."),
    (("execution_count",), "executions", 1, "Runs; those of a batch are one."),
    (("inference_stats", "success", "count"), "successes", 1, "Requests that succeeded."),
    (("inference_stats", "fail", "count"), "failures", 1, "Requests that failed."),
    (("inference_stats", "queue", "ns"), "queue_seconds", _NS, "Time of requests in queues."),
    (
        ("inference_stats", "compute_input", "ns"),
        "compute_input_seconds", _NS, "Time for preparing requests' inputs.",
    ),
    (
        ("inference_stats", "compute_infer", "ns"),
        "compute_infer_seconds", _NS, "Time of requests in the model.",
    ),
    (
        ("inference_stats", "compute_output", "ns"),
        "compute_output_seconds", _NS, "Time for taking out requests' outputs.",
    ),
    (("inference_stats", "cache_hit", "count"), "cache_hits", 1, "Answers out of its cache."),
    (("inference_stats", "cache_miss", "count"), "cache_misses", 1, "Look-ups in vain."),
)  # fmt: skip


class EndpointStatistics:
    """Reads the statistics of each address again and again, and adds up what has come since.

    Counted are models that the endpoint lists, and those that have answered through this platform.
    What a server had counted before it was first read is not counted here.

    `clock` answers monotonic seconds, `chance` numbers from 0 to below 1.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        settings: HealthCheckSettings,
        clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self.enabled = settings.statistics_s > 0
        self._interval_s = settings.statistics_s
        self._jitter = settings.jitter
        self._timeout_s = max(settings.timeout_s, _LEAST_TIMEOUT_S)
        self._clock = clock
        self._chance = chance
        self._families: list[CounterFamily] = [
            metrics.counter(
                f"headrace_endpoint_model_{name}_total",
                f"{text} As the endpoint's server counts, all its addresses together.",
                _LABELS,
                max_children=_MOST_CHILDREN,
            )
            for _, name, _, text in _NUMBERS
        ]
        self._counters: dict[tuple[str, ...], dict[tuple[str, str], list[Counter]]] = {}

    async def watch(self, member: Member) -> None:
        """Read the statistics of `member` for as long as there are any. Returns where it has none.

        One that does not know the extension is left alone until it has been away.
        """
        models = member.upstream.models
        if models is None:  # this process counts for itself
            return
        before: _Reading | None = None
        left_alone: int | None = None  # how often it had come back when it did not know what it is
        while True:
            try:
                if member.checks.healthy and left_alone != member.returns:
                    before = await self.read(member, models, before)
                    left_alone = None
            except Unsupported:
                left_alone = member.returns
            except HeadraceError as error:
                _logger.info("statistics of endpoint %s: %s", member.name, why(error))
            except Exception:  # the root of a task
                _logger.exception("statistics of endpoint %s cannot be read", member.name)
            spread = self._jitter * (2 * self._chance() - 1)
            await asyncio.sleep(self._interval_s * (1 + spread))

    async def read(self, member: Member, models: RemoteModels, before: _Reading | None) -> _Reading:
        """Read once, and count what has come since `before`; None: nothing was read before."""
        rows = await models.statistics("", "", self._clock() + self._timeout_s)
        now = {(row["name"], row["version"]): _numbers(row) for row in rows[:_MOST_VERSIONS]}
        counted = _counted(member)
        for key, numbers in now.items():
            if key[0] not in counted:
                continue
            counters = self._counters_of(member.endpoint, key)
            if counters is None or before is None:
                continue
            known = before.get(key)
            if known is None or any(new < old for new, old in zip(numbers, known, strict=True)):
                known = (0,) * len(numbers)  # it was loaded meanwhile
            for counter, new, old, (_, _, unit, _) in zip(
                counters, numbers, known, _NUMBERS, strict=True
            ):
                counter.value += (new - old) * unit
        return now

    def forget(self, endpoint: Endpoint) -> None:
        """Show an endpoint no longer."""
        for key in self._counters.pop(endpoint.key, ()):
            for family in self._families:
                family.remove(*endpoint.key, *key)

    def _counters_of(self, endpoint: Endpoint, key: tuple[str, str]) -> list[Counter] | None:
        of_endpoint = self._counters.setdefault(endpoint.key, {})
        counters = of_endpoint.get(key)
        if counters is None and len(of_endpoint) < _MOST_COUNTED:
            counters = [family.labels(*endpoint.key, *key) for family in self._families]
            of_endpoint[key] = counters
        return counters


def _counted(member: Member) -> Collection[str]:
    listed = member.endpoint.models
    return listed or {model for (_, model), lane in member.lanes.items() if lane.proven}


def _numbers(row: Mapping[str, Any]) -> tuple[int, ...]:
    """The numbers of an element; 0 where it has none."""
    return tuple(_number(row, path) for path, _, _, _ in _NUMBERS)


def _number(row: Any, path: Sequence[str]) -> int:
    for key in path:
        row = row.get(key) if isinstance(row, dict) else None
    return row if type(row) is int and row >= 0 else 0
