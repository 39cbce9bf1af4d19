"""Metrics as plain Python numbers, rendered by prometheus_client only when they are scraped.

The hot path keeps a child (`requests = family.labels("bert")`) and writes `requests.value += 1`
or `latency.observe(seconds)`; nothing is locked or formatted until `Metrics.render`.
"""

from __future__ import annotations

import logging
import math
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from itertools import accumulate
from typing import Any, Final, Generic, TypeVar

from prometheus_client import GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString

SECONDS: Final = (
    *(0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
"""Upper bounds for durations: the first is near the platform's own share of a request."""

OTHER: Final = "_other"
"""The value of every label of the child that stands for all children over the bound."""

_log: Final = logging.getLogger(__name__)

_NAME: Final = re.compile(r"headrace(?:_[a-z0-9]+)+")
_LABEL: Final = re.compile(r"[a-z][a-z0-9_]*")
_RESERVED_LABELS: Final = frozenset({"le", "quantile"})
# what the exposition formats append by themselves, so that a name ending so would clash
_RESERVED_ENDINGS: Final = frozenset({"total", "sum", "count", "bucket", "created", "info"})
_HISTOGRAM_UNITS: Final = frozenset(
    {"seconds", "bytes", "ratio", "rows", "requests", "attempts", "tokens", "tensors"}
)
# Prometheus' naming rules ask for base units, so that two metrics can be divided as they are
_BASE_UNIT: Final = {
    **dict.fromkeys(("ms", "millis", "milliseconds", "us", "micros", "microseconds"), "seconds"),
    **dict.fromkeys(("ns", "nanoseconds", "minutes", "hours", "days"), "seconds"),
    **dict.fromkeys(("kb", "mb", "gb", "kib", "mib", "gib"), "bytes"),
    **dict.fromkeys(("kilobytes", "megabytes", "gigabytes"), "bytes"),
    **dict.fromkeys(("percent", "percentage"), "ratio"),
}
_LABEL_VALUE_MAX_CHARS: Final = 256

# a bound as the `le` label has it: 0.5, 1.0, +Inf
_written: Final[Callable[[float], str]] = floatToGoString


class Counter:
    """A number that only goes up: `counter.value += 1`."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0


class Gauge:
    """A number that goes up and down: `gauge.value = 3`."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0


class Histogram:
    """How observed values spread over buckets, and their sum."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # the last is for values over every bound
        self.sum: float = 0

    def observe(self, value: float) -> None:
        """Count one finite value; a value equal to a bound falls in that bound's bucket."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """How many values were observed."""
        return sum(self.counts)


ChildT = TypeVar("ChildT", Counter, Gauge, Histogram)


class Family(Generic[ChildT]):
    """All children of one metric, one for each combination of label values.

    Label values are for what the platform knows (a registered model, a route, an error's code),
    not for text of clients: that would fill the bound and push the real ones into `_other`.
    """

    def __init__(
        self,
        name: str,
        help_text: str,
        labels: tuple[str, ...],
        *,
        new_child: Callable[[], ChildT],
        max_children: float,
        overflowed: Callable[[], None],
    ) -> None:
        self.name = name
        self.help_text = help_text
        self.label_names = labels
        self._new_child: Callable[[], ChildT] = new_child
        self._max_children = max_children
        self._overflowed = overflowed
        self._children: dict[tuple[str, ...], ChildT] = {}
        self._other: ChildT | None = None
        if not labels:
            self.labels()  # so that a metric without labels is there from the first scrape

    def labels(self, *values: str) -> ChildT:
        """Return the child with these label values; make it when it is first asked for.

        Over `max_children` it is the child labelled `_other`, and the overflow is counted.

        Raises:
            ValueError: there are not as many values as the metric has labels.
        """
        child = self._children.get(values)
        return self._absent(values) if child is None else child

    def remove(self, *values: str) -> None:
        """Stop reporting a child; one that a caller still keeps counts for nobody from now on."""
        removed = self._children.pop(tuple(map(_label_value, values)), None)
        if removed is self._other:
            self._other = None

    def children(self) -> list[tuple[tuple[str, ...], ChildT]]:
        """Snapshot of label values and children, safe against a thread that adds one."""
        return list(self._children.items())

    def collect(self) -> Metric:
        """Convert to prometheus_client's form."""
        raise NotImplementedError

    def _absent(self, values: tuple[str, ...]) -> ChildT:
        if len(values) != len(self.label_names):
            msg = f"{self.name} has the labels {self.label_names}, got the values {values}"
            raise ValueError(msg)
        values = tuple(map(_label_value, values))
        child = self._children.get(values)
        if child is not None:
            return child
        if len(self._children) - (self._other is not None) >= self._max_children:
            self._overflowed()
            if self._other is None:
                other = (OTHER,) * len(self.label_names)
                self._other = self._children.setdefault(other, self._new_child())
            return self._other
        # setdefault: of two threads that both found it absent, both must count on the same child
        return self._children.setdefault(values, self._new_child())


class CounterFamily(Family[Counter]):
    """Children are `Counter`s."""

    def collect(self) -> Metric:
        """Convert to prometheus_client's form."""
        metric = CounterMetricFamily(self.name, self.help_text, labels=self.label_names)
        for values, child in self.children():
            metric.add_metric(values, child.value)
        return metric


class GaugeFamily(Family[Gauge]):
    """Children are `Gauge`s."""

    def collect(self) -> Metric:
        """Convert to prometheus_client's form."""
        metric = GaugeMetricFamily(self.name, self.help_text, labels=self.label_names)
        for values, child in self.children():
            metric.add_metric(values, child.value)
        return metric


class HistogramFamily(Family[Histogram]):
    """Children are `Histogram`s that share their bounds."""

    def __init__(
        self,
        name: str,
        help_text: str,
        labels: tuple[str, ...],
        *,
        bounds: tuple[float, ...],
        max_children: float,
        overflowed: Callable[[], None],
    ) -> None:
        self._edges = [_written(bound) for bound in (*bounds, math.inf)]
        super().__init__(
            name,
            help_text,
            labels,
            new_child=lambda: Histogram(bounds),
            max_children=max_children,
            overflowed=overflowed,
        )

    def collect(self) -> Metric:
        """Convert to prometheus_client's form, with cumulative buckets."""
        metric = HistogramMetricFamily(self.name, self.help_text, labels=self.label_names)
        for values, child in self.children():
            buckets = list(zip(self._edges, accumulate(list(child.counts)), strict=True))
            metric.add_metric(values, buckets, child.sum)
        return metric


class Metrics:
    """The metrics of one platform. `version` "" means that of the installed distribution."""

    def __init__(self, *, version: str = "") -> None:
        self._families: dict[str, Family[Any]] = {}  # by name without _total, as OpenMetrics does
        self._callbacks: list[Callable[[], None]] = []
        self._build = InfoMetricFamily(
            "headrace_build",
            "The version that runs.",
            {"version": version or _installed_version()},
        )
        self._registry = CollectorRegistry()
        self._registry.register(_Families(self._collect))
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._overflow = self.counter(
            "headrace_metrics_overflow_total",
            "Uses of a metric's child _other because the metric was at its bound of children.",
            ("metric",),
        )
        self._callback_errors = self.counter(
            "headrace_metrics_callback_errors_total",
            "Callbacks that failed during a scrape; what they compute was reported as it was.",
        ).labels()

    def counter(
        self, name: str, help_text: str, labels: Sequence[str] = (), *, max_children: int = 1000
    ) -> CounterFamily:
        """Register a counter; its name ends in `_total`.

        Raises:
            ValueError: the name, a label or the help text breaks a rule, or the name is taken.
        """
        if not name.endswith("_total"):
            msg = f"counter {name!r} must end in _total"
            raise ValueError(msg)
        family = CounterFamily(
            *self._checked(name, name.removesuffix("_total"), help_text, labels),
            new_child=Counter,
            max_children=max_children,
            overflowed=self._overflow_of(name),
        )
        self._families[name.removesuffix("_total")] = family
        return family

    def gauge(
        self, name: str, help_text: str, labels: Sequence[str] = (), *, max_children: int = 1000
    ) -> GaugeFamily:
        """Register a gauge; a unit, where it has one, ends its name.

        Raises:
            ValueError: the name, a label or the help text breaks a rule, or the name is taken.
        """
        family = GaugeFamily(
            *self._checked(name, name, help_text, labels),
            new_child=Gauge,
            max_children=max_children,
            overflowed=self._overflow_of(name),
        )
        self._families[name] = family
        return family

    def histogram(
        self,
        name: str,
        help_text: str,
        labels: Sequence[str] = (),
        *,
        buckets: Sequence[float] = SECONDS,
        max_children: int = 1000,
    ) -> HistogramFamily:
        """Register a histogram; its name ends in its unit. `buckets` are rising upper bounds.

        Raises:
            ValueError: the name, a label, the help text or the buckets break a rule, or the name
                is taken.
        """
        if name.rpartition("_")[2] not in _HISTOGRAM_UNITS:
            msg = f"histogram {name!r} must end in its unit: {', '.join(sorted(_HISTOGRAM_UNITS))}"
            raise ValueError(msg)
        bounds = tuple(buckets)
        rising = bounds == tuple(sorted(set(bounds)))
        if not (bounds and rising and all(map(math.isfinite, bounds))):
            msg = f"buckets of {name!r} must be finite and rising, got {bounds}"
            raise ValueError(msg)
        family = HistogramFamily(
            *self._checked(name, name, help_text, labels),
            bounds=bounds,
            max_children=max_children,
            overflowed=self._overflow_of(name),
        )
        self._families[name] = family
        return family

    def observe(self, callback: Callable[[], None]) -> None:
        """Have `callback` set gauges before every rendering, on the thread that renders."""
        self._callbacks.append(callback)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Render everything: the body and its Content-Type, as the Accept header prefers.

        OpenMetrics 1.0 where it is asked for, else the Prometheus text format 0.0.4.
        """
        for callback in self._callbacks:
            try:
                callback()
            except Exception:  # noqa: BLE001 - one that fails must not blind the operator to all the others
                self._callback_errors.value += 1
                _log.exception("a metrics callback failed: %r", callback)
        if _prefers_openmetrics(accept):
            # All our names are ASCII words, which every escaping scheme but this one would
            # first look through a character at a time.
            body: bytes = openmetrics.generate_latest(  # type: ignore[no-untyped-call]
                self._registry, escaping=openmetrics.ALLOWUTF8
            )
            return body, openmetrics.CONTENT_TYPE_LATEST
        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4

    def _collect(self) -> Iterator[Metric]:
        yield self._build
        for family in list(self._families.values()):
            yield family.collect()

    def _checked(
        self, name: str, base: str, help_text: str, labels: Sequence[str]
    ) -> tuple[str, str, tuple[str, ...]]:
        """Name, help text and labels as they were given, once they keep every rule."""
        if not _NAME.fullmatch(base):  # a counter's _total is known to follow
            msg = f"metric name {name!r} must be lower-case words joined by _ after 'headrace_'"
            raise ValueError(msg)
        words = base.split("_")
        if words[-1] in _RESERVED_ENDINGS:
            msg = f"metric name {name!r} must not end in _{words[-1]}: the format appends it"
            raise ValueError(msg)
        for word in words:
            if word in _BASE_UNIT:
                msg = f"metric {name!r} must be in {_BASE_UNIT[word]}, not {word}"
                raise ValueError(msg)
        if not help_text.strip():
            msg = f"metric {name!r} needs a help text"
            raise ValueError(msg)
        for label in labels:
            if not _LABEL.fullmatch(label) or label in _RESERVED_LABELS:
                msg = f"label {label!r} of metric {name!r} is not allowed"
                raise ValueError(msg)
        if len(set(labels)) != len(labels):
            msg = f"metric {name!r} names a label twice: {tuple(labels)}"
            raise ValueError(msg)
        if base in self._families or base == self._build.name:
            msg = f"metric {name!r} is already registered"
            raise ValueError(msg)
        return name, help_text, tuple(labels)

    def _overflow_of(self, name: str) -> Callable[[], None]:
        def overflowed() -> None:
            self._overflow.labels(name).value += 1

        return overflowed


class _Families(Collector):
    """What the registry asks for the metrics that are ours."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Metric]:
        return self._collect()


def _label_value(value: str) -> str:
    """Cut `value`, and replace what UTF-8 cannot hold: it would fail every scrape from now on."""
    return value[:_LABEL_VALUE_MAX_CHARS].encode("utf-8", "replace").decode("utf-8")


def _prefers_openmetrics(accept: str) -> bool:
    """Whether OpenMetrics 1.0 is wanted, and at least as much as plain text (RFC 9110, 12.5.1)."""
    wanted = plain = 0.0
    for media_range in accept.lower().split(","):
        media_type, *parameters = (part.strip() for part in media_range.split(";"))
        values = dict(parameter.partition("=")[::2] for parameter in parameters)
        try:
            weight = float(values.get("q", "1"))
        except ValueError:
            continue
        if media_type == "text/plain":
            plain = max(plain, weight)
        elif media_type == "application/openmetrics-text" and values.get("version", "1.0.0") in {
            "1.0.0",
            '"1.0.0"',
        }:
            wanted = max(wanted, weight)
    return wanted > 0 and wanted >= plain


def _installed_version() -> str:
    try:
        return metadata.version("headrace")
    except metadata.PackageNotFoundError:
        return "unknown"
