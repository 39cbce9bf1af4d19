"""One run of the bench: every scenario once in each round, on servers that are started anew.

Rounds rather than repetitions in a row: what else the machine does then falls on all scenarios.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from bench import child, load, models, registry, workload
from bench.compute import ComputeOutcome, ComputeTask, Cost
from bench.cores import Cores
from bench.failure import BenchFailure
from bench.gateway import GatewayOutcome, GatewayTask
from bench.lengths import Lengths
from bench.load import LoadTask
from bench.overload import OverloadOutcome, OverloadTask
from bench.results import Results
from bench.rounds import Rounds
from bench.scenario import GATEWAY, IDLE, OVERLOAD, REGISTRY, Plan, Scenario, compute_name
from bench.server import SUBJECTS, Server, Subject, serving
from bench.workload import MODELS, Workload

IDLE_MODELS: Final = 10
OVERLOADED: Final = "magika"  # few requests a second are too many for it, so the generator keeps up
OVERLOAD_FACTOR: Final = 3
OVERLOAD_DEADLINE_S: Final = 1
BATCHES: Final = (1, 64)
_OK: Final = 200
_PATIENCE_S: Final = 120.0


class Campaign:
    """Measures a plan. `say` is told of every figure as it is found; `folder` is for files."""

    def __init__(
        self,
        plan: Plan,
        lengths: Lengths,
        *,
        cores: Cores,
        folder: Path,
        say: Callable[[str], None],
    ) -> None:
        self._plan = plan
        self._lengths = lengths
        self._cores = cores
        self._folder = folder
        self._rounds = Rounds(lengths, cores=cores, say=say)

    def run(self) -> Results:
        """Measure every round.

        Raises:
            BenchFailure: a server did not start, or an answer was not the right one.
        """
        workloads = [
            workload.make(model, self._folder / f"repository-{model}")
            for model in MODELS
            if self._plan.has(model)
        ]
        small = models.small(self._folder / "repository-small", IDLE_MODELS)
        for _ in self._rounds:
            for work in workloads:
                for subject in SUBJECTS:
                    self._serve(work, subject)
                self._compute(work)
            if self._plan.idle:
                self._idle(small)
            for size in registry.SIZES if self._plan.registry else ():
                self._registry(size)
            if self._plan.gateway:
                self._gateway()
            if self._plan.overload:
                self._overload()
        return self._rounds.results

    def _serve(self, work: Workload, subject: Subject) -> None:
        scenarios = self._plan.of(work.model, subject)
        if not scenarios:
            return
        log_file = self._folder / f"{subject}-{work.model}-{self._rounds.number}.log"
        with serving(subject, work.repository, log_file, on=self._cores.measured) as server:
            idle_mb = server.resident_mb()
            for scenario in scenarios:
                try:
                    self._load(work, scenario, server)
                except BenchFailure as failure:
                    msg = f"{scenario.name}: {failure}\nthe server's log ends:\n{server.log_end()}"
                    raise BenchFailure(msg) from failure
            self._rounds.add(
                f"{work.model}/{subject}",
                ready_s=server.ready_s, idle_mb=idle_mb, after_mb=server.resident_mb(),
            )  # fmt: skip

    def _load(self, work: Workload, scenario: Scenario, server: Server) -> None:
        headers, body = work.request(scenario.wire)
        status, answer_headers, answer = server.ask("POST", work.path, headers, body)
        if status != _OK:
            raise BenchFailure(f"the first answer was {status}: {answer[:300]!r}")
        work.check(answer_headers, answer)
        before = _batches(server, scenario)
        task = LoadTask(
            port=server.port,
            request=_request(work, headers, body),
            connections=scenario.concurrency,
            warm_up_s=self._lengths.warm_up_s,
            seconds=self._lengths.seconds,
            server_pid=server.pid,
        )
        outcome = load.put_on(task, on=self._cores.load)
        after = _batches(server, scenario)
        figures = outcome.figures()
        figures["load_cpu_us"] = outcome.load_cpu_s * 1e6 / outcome.requests
        if after[1] > before[1]:
            # of the warm-up too, which differs in nothing
            figures["batch_rows"] = (after[0] - before[0]) / (after[1] - before[1])
        self._rounds.add(scenario.name, **figures)

    def _compute(self, work: Workload) -> None:
        if work.model not in self._plan.compute:
            return
        achieved = self._rounds.results.median(f"{work.model}/headrace/json/c64", "batch_rows")
        batches = {*BATCHES, max(1, round(achieved))} if achieved else set(BATCHES)
        _, request = work.request("json")
        task = ComputeTask(str(work.file), request, sorted(batches), self._lengths.loop_s)
        outcome = child.run(
            "bench.compute", task, ComputeOutcome,
            on=self._cores.measured, timeout_s=_PATIENCE_S,
        )  # fmt: skip
        name = compute_name(work.model)
        for rows in BATCHES:
            self._add_cost(f"{name}/run/{rows}", outcome.run[rows])
        if achieved:
            rows = max(1, round(achieved))
            self._add_cost(f"{name}/run/achieved", outcome.run[rows], rows=rows)
        self._add_cost(f"{name}/protocol", outcome.protocol)

    def _add_cost(self, name: str, cost: Cost, **more: float) -> None:
        self._rounds.add(name, cpu_us=cost.cpu_us, wall_us=cost.wall_us, **more)

    def _idle(self, repository: Path) -> None:
        log_file = self._folder / f"idle-{self._rounds.number}.log"
        with serving("headrace", repository, log_file, on=self._cores.measured) as server:
            self._rounds.add(IDLE, ready_s=server.ready_s, idle_mb=server.resident_mb())

    def _registry(self, size: int) -> None:
        data_dir = self._folder / f"registry-{size}"
        if not data_dir.exists():
            data_dir.mkdir()
            registry.fill(data_dir, size)
        log_file = self._folder / f"registry-{size}-{self._rounds.number}.log"
        measured = self._cores.measured
        with serving("headrace", None, log_file, on=measured, data_dir=data_dir) as server:
            figures = {"ready_s": server.ready_s, "idle_mb": server.resident_mb()}
            figures |= registry.ask(server, size)
            figures["after_mb"] = server.resident_mb()
        figures["look_up_us"] = registry.look_up_us(size)
        self._rounds.add(f"{REGISTRY}/{size}", **figures)

    def _gateway(self) -> None:
        outcome = child.run(
            "bench.gateway", GatewayTask(self._lengths.seconds), GatewayOutcome,
            on=self._cores.measured, timeout_s=_PATIENCE_S,
        )  # fmt: skip
        added_us = outcome.on_us - outcome.off_us
        self._rounds.add(GATEWAY, off_us=outcome.off_us, on_us=outcome.on_us, added_us=added_us)

    def _overload(self) -> None:
        """Three times as much as can be served, by clients that do not wait for each other."""
        folder = self._folder / f"overload-{self._rounds.number}"
        work = workload.make(OVERLOADED, folder)
        headers, body = work.request("json")
        headers = {**headers, "Request-Timeout": str(OVERLOAD_DEADLINE_S)}
        request = _request(work, headers, body)
        log_file = self._folder / f"overload-{self._rounds.number}.log"
        with serving("headrace", folder, log_file, on=self._cores.measured) as server:
            task = LoadTask(
                port=server.port, request=request, connections=16,
                warm_up_s=self._lengths.warm_up_s, seconds=self._lengths.seconds,
                server_pid=server.pid,
            )  # fmt: skip
            usual = load.put_on(task, on=self._cores.load)
            peak_per_s = usual.requests / usual.elapsed_s
            seconds = max(5 * self._lengths.seconds, 2 * OVERLOAD_DEADLINE_S)
            outcome = child.run(
                "bench.overload",
                OverloadTask(server.port, request, OVERLOAD_FACTOR * peak_per_s, seconds),
                OverloadOutcome, on=self._cores.load, timeout_s=seconds + _PATIENCE_S,
            )  # fmt: skip
        self._rounds.add(
            OVERLOAD,
            peak_per_s=peak_per_s,
            good_per_s=outcome.good_per_s,
            good_p99_ms=outcome.good_p99_ms,
            refused=outcome.refused,
            refused_p99_ms=outcome.refused_p99_ms,
            late=outcome.late,
            other=outcome.other,
        )


def _batches(server: Server, scenario: Scenario) -> tuple[float, float]:
    """Rows and runs so far; zeros where the server does not tell."""
    if scenario.subject != "headrace":
        return 0.0, 0.0
    rows, runs = (
        server.metric(f"headrace_batch_rows_{part}", model=scenario.model)
        for part in ("sum", "count")
    )
    return rows, runs


def _request(work: Workload, headers: Mapping[str, str], body: bytes) -> bytes:
    lines = {"Host": "127.0.0.1", **headers, "Content-Length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {work.path} HTTP/1.1\r\n{head}\r\n".encode() + body
