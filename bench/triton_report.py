"""Triton's figures as tables, for a terminal and as a part of a Markdown page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from bench.budget import Verdict, verdict_table
from bench.proxy_campaign import DIRECT
from bench.proxy_report import beside_nginx
from bench.proxy_subjects import Subject
from bench.results import NONE, Results
from bench.table import Table
from bench.triton_campaign import (
    CONCURRENCY,
    EMPTY,
    IN_PROCESS,
    MODELS,
    Wire,
    scenario,
    subjects,
)

_WIRES: Final[tuple[tuple[Wire, str], ...]] = (("http", "HTTP, binary tensors"), ("grpc", "gRPC"))
#: What the empty handler cost where the goal of 60 µs was set.
_EMPTY_US: Final = 270
_GOAL_US: Final = 60
_FIRST: Final = 1.2
TITLE: Final = "Triton: asked directly, and through the platform"
#: What writes the part of the page that is kept.
COMMAND: Final = "python -m bench.triton --report docs/benchmarks.md"
#: The name of that part.
PART: Final = "triton"
NOTES: Final = (
    (
        "Triton is the real 2.51, out of the package nvidia-pytriton, with its Python backend and "
        "dynamic batching without a delay: `identity` returns its row, `mlp` runs ONNX Runtime on "
        "one thread, in a process of its own each. Triton's C++ backend for ONNX is in no package, "
        "so nothing here says what Triton costs with that."
    ),
    (
        "Figures are noisy, on shared machines very much so. Only ratios of figures of one run "
        "count; no absolute figure is to be carried to another machine or another day."
    ),
    (
        "CPU µs is user and system time from /proc, divided by the requests: of the proxy's "
        "process, which has a core to itself, and apart from it that of Triton's processes, server "
        "and models, which share the other core with the load in every row. Each figure is the "
        "median of the rounds, and (low–high) are the lowest and the highest of them."
    ),
    (
        "+p50 and +p99 are what the proxy adds: the difference from the direct requests that were "
        "measured just before, as the median of the rounds. They mean something at c = 1; with "
        "more at a time they are mostly a queue's length, and below zero where the proxy sends "
        "Triton its requests in larger batches than the clients do."
    ),
    (
        "busy is the share of one core that the proxy used. Where it is well below 100 %, load "
        "and Triton were the limit, and requests/s say nothing about the proxy."
    ),
    (
        "Load: closed loop, one row of 1 KB for each request, every answer's status checked and "
        "the first answer's figures too. HTTP: c keep-alive connections. gRPC: c requests at a "
        "time on one connection, as its clients do it, by a generator that knows no more of "
        "HTTP/2 than it needs (bench/grpc_load.py)."
    ),
    (
        "headrace: `headrace serve`, all five services in one process, with a cached token, a "
        "limit in memory, and Triton as an endpoint of the settings file, over the same wire. "
        "nginx (HTTP alone): settings in bench/proxy_subjects.py. Empty handler: grpc.aio on "
        "uvloop, which answers every message with an empty one; bare: the same server, which "
        "passes messages on by a channel of grpc.aio, and does nothing else (bench/grpc_bare.py). "
        "What headrace takes beyond these is its own, the rest is the library's."
    ),
    (
        f"The budgets of gRPC are shares of that handler's cost in this run: {_FIRST:g} × first, "
        f"and as goal {_GOAL_US} µs of the {_EMPTY_US} µs that it took where the goal was set. "
        "Passing a request on takes a client beside a server, which the handler does without."
    ),
)


@dataclass(frozen=True)
class TritonReport:
    """All that is shown of a run; `facts` are names and values of its circumstances."""

    results: Results
    proxies: Sequence[Subject]
    concurrency: Sequence[int]
    facts: Sequence[tuple[str, str]]

    def tables(self) -> Iterator[Table]:
        for wire, words in _WIRES:
            for model in MODELS:
                yield self._passed_on(model, wire, f"{model} over {words}")
        yield self._in_process()
        budgets = verdict_table(self._verdicts())
        if budgets.rows:
            yield budgets

    def _passed_on(self, model: str, wire: Wire, title: str) -> Table:
        columns = (
            "through", "c", "CPU µs", "(low–high)", "Triton CPU µs", "requests/s", "p50 ms", "+p50",
            "p99 ms", "+p99", "busy",
        )  # fmt: skip
        table = Table(title, columns)
        for concurrency in self.concurrency:
            for subject in subjects(wire, self.proxies):
                name = scenario(model, wire, subject, concurrency)
                table.rows.append((
                    subject,
                    str(concurrency),
                    *self._cost(name),
                    self.results.shown(name, "triton_us", ",.1f"),
                    self.results.shown(name, "per_s", ",.0f"),
                    self.results.shown(name, "p50_ms", ",.3f"),
                    self.results.shown(name, "added_p50_ms", "+,.3f"),
                    self.results.shown(name, "p99_ms", ",.3f"),
                    self.results.shown(name, "added_p99_ms", "+,.3f"),
                    NONE if subject == DIRECT else self.results.shown(name, "busy", ".0%"),
                ))  # fmt: skip
        return table

    def _in_process(self) -> Table:
        columns = (
            "server", "c", "CPU µs", "(low–high)", "× empty", "requests/s", "p50 ms", "p99 ms",
            "busy",
        )  # fmt: skip
        table = Table(f"gRPC with nothing behind: {IN_PROCESS}, and an empty handler", columns)
        for concurrency in self.concurrency:
            for subject in ("headrace", EMPTY):
                name = scenario(IN_PROCESS, "grpc", subject, concurrency)
                cost, empty = self._cpu_us(name), self._empty_us(concurrency)
                table.rows.append((
                    subject,
                    str(concurrency),
                    *self._cost(name),
                    f"{cost / empty:.2f}" if cost is not None and empty else NONE,
                    self.results.shown(name, "per_s", ",.0f"),
                    self.results.shown(name, "p50_ms", ",.3f"),
                    self.results.shown(name, "p99_ms", ",.3f"),
                    self.results.shown(name, "busy", ".0%"),
                ))  # fmt: skip
        return table

    def _verdicts(self) -> Iterator[Verdict]:
        c = CONCURRENCY[-1]
        http, nginx = (
            self._cpu_us(scenario("identity", "http", one, c)) for one in ("headrace", "nginx")
        )
        if http is not None and nginx is not None:
            yield from beside_nginx(f"identity over HTTP, c = {c}", http, nginx)
        empty = self._empty_us(c)
        for model, words in ((IN_PROCESS, "gRPC in process"), ("identity", "gRPC passed on")):
            figure = self._cpu_us(scenario(model, "grpc", "headrace", c))
            if figure is not None and empty is not None:
                what = f"{words}, {model}, c = {c}"
                first = f"{what} (first: empty handler × {_FIRST:g})"
                yield Verdict(first, "µs CPU", figure, _FIRST * empty)
                goal = f"{what} (goal: {_GOAL_US} where that cost {_EMPTY_US})"
                yield Verdict(goal, "µs CPU", figure, _GOAL_US * empty / _EMPTY_US)
        for wire, words in _WIRES:
            name = scenario("identity", wire, "headrace", 1)
            for latency, limit in (("p50_ms", 0.15), ("p99_ms", 0.6)):
                added = self.results.median(name, f"added_{latency}")
                if added is not None:
                    what = f"identity over {words}, c = 1: {latency[:3]} beyond the direct call"
                    yield Verdict(what, "ms", added, limit)

    def _cost(self, name: str) -> tuple[str, str]:
        low_high = self.results.range(name, "cpu_us")
        told = f"{low_high[0]:,.1f}–{low_high[1]:,.1f}" if low_high else NONE
        return self.results.shown(name, "cpu_us", ",.1f"), told

    def _cpu_us(self, name: str) -> float | None:
        return self.results.median(name, "cpu_us")

    def _empty_us(self, concurrency: int) -> float | None:
        return self._cpu_us(scenario(IN_PROCESS, "grpc", EMPTY, concurrency))
