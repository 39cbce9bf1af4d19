"""What the figures are meant to be. Every limit is for the same cores in the same run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.results import Results
from bench.scenario import IDLE


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


def verdicts(results: Results) -> list[Verdict]:
    """Every budget whose figures were measured."""
    return [*_processor(results), *_rows_per_s(results), *_latency(results), *_idle(results)]


def _processor(results: Results) -> Iterator[Verdict]:
    for what, scenario, limit in (
        ("tiny, JSON, c = 1 (first)", "tiny/headrace/json/c1", 75),
        ("tiny, JSON, c = 64 (first)", "tiny/headrace/json/c64", 45),
        ("tiny, JSON, c = 64 (goal)", "tiny/headrace/json/c64", 20),
        ("tiny, binary, c = 64 (first)", "tiny/headrace/binary/c64", 35),
        ("tiny, binary, c = 64 (goal)", "tiny/headrace/binary/c64", 18),
    ):
        figure = results.median(scenario, "cpu_us")
        if figure is not None:
            yield Verdict(what, "µs CPU", figure, limit)
    figure = results.median("mlp/headrace/json/c64", "cpu_us")
    bare = results.median("mlp/compute/run/achieved", "cpu_us")
    if figure is not None and bare is not None:
        what = "mlp, JSON, c = 64: bare run at the achieved batch size + 45"
        yield Verdict(what, "µs CPU", figure, bare + 45)


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
