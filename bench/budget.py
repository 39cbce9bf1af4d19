"""What the figures are meant to be. Every limit is for the same cores in the same run.

Limits in µs were set on a machine where the naive handler cost so and so much. Figures of one
machine say nothing on another, but ratios do: a limit here is the same share of what the naive
handler costs here, in the same run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from bench.results import Results
from bench.scenario import GATEWAY, IDLE, OVERLOAD, REGISTRY
from bench.table import Table

#: What the naive handler cost where the limits were set, µs of processor time with JSON.
_NAIVE_US: Final = {"tiny/c1": 269, "tiny/c64": 275, "mlp/c64": 403}


@dataclass(frozen=True)
class Verdict:
    """A figure beside its limit."""

    what: str
    unit: str
    figure: float
    limit: float
    at_least: bool = False  # the figure is to reach the limit, not to stay below it

    @property
    def ratio(self) -> float:
        """How much of the budget is used: up to 1 it is met."""
        part, whole = (self.limit, self.figure) if self.at_least else (self.figure, self.limit)
        return part / whole if whole else float("inf")

    @property
    def met(self) -> bool:
        return self.ratio <= 1


def verdict_table(verdicts: Iterable[Verdict]) -> Table:
    """Figures and limits as they are shown."""
    columns = ("budget", "unit", "limit", "figure", "used", "verdict")
    table = Table("Budgets: met where no more than 1.00 is used", columns, left=2)
    for verdict in verdicts:
        limit = f"{'≥' if verdict.at_least else '≤'} {verdict.limit:,.4g}"
        word = "met" if verdict.met else "missed"
        figure, ratio = f"{verdict.figure:,.4g}", f"{verdict.ratio:.2f}"
        table.rows.append((verdict.what, verdict.unit, limit, figure, ratio, word))
    return table


def verdicts(results: Results) -> list[Verdict]:
    """Every budget whose figures were measured."""
    return [
        *_processor(results),
        *_rows_per_s(results),
        *_latency(results),
        *_idle(results),
        *_registry(results),
        *_gateway(results),
        *_overload(results),
    ]


def _processor(results: Results) -> Iterator[Verdict]:
    for wire, c, rank, limit_us in (
        ("json", 1, "first", 75),
        ("json", 64, "first", 45),
        ("json", 64, "goal", 20),
        ("binary", 64, "first", 35),
        ("binary", 64, "goal", 18),
    ):
        figure = results.median(f"tiny/headrace/{wire}/c{c}", "cpu_us")
        scale = _scale(results, "tiny", c)
        if figure is not None and scale is not None:
            words = "JSON" if wire == "json" else wire
            what = f"tiny, {words}, c = {c} ({rank}: {limit_us})"
            yield Verdict(what, "µs CPU", figure, limit_us * scale)
    figure = results.median("mlp/headrace/json/c64", "cpu_us")
    bare = results.median("mlp/compute/run/achieved", "cpu_us")
    scale = _scale(results, "mlp", 64)
    if figure is not None and bare is not None and scale is not None:
        what = "mlp, JSON, c = 64 (first: 45 beyond the bare run at its batch size)"
        yield Verdict(what, "µs CPU", figure - bare, 45 * scale)


def _scale(results: Results, model: str, c: int) -> float | None:
    """How much more the naive handler costs here than where the limits were set."""
    naive = results.median(f"{model}/naive/json/c{c}", "cpu_us")
    return None if naive is None else naive / _NAIVE_US[f"{model}/c{c}"]


def _rows_per_s(results: Results) -> Iterator[Verdict]:
    bare = [results.median(f"magika/compute/run/{rows}", "wall_us") for rows in (1, 64)]
    least = min((cost for cost in bare if cost), default=None)  # the better of the bare loops
    for wire in ("json", "binary"):
        for c in (16, 64):
            figure = results.median(f"magika/headrace/{wire}/c{c}", "per_s")
            if figure is not None and least is not None:
                what = f"magika, {wire}, c = {c}: 97 % of the better bare loop"
                yield Verdict(what, "rows/s", figure, 0.97 * 1e6 / least, at_least=True)


def _latency(results: Results) -> Iterator[Verdict]:
    direct = results.median("tiny/compute/protocol", "wall_us")
    for figure, limit in (("p50_ms", 0.15), ("p99_ms", 0.6)):
        measured = results.median("tiny/headrace/json/c1", figure)
        if direct is not None and measured is not None:
            what = f"tiny, JSON, c = 1: {figure[:3]} beyond parse + run + serialise"
            yield Verdict(what, "ms", measured - direct / 1000, limit)


def _idle(results: Results) -> Iterator[Verdict]:
    for what, figure, unit, limit in (
        ("start to ready, 10 small models", "ready_s", "s", 1.5),
        ("resident memory, idle, 10 small models", "idle_mb", "MB", 120),
    ):
        measured = results.median(IDLE, figure)
        if measured is not None:
            yield Verdict(what, unit, measured, limit)


def _registry(results: Results) -> Iterator[Verdict]:
    name = f"{REGISTRY}/10000"
    for what, figure, unit, limit in (
        ("list page", "list_ms", "ms", 20),
        ("get by name from the cache", "get_cache_ms", "ms", 2),
        ("get by name from the store", "get_store_ms", "ms", 5),
        ("start to ready", "ready_s", "s", 3),
        ("resident memory", "after_mb", "MB", 300),
    ):
        measured = results.median(name, figure)
        if measured is not None:
            yield Verdict(f"registry of 10,000 models × 3: {what}", unit, measured, limit)
    few, many = (results.median(f"{REGISTRY}/{size}", "look_up_us") for size in (10, 10_000))
    if few is not None and many is not None:
        # what remains is that a larger dictionary fits the processor's caches less well
        what = "routing look-up among 10,000 models: twice that among 10"
        yield Verdict(what, "µs", many, 2 * few)


def _gateway(results: Results) -> Iterator[Verdict]:
    added = results.median(GATEWAY, "added_us")
    scale = _scale(results, "tiny", 64)
    if added is not None and scale is not None:
        what = "gateway with a cached JWT and a limit, beyond none (8)"
        yield Verdict(what, "µs CPU", added, 8 * scale)


def _overload(results: Results) -> Iterator[Verdict]:
    peak, good, refused = (
        results.median(OVERLOAD, figure)
        for figure in ("peak_per_s", "good_per_s", "refused_p99_ms")
    )
    if peak is not None and good is not None:
        what = "overload × 3: answers in time, 90 % of the peak"
        yield Verdict(what, "1/s", good, 0.9 * peak, at_least=True)
    if refused is not None:
        yield Verdict("overload × 3: refusals, p99", "ms", refused, 20)
