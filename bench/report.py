"""The figures as tables, for a terminal and as a Markdown page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bench import registry
from bench.budget import verdict_table, verdicts
from bench.campaign import (
    BATCHES,
    IDLE_MODELS,
    OVERLOAD_DEADLINE_S,
    OVERLOAD_FACTOR,
    OVERLOADED,
)
from bench.results import NONE, Results
from bench.scenario import GATEWAY, IDLE, OVERLOAD, REGISTRY, Plan, Scenario, compute_name
from bench.server import SUBJECTS
from bench.table import Table
from bench.workload import MODELS

_SHAPES: Final[Mapping[str, str]] = {
    "tiny": "4 → 3",
    "mlp": "256 → 512 → 512 → 10",
    "magika": "2,048 bytes → 214 file types",
}
TITLE: Final = "Benchmarks"
#: What writes the page that is kept.
COMMAND: Final = "python -m bench --report docs/benchmarks.md"
NOTES: Final = (
    (
        "Figures are noisy, on shared machines very much so. Only ratios of figures of one run "
        "count; no absolute figure is to be carried to another machine or another day."
    ),
    (
        "CPU µs is user and system time of the server's processes from /proc, divided by the "
        "requests: it is the primary figure, as it changes least with what else the machine "
        "does. The kernel counts it in steps of 10 ms. Each figure is the median of the rounds, "
        "and (low–high) are the lowest and the highest of them."
    ),
    (
        "busy is the share of one core that the server used. Where it is well below 100 % at c "
        "= 16 and 64, the load generator was the limit, and requests/s say nothing about the "
        "server."
    ),
    (
        "Load: closed loop, c keep-alive connections over loopback, in a process of its own; "
        "one row for each request; every answer's status is checked, and the first answer's "
        "figures too."
    ),
    (
        "headrace: `headrace serve` with default settings (no tokens, sampled access log to a "
        "file). naive: FastAPI, pydantic and ONNX Runtime in a plain `def` endpoint on uvicorn "
        "with uvloop and httptools, one thread for each run, no access log (bench/naive.py)."
    ),
    (
        "× naive is the processor time beside that of naive with JSON at the same c; batch is the "
        "mean number of rows of a run."
    ),
    (
        "A budget in µs of processor time was set on another machine, and its number stands in "
        "brackets; the limit is the same share of naive's cost in this run."
    ),
    (
        "Remote pass-through is measured by `make bench-proxy` (docs/proxies.md); gRPC, and what "
        "the platform adds to a Triton, by `make bench-triton` (a part of this page); budgets of "
        "several processes are not measured here; offline batches are by `make bench-batch`."
    ),
    (
        "The calibration is the processor time of one `await asyncio.create_task(nop())` on "
        "uvloop: divide by it before comparing runs of different machines."
    ),
)


@dataclass(frozen=True)
class Report:
    """All that is shown of a run; `facts` are names and values of its circumstances."""

    results: Results
    plan: Plan
    facts: Sequence[tuple[str, str]]

    def tables(self) -> Iterator[Table]:
        for model in MODELS:
            scenarios = [s for s in self.plan.scenarios if s.model == model]
            if scenarios:
                yield self._requests(model, scenarios)
        tables = (
            self._compute(), self._processes(), self._registry(), self._gateway(),
            self._overload(), verdict_table(verdicts(self.results)),
        )  # fmt: skip
        for table in tables:
            if table.rows:
                yield table

    def _requests(self, model: str, scenarios: Sequence[Scenario]) -> Table:
        columns = (
            "server", "wire", "c", "CPU µs", "(low–high)", "× naive", "requests/s", "p50 ms",
            "p99 ms", "busy", "batch",
        )  # fmt: skip
        table = Table(f"{model} ({_SHAPES[model]})", columns, left=2)
        for scenario in scenarios:
            name = scenario.name
            naive = self.results.median(f"{model}/naive/json/c{scenario.concurrency}", "cpu_us")
            cpu_us = self.results.median(name, "cpu_us")
            table.rows.append((
                scenario.subject,
                scenario.wire,
                str(scenario.concurrency),
                _us(cpu_us),
                _range(self.results.range(name, "cpu_us")),
                f"{cpu_us / naive:.2f}" if cpu_us and naive else NONE,
                self.results.shown(name, "per_s", ",.0f"),
                self.results.shown(name, "p50_ms", ",.3f"),
                self.results.shown(name, "p99_ms", ",.3f"),
                self.results.shown(name, "busy", ".0%"),
                self.results.shown(name, "batch_rows", ".1f"),
            ))  # fmt: skip
        return table

    def _compute(self) -> Table:
        columns = (
            "model",
            "loop",
            "batch",
            "CPU µs / row",
            "(low–high)",
            "wall µs / row",
            "rows/s",
        )
        table = Table("Compute limit: no server, no network", columns, left=2)
        for model in self.plan.compute:
            name = compute_name(model)
            loops = [("bare run", str(rows), f"{name}/run/{rows}") for rows in BATCHES]
            achieved = self.results.median(f"{name}/run/achieved", "rows")
            if achieved:
                what = "bare run at headrace's batch size, c = 64"
                loops.append((what, f"{achieved:.0f}", f"{name}/run/achieved"))
            loops.append(("parse + run + serialise", "1", f"{name}/protocol"))
            for what, batch, key in loops:
                wall_us = self.results.median(key, "wall_us")
                table.rows.append((
                    model,
                    what,
                    batch,
                    _us(self.results.median(key, "cpu_us")),
                    _range(self.results.range(key, "cpu_us")),
                    _us(wall_us),
                    f"{1e6 / wall_us:,.0f}" if wall_us else NONE,
                ))  # fmt: skip
        return table

    def _processes(self) -> Table:
        columns = ("server", "models", "start → ready s", "idle MB", "MB after the run")
        table = Table("Start and resident memory", columns, left=2)
        served = [(s, m, f"{m}/{s}") for m in MODELS for s in SUBJECTS if self.plan.of(m, s)]
        if self.plan.idle:
            served.append(("headrace", f"{IDLE_MODELS} small", IDLE))
        for subject, what, name in served:
            table.rows.append((
                subject,
                what,
                self.results.shown(name, "ready_s", ".2f"),
                self.results.shown(name, "idle_mb", ".0f"),
                self.results.shown(name, "after_mb", ".0f"),
            ))  # fmt: skip
        return table

    def _registry(self) -> Table:
        columns = (
            "models × versions", "start → ready s", "idle MB", "MB after the run",
            "get, store ms", "get, cache ms", "slowest list page ms", "routing look-up µs",
        )  # fmt: skip
        table = Table("Registry on SQLite", columns, left=1)
        for size in registry.SIZES if self.plan.registry else ():
            name = f"{REGISTRY}/{size}"
            table.rows.append((
                f"{size:,} × {registry.VERSIONS}",
                self.results.shown(name, "ready_s", ".2f"),
                self.results.shown(name, "idle_mb", ".0f"),
                self.results.shown(name, "after_mb", ".0f"),
                self.results.shown(name, "get_store_ms", ".2f"),
                self.results.shown(name, "get_cache_ms", ".2f"),
                self.results.shown(name, "list_ms", ".2f"),
                self.results.shown(name, "look_up_us", ".2f"),
            ))  # fmt: skip
        return table

    def _gateway(self) -> Table:
        columns = ("", "CPU µs", "(low–high)")
        table = Table("The hot route without a network, and what the gateway adds", columns, left=1)
        for what, figure in (
            ("without the gateway", "off_us"),
            ("with a cached JWT, one limit in memory, admission", "on_us"),
            ("the gateway", "added_us"),
        ):
            if self.plan.gateway:
                cost = self.results.median(GATEWAY, figure)
                table.rows.append((what, _us(cost), _range(self.results.range(GATEWAY, figure))))
        return table

    def _overload(self) -> Table:
        columns = (
            "peak/s, c = 16", "in time/s", "p99 ms", "refused", "refused p99 ms", "late", "other",
        )  # fmt: skip
        title = (
            f"{OVERLOADED} at {OVERLOAD_FACTOR} × its peak, open loop, "
            f"deadline {OVERLOAD_DEADLINE_S} s"
        )
        table = Table(title, columns, left=0)
        figures = (
            "peak_per_s", "good_per_s", "good_p99_ms", "refused", "refused_p99_ms", "late", "other",
        )  # fmt: skip
        if self.plan.overload:
            table.rows.append(
                tuple(self.results.shown(OVERLOAD, figure, ",.0f") for figure in figures)
            )
        return table


def _us(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _range(values: tuple[float, float] | None) -> str:
    return NONE if values is None else f"{_us(values[0])}–{_us(values[1])}"
