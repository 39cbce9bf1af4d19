"""One run of the batch bench: the platform scores files, beside a loop that does no more than that.

All of one round run one after the other on the same cores, so that they can be compared.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from statistics import fmean
from typing import Final, get_args

import msgspec

from bench import batch_rows, child, load, relay_payload, usage, workload
from bench.batch_bare import BareOutcome, BareTask, Parser
from bench.batch_client import BatchClient
from bench.batch_jobs import JobsOutcome, JobsTask
from bench.batch_rows import RowsFile
from bench.cores import Cores
from bench.failure import BenchFailure
from bench.lengths import Lengths
from bench.load import LoadTask
from bench.overload import OverloadOutcome, OverloadTask
from bench.relay_payload import Message
from bench.results import Results
from bench.rounds import Rounds
from bench.server import Server, serving

SCORING: Final = "scoring"
TWO: Final = "two workers"
ONE_ROW: Final = "one row"
JOBS: Final = "jobs"
ONLINE: Final = "online"
MEMORY: Final = "memory"
PARTS: Final = (SCORING, TWO, ONE_ROW, JOBS, ONLINE, MEMORY)
#: The platform, by the number of its processes.
ONE_WORKER: Final = "headrace"
TWO_WORKERS: Final = "headrace × 2"
#: Jobs that are begun in a second, and the rows of each.
JOBS_PER_S: Final = 100
JOB_ROWS: Final = 10

_PATIENCE_S: Final = 3600.0
_LOOK_S: Final = 0.1
_LOOK_OFTEN_S: Final = 0.002
_CONNECTIONS: Final = 16
_MEMORY_LOOK_S: Final = 0.25


class Sizes(msgspec.Struct, frozen=True):
    """How much is scored."""

    rows: int  # of `mlp`
    memory_rows: int  # of `tiny`
    one_row_jobs: int


class BatchCampaign:
    """Measures what `parts` names. `folder` is for files."""

    def __init__(
        self,
        parts: Collection[str],
        sizes: Sizes,
        lengths: Lengths,
        *,
        cores: Cores,
        folder: Path,
        say: Callable[[str], None],
    ) -> None:
        self._parts = parts
        self._sizes = sizes
        self._lengths = lengths
        self._cores = cores
        self._folder = folder
        self._rounds = Rounds(lengths, cores=cores, say=say)
        self._mlp = workload.make("mlp", folder / "repository-mlp")
        self._tiny = workload.make("tiny", folder / "repository-tiny")

    def run(self) -> Results:
        """Measure every round.

        Raises:
            BenchFailure: a server did not start, or a job did not end with all its rows.
        """
        rows = batch_rows.write(self._mlp, self._sizes.rows, self._folder / "rows.jsonl")
        for _ in self._rounds:
            if SCORING in self._parts:
                self._bare(rows)
            if {SCORING, TWO} & set(self._parts):
                self._scoring(rows)
            if {ONE_ROW, JOBS} & set(self._parts):
                self._small_jobs()
            if ONLINE in self._parts:
                self._online(rows)
            if MEMORY in self._parts:
                self._memory()
        return self._rounds.results

    def _bare(self, rows: RowsFile) -> None:
        for parser in get_args(Parser):
            output = self._folder / "bare.jsonl"
            task = BareTask(rows.path, str(output), str(self._mlp.file), parser)
            outcome = child.run(
                "bench.batch_bare", task, BareOutcome,
                on=self._cores.measured, timeout_s=_PATIENCE_S,
            )  # fmt: skip
            output.unlink()
            self._rounds.add(
                bare(parser),
                rows_per_s=outcome.rows / outcome.elapsed_s,
                cpu_us=outcome.cpu_s * 1e6 / outcome.rows,
            )

    def _scoring(self, rows: RowsFile) -> None:
        with self._serving("scoring") as (server, client):
            file = client.upload(rows)
            figures = self._score(client, [server], file, rows)
            self._rounds.add(ONE_WORKER, **figures)
            if TWO in self._parts:
                with self._server(
                    "second", data_dir=self._data_dir("scoring"), on=self._cores.load
                ) as second:
                    two = self._score(client, [server, second], file, rows)
                two["beside_one"] = two["rows_per_s"] / figures["rows_per_s"]
                self._rounds.add(TWO_WORKERS, **two)

    def _score(
        self, client: BatchClient, servers: list[Server], file: str, rows: RowsFile
    ) -> dict[str, float]:
        """Score a file that was uploaded; what all of it and what its second part took."""

        def used() -> float:
            return sum(usage.cpu_s(server.pid) for server in servers)

        began, before_s = time.perf_counter(), used()
        planned = scored = (began, before_s)
        seen, peak_mb = "validating", 0.0
        id_ = client.create(file, rows.endpoint)["id"]
        for batch in client.looks(id_, every_s=_LOOK_S, timeout_s=_PATIENCE_S):
            now = (time.perf_counter(), used())
            peak_mb = max(peak_mb, *[server.resident_mb() for server in servers])
            if batch["status"] != seen:
                if seen == "validating":
                    planned = now
                if seen in {"validating", "in_progress"}:
                    scored = now
                seen = batch["status"]
        ended = (time.perf_counter(), used())
        scoring_s = max(scored[0] - planned[0], 1e-9)
        return {
            "rows_per_s": rows.rows / (ended[0] - began),
            "cpu_us": (ended[1] - before_s) * 1e6 / rows.rows,
            "planning_s": planned[0] - began,
            "planning_cpu_us": (planned[1] - before_s) * 1e6 / rows.rows,
            "scoring_rows_per_s": rows.rows / scoring_s,
            "scoring_cpu_us": (scored[1] - planned[1]) * 1e6 / rows.rows,
            "finishing_s": ended[0] - scored[0],
            "peak_mb": peak_mb,
        }

    def _small_jobs(self) -> None:
        with self._serving("jobs") as (server, client):
            if ONE_ROW in self._parts:
                self._one_row(server, client)
            if JOBS in self._parts:
                self._jobs(server, client)

    def _one_row(self, server: Server, client: BatchClient) -> None:
        rows = batch_rows.write(self._mlp, 1, self._folder / "one-row.jsonl")
        file = client.upload(rows)
        self._one(client, file, rows)  # the first one loads what is not loaded yet
        before_s, count = usage.cpu_s(server.pid), self._sizes.one_row_jobs
        took_s = sorted(self._one(client, file, rows) for _ in range(count))
        self._rounds.add(
            ONE_ROW,
            p50_ms=took_s[count // 2] * 1000,
            p99_ms=took_s[count * 99 // 100] * 1000,
            cpu_ms=(usage.cpu_s(server.pid) - before_s) * 1000 / count,
        )

    def _one(self, client: BatchClient, file: str, rows: RowsFile) -> float:
        began = time.perf_counter()
        id_ = client.create(file, rows.endpoint)["id"]
        for _ in client.looks(id_, every_s=_LOOK_OFTEN_S, timeout_s=_PATIENCE_S):
            pass
        return time.perf_counter() - began

    def _jobs(self, server: Server, client: BatchClient) -> None:
        rows = batch_rows.write(self._mlp, JOB_ROWS, self._folder / "ten-rows.jsonl")
        # five times as long as others: a backlog has to have the time to grow
        task = JobsTask(
            server.port, client.upload(rows), rows.endpoint, JOBS_PER_S, self._lengths.seconds * 5
        )
        before_s = usage.cpu_s(server.pid)
        outcome = child.run(
            "bench.batch_jobs", task, JobsOutcome, on=self._cores.load, timeout_s=_PATIENCE_S
        )
        self._rounds.add(
            JOBS,
            accepted_per_s=outcome.accepted_per_s,
            finished_per_s=outcome.finished_per_s,
            p99_ms=outcome.accept_p99_ms,
            backlog=outcome.backlog,
            drained_s=outcome.drained_s,
            cpu_ms=(usage.cpu_s(server.pid) - before_s) * 1000 / outcome.jobs,
        )

    def _online(self, rows: RowsFile) -> None:
        request = relay_payload.request(Message(*self._mlp.request("json")), self._mlp.model, {})
        with self._serving("online") as (server, client):
            file = client.upload(rows)
            capacity = load.put_on(
                LoadTask(
                    port=server.port,
                    request=request,
                    connections=_CONNECTIONS,
                    warm_up_s=self._lengths.warm_up_s,
                    seconds=self._lengths.seconds,
                    server_pid=server.pid,
                ),
                on=self._cores.load,
            )
            half = capacity.requests / capacity.elapsed_s / 2
            alone = self._half_load(server, request, half)
            id_ = client.create(file, rows.endpoint)["id"]
            for batch in client.looks(id_, every_s=_LOOK_S, timeout_s=_PATIENCE_S):
                if batch["status"] != "validating":
                    break
            busy_s = usage.cpu_s(server.pid)
            beside = self._half_load(server, request, half)
            busy_s = usage.cpu_s(server.pid) - busy_s
            with contextlib.suppress(BenchFailure):  # of a small file it has ended before
                client.cancel(id_)
        self._rounds.add(
            ONLINE,
            per_s=half,
            alone_p99_ms=alone.good_p99_ms,
            beside_p99_ms=beside.good_p99_ms,
            growth=beside.good_p99_ms / alone.good_p99_ms,
            refused=alone.refused + beside.refused + beside.late + beside.other,
            busy=busy_s / self._lengths.seconds,
        )

    def _half_load(self, server: Server, request: bytes, per_s: float) -> OverloadOutcome:
        task = OverloadTask(server.port, request, per_s, self._lengths.seconds)
        return child.run(
            "bench.overload", task, OverloadOutcome, on=self._cores.load, timeout_s=_PATIENCE_S
        )

    def _memory(self) -> None:
        file = self._folder / "many.jsonl"
        rows = batch_rows.write(self._tiny, self._sizes.memory_rows, file)
        with self._serving("memory", self._tiny.repository) as (server, client):
            id_ = client.upload(rows)
            file.unlink()
            began, before_s = time.perf_counter(), usage.cpu_s(server.pid)
            idle_mb = server.resident_mb()
            planning: list[float] = []
            scoring: list[float] = []
            batch_id = client.create(id_, rows.endpoint)["id"]
            for batch in client.looks(batch_id, every_s=_MEMORY_LOOK_S, timeout_s=_PATIENCE_S):
                sampled = planning if batch["status"] == "validating" else scoring
                sampled.append(server.resident_mb())
            took_s = time.perf_counter() - began
            cpu_s = usage.cpu_s(server.pid) - before_s
        self._rounds.add(
            MEMORY,
            idle_mb=idle_mb,
            planning_mb=max(planning, default=idle_mb),
            scoring_mb=max(scoring, default=idle_mb),
            growth_mb=_growth(scoring),
            rows_per_s=rows.rows / took_s,
            cpu_us=cpu_s * 1e6 / rows.rows,
        )

    @contextlib.contextmanager
    def _serving(
        self, name: str, repository: Path | None = None
    ) -> Iterator[tuple[Server, BatchClient]]:
        """A server of its own data, and a client of it."""
        with (
            self._server(name, repository, self._data_dir(name), self._cores.measured) as server,
            BatchClient(server.port) as client,
        ):
            yield server, client

    @contextlib.contextmanager
    def _server(
        self, name: str, repository: Path | None = None, data_dir: Path | None = None,
        on: frozenset[int] = frozenset(),
    ) -> Iterator[Server]:  # fmt: skip
        log_file = self._folder / f"{name}-{self._rounds.number}.log"
        with serving(
            "headrace", repository or self._mlp.repository, log_file, on=on, data_dir=data_dir
        ) as server:
            yield server

    def _data_dir(self, name: str) -> Path:
        return self._folder / f"{name}-{self._rounds.number}.data"


def bare(parser: Parser) -> str:
    """The name of the loop with this parser."""
    return f"bare loop, {parser}"


def _growth(samples: list[float]) -> float:
    """By how much the last quarter is above the second one: the first fills what is reused."""
    quarter = len(samples) // 4
    if not quarter:
        return 0.0
    return fmean(samples[-quarter:]) - fmean(samples[quarter : 2 * quarter])
