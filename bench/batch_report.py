"""The figures of batch jobs as tables, for a terminal and as a part of a Markdown page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, get_args

from bench.batch_bare import Parser
from bench.batch_campaign import (
    JOB_ROWS,
    JOBS,
    JOBS_PER_S,
    MEMORY,
    ONE_ROW,
    ONE_WORKER,
    ONLINE,
    TWO_WORKERS,
    Sizes,
    bare,
)
from bench.budget import Verdict, verdict_table
from bench.results import NONE, Results
from bench.table import Table

_FIRST: Final = 0.8
_GOAL: Final = 0.95
_TWO: Final = 1.6
_MEMORY_MB: Final = 300
_ONE_ROW_MS: Final = 150
_ONLINE: Final = 1.3
#: How much memory may grow within a job and still be called flat: what allocators give and take.
_FLAT_MB: Final = 10
TITLE: Final = "Batch jobs: files scored by the platform, and by a bare loop"
#: What writes the part of the page that is kept.
COMMAND: Final = "python -m bench.batch --report docs/benchmarks.md"
#: The name of that part.
PART: Final = "batch"
NOTES: Final = (
    (
        "Figures are noisy, on shared machines very much so. Only ratios of figures of one run "
        "count; no absolute figure is to be carried to another machine or another day."
    ),
    (
        "The bare loop (bench/batch_bare.py) reads the same file, parses each line, runs ONNX "
        "Runtime on one thread in batches of 64 and writes lines of the same content, on the same "
        "core, in one process: nothing is checked, synced to the disk, or kept for a restart. The "
        "platform is `headrace serve`, all in one process, with default settings: what it answers "
        "is on the disk before a job's state says so."
    ),
    (
        "rows/s is from the request that creates the job until it is seen as completed, without "
        "the upload; scoring alone is from where the job is seen in progress until it is seen as "
        "scored, without the look at every line before and the joining of the parts behind. Looks "
        "are 0.1 s apart. CPU µs is user and system time of the platform's processes for a row: "
        "where others use the same cores it says more than rows/s do."
    ),
    (
        "Two workers are two processes on two cores that share one SQLite file and one folder, "
        "with a queue in the memory of each; the second core also runs what measures."
    ),
    (
        "One row: jobs one after the other, each from the request that creates it until one that "
        "tells of its end, asked every 2 ms. Jobs at a steady rate: open loop, all over one file "
        "that was uploaded; backlog is the most jobs at a time that were accepted and not ended."
    ),
    (
        "Online: requests for one row of `mlp`, open loop at half of what the same server answers "
        "in a closed loop of 16 connections, without a batch job and beside one that takes all "
        "the time there is, in the same process on the same core."
    ),
    (
        "Memory: resident MB (of 10^6 bytes) of the process that serves, plans, scores and "
        "finishes a file of rows with four numbers each; growth is the last quarter of the "
        "scoring's samples beyond the second one."
    ),
)


@dataclass(frozen=True)
class BatchReport:
    """All that is shown of a run; `facts` are names and values of its circumstances."""

    results: Results
    sizes: Sizes
    facts: Sequence[tuple[str, str]]

    def tables(self) -> Iterator[Table]:
        for table in (self._scoring(), self._small(), self._online(), self._memory()):
            if table.rows:
                yield table
        budgets = verdict_table(self._verdicts())
        if budgets.rows:
            yield budgets

    def _scoring(self) -> Table:
        columns = (
            "scored by", "rows/s", "× bare", "CPU µs", "(low–high)", "scoring rows/s", "CPU µs",
            "plan s", "end s", "peak MB",
        )  # fmt: skip
        table = Table(f"{self.sizes.rows:,} rows of mlp", columns)
        best = self._best_rows_per_s()
        for name in (*map(bare, get_args(Parser)), ONE_WORKER, TWO_WORKERS):
            per_s = self.results.median(name, "rows_per_s")
            if per_s is None:
                continue
            low_high = self.results.range(name, "cpu_us")
            table.rows.append((
                name,
                f"{per_s:,.0f}",
                f"{per_s / best:.2f}" if best else NONE,
                self.results.shown(name, "cpu_us", ",.1f"),
                f"{low_high[0]:,.1f}–{low_high[1]:,.1f}" if low_high else NONE,
                self.results.shown(name, "scoring_rows_per_s", ",.0f"),
                self.results.shown(name, "scoring_cpu_us", ",.1f"),
                self.results.shown(name, "planning_s", ",.2f"),
                self.results.shown(name, "finishing_s", ",.2f"),
                self.results.shown(name, "peak_mb", ",.0f"),
            ))  # fmt: skip
        return table

    def _small(self) -> Table:
        columns = (
            "jobs", "p50 ms", "p99 ms", "accepted/s", "finished/s", "backlog", "drained s",
            "CPU ms / job",
        )  # fmt: skip
        table = Table("Small jobs", columns)
        shown = self.results.shown
        for name, what in (
            (ONE_ROW, f"{self.sizes.one_row_jobs} of 1 row, one after the other"),
            (JOBS, f"{JOBS_PER_S}/s of {JOB_ROWS} rows (ms: until accepted)"),
        ):
            if self.results.median(name, "cpu_ms") is not None:
                table.rows.append((
                    what,
                    shown(name, "p50_ms", ",.1f"),
                    shown(name, "p99_ms", ",.1f"),
                    shown(name, "accepted_per_s", ",.1f"),
                    shown(name, "finished_per_s", ",.1f"),
                    shown(name, "backlog", ",.0f"),
                    shown(name, "drained_s", ",.2f"),
                    shown(name, "cpu_ms", ",.1f"),
                ))  # fmt: skip
        return table

    def _online(self) -> Table:
        columns = ("requests/s", "p99 ms alone", "beside a batch", "growth", "not 200", "busy")
        table = Table("Online requests beside a batch job", columns, left=0)
        if self.results.median(ONLINE, "growth") is not None:
            table.rows.append((
                self.results.shown(ONLINE, "per_s", ",.0f"),
                self.results.shown(ONLINE, "alone_p99_ms", ",.2f"),
                self.results.shown(ONLINE, "beside_p99_ms", ",.2f"),
                self.results.shown(ONLINE, "growth", ".2f"),
                self.results.shown(ONLINE, "refused", ",.0f"),
                self.results.shown(ONLINE, "busy", ".0%"),
            ))  # fmt: skip
        return table

    def _memory(self) -> Table:
        columns = (
            "idle MB", "planning, peak", "scoring, peak", "growth MB", "rows/s", "CPU µs / row",
        )  # fmt: skip
        table = Table(f"Memory while {self.sizes.memory_rows:,} rows are scored", columns, left=0)
        if self.results.median(MEMORY, "scoring_mb") is not None:
            table.rows.append((
                self.results.shown(MEMORY, "idle_mb", ",.0f"),
                self.results.shown(MEMORY, "planning_mb", ",.0f"),
                self.results.shown(MEMORY, "scoring_mb", ",.0f"),
                self.results.shown(MEMORY, "growth_mb", "+,.1f"),
                self.results.shown(MEMORY, "rows_per_s", ",.0f"),
                self.results.shown(MEMORY, "cpu_us", ",.1f"),
            ))  # fmt: skip
        return table

    def _verdicts(self) -> Iterator[Verdict]:
        middle = self.results.median
        best, per_s = self._best_rows_per_s(), middle(ONE_WORKER, "rows_per_s")
        if best and per_s is not None:
            for word, share in (("first", _FIRST), ("goal", _GOAL)):
                what = f"mlp, rows/s beside the bare loop ({word}: {share:.0%})"
                yield Verdict(what, "rows/s", per_s, share * best, at_least=True)
        least, cpu_us = self._least_cpu_us(), middle(ONE_WORKER, "cpu_us")
        if least and cpu_us is not None:
            for word, share in (("first", _FIRST), ("goal", _GOAL)):
                what = f"mlp, CPU a row beside the bare loop ({word}: ÷ {share:.2f})"
                yield Verdict(what, "µs CPU", cpu_us, least / share)
        for name, figure, unit, limit, what in (
            (ONE_WORKER, "peak_mb", "MB", _MEMORY_MB, "mlp, memory of a worker"),
            (MEMORY, "planning_mb", "MB", _MEMORY_MB, "memory while a long file is planned"),
            (MEMORY, "scoring_mb", "MB", _MEMORY_MB, "memory while a long file is scored"),
            (MEMORY, "growth_mb", "MB", _FLAT_MB, "growth of it while scoring"),
            (ONE_ROW, "p50_ms", "ms", _ONE_ROW_MS, "a job of one row, p50"),
            (ONE_ROW, "p99_ms", "ms", _ONE_ROW_MS, "a job of one row, p99"),
            (ONLINE, "growth", "×", _ONLINE, "online p99 beside a batch, half load"),
        ):
            value = middle(name, figure)
            if value is not None:
                yield Verdict(what, unit, value, limit)
        for name, figure, unit, limit, what in (
            (TWO_WORKERS, "beside_one", "×", _TWO, "two workers on two cores beside one"),
            (JOBS, "accepted_per_s", "1/s", JOBS_PER_S * 0.99, "jobs of 10 rows accepted"),
            (JOBS, "finished_per_s", "1/s", JOBS_PER_S * 0.95, "jobs of 10 rows finished"),
        ):
            value = middle(name, figure)
            if value is not None:
                yield Verdict(what, unit, value, limit, at_least=True)

    def _least_cpu_us(self) -> float:
        """Of the bare loops, the thriftier one's."""
        found = (self.results.median(bare(parser), "cpu_us") for parser in get_args(Parser))
        return min((each for each in found if each is not None), default=0.0)

    def _best_rows_per_s(self) -> float:
        """Of the bare loops, the faster one's."""
        found = (self.results.median(bare(parser), "rows_per_s") for parser in get_args(Parser))
        return max((each for each in found if each is not None), default=0.0)
