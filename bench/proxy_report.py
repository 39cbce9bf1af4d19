"""The proxies' figures as tables, for a terminal and as a Markdown page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from bench.budget import Verdict, verdict_table
from bench.proxy_campaign import DIRECT, EXCHANGES, Exchange, scenario
from bench.proxy_subjects import Subject
from bench.results import NONE, Results
from bench.table import Table

#: What 1 KB through the proxy by hand cost where its limit of 45 µs was set.
_NAIVE_US: Final = 1930
_FIRST_US: Final = 45
_NGINX_US: Final = 24
TITLE: Final = "Proxies"
#: What writes the page that is kept.
COMMAND: Final = "python -m bench.proxy --report docs/proxies.md"
NOTES: Final = (
    (
        "Figures are noisy, on shared machines very much so. Only ratios of figures of one run "
        "count; no absolute figure is to be carried to another machine or another day."
    ),
    (
        "CPU µs is user and system time of the proxy's processes from /proc, divided by the "
        "requests. Neither the load's nor that of the server behind is in it: both share the "
        "other core. Each figure is the median of the rounds, and (low–high) are the lowest and "
        "the highest of them."
    ),
    (
        "busy is the share of one core that the proxy used. Where it is well below 100 %, load "
        "and server behind were the limit: requests/s and latency then say nothing about it, and "
        "at few requests for each wake-up the processor time is rather too high."
    ),
    (
        "KiB/request is how much more memory the proxy held at its peak than after the small "
        "requests, divided by c."
    ),
    (
        "headrace: `headrace serve`, all five services in one process, with a cached token, a "
        "limit in memory, and an endpoint of the settings file. naive: FastAPI and one httpx "
        "client on uvicorn with uvloop and httptools (bench/relay_naive.py). direct: without any "
        "proxy. Settings of the others: bench/proxy_subjects.py."
    ),
)


def beside_nginx(what: str, figure_us: float, nginx_us: float) -> Iterator[Verdict]:
    """The budgets of passing 1 KB on, as shares of what nginx takes for it."""
    for rank, factor in (("first", _FIRST_US / _NGINX_US), ("goal", 1.25)):
        told = f"{what} ({rank}: nginx × {factor:.3g})"
        yield Verdict(told, "µs CPU", figure_us, factor * nginx_us)


@dataclass(frozen=True)
class ProxyReport:
    """All that is shown of a run; `facts` are names and values of its circumstances."""

    results: Results
    subjects: Sequence[Subject]
    facts: Sequence[tuple[str, str]]

    def tables(self) -> Iterator[Table]:
        for exchange in EXCHANGES:
            yield self._exchange(exchange)
        budgets = verdict_table(self._verdicts())
        if budgets.rows:
            yield budgets

    @property
    def _reference(self) -> Subject | None:
        """Whose cost the others' is compared with."""
        order: tuple[Subject, ...] = ("nginx", "haproxy", "envoy", "naive")
        return next((subject for subject in order if subject in self.subjects), None)

    def _exchange(self, exchange: Exchange) -> Table:
        columns = (
            "proxy", "c", "CPU µs", "(low–high)", f"× {self._reference or NONE}", "requests/s",
            "p50 ms", "p99 ms", "busy", "KiB/request",
        )  # fmt: skip
        table = Table(exchange.title, columns)
        for concurrency in exchange.concurrency:
            for subject in (*self.subjects, DIRECT):
                name = scenario(subject, exchange.name, concurrency)
                own = subject != DIRECT  # the server behind costs nothing here
                low_high = self.results.range(name, "cpu_us") if own else None
                ratio = self._ratio(subject, exchange.name, concurrency) if own else None
                table.rows.append((
                    subject,
                    str(concurrency),
                    self.results.shown(name, "cpu_us", ",.1f") if own else NONE,
                    f"{low_high[0]:,.1f}–{low_high[1]:,.1f}" if low_high else NONE,
                    NONE if ratio is None else f"{ratio:.2f}",
                    self.results.shown(name, "per_s", ",.0f"),
                    self.results.shown(name, "p50_ms", ",.3f"),
                    self.results.shown(name, "p99_ms", ",.3f"),
                    self.results.shown(name, "busy", ".0%") if own else NONE,
                    self.results.shown(name, "request_kib", ",.0f") if own else NONE,
                ))  # fmt: skip
        return table

    def _ratio(self, subject: str, exchange: str, concurrency: int) -> float | None:
        if self._reference is None:
            return None
        cost, reference = (
            self.results.median(scenario(one, exchange, concurrency), "cpu_us")
            for one in (subject, self._reference)
        )
        return None if cost is None or not reference else cost / reference

    def _verdicts(self) -> Iterator[Verdict]:
        yield from self._small()
        for exchange in EXCHANGES[1:]:
            name = scenario("headrace", exchange.name, exchange.concurrency[-1])
            figure = self.results.median(name, "cpu_us")
            nginx = self._nginx_us(exchange)
            if figure is not None and nginx is not None:
                for rank, factor in (("first", 2.0), ("goal", 1.2)):
                    what = f"{exchange.title}, c = 16 ({rank}: nginx × {factor:g})"
                    yield Verdict(what, "µs CPU", figure, factor * nginx)
            kib = self.results.median(name, "request_kib")
            if kib is not None:
                yield Verdict(f"{exchange.title}, c = 16: peak", "KiB/request", kib, 256)
        small = EXCHANGES[0].name
        for shown, limit in (("p50_ms", 0.15), ("p99_ms", 0.6)):
            through, direct = (
                self.results.median(scenario(one, small, 1), shown) for one in ("headrace", DIRECT)
            )
            if through is not None and direct is not None:
                what = f"1 KB, c = 1: {shown[:3]} beyond the direct call"
                yield Verdict(what, "ms", through - direct, limit)

    def _small(self) -> Iterator[Verdict]:
        """1 KB: the limits were set where nginx and the proxy by hand cost so and so much."""
        exchange = EXCHANGES[0]
        figure = self.results.median(scenario("headrace", exchange.name, 64), "cpu_us")
        naive = self.results.median(scenario("naive", exchange.name, 64), "cpu_us")
        nginx = self._nginx_us(exchange)
        if figure is None:
            return
        if nginx is not None:
            yield from beside_nginx("1 KB, c = 64", figure, nginx)
        elif naive is not None:
            what = f"1 KB, c = 64 (first: {_FIRST_US} where naive cost {_NAIVE_US:,})"
            yield Verdict(what, "µs CPU", figure, _FIRST_US * naive / _NAIVE_US)

    def _nginx_us(self, exchange: Exchange) -> float | None:
        name = scenario("nginx", exchange.name, exchange.concurrency[-1])
        return self.results.median(name, "cpu_us")
