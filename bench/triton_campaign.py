"""One run of Triton's bench: asked directly, and through what passes requests on to it.

All of one round run beside each other, and take their turns at each measurement, so that what a
request through the platform takes is compared with a direct one of the same seconds. Triton
shares the load's core in either case.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from bench import cores, grpc_frames, grpc_payload, load, proxy_subjects, relay_payload, workload
from bench.cores import Cores
from bench.failure import BenchFailure
from bench.lengths import Lengths
from bench.load import LoadTask
from bench.proxy_campaign import DIRECT, HEADERS, first_answer
from bench.proxy_subjects import Subject
from bench.relay_payload import Message
from bench.results import Results
from bench.rounds import Rounds
from bench.server import Server, running, serving
from bench.workload import Workload
from tests.support.triton import Triton
from tests.support.triton_repository import lay_out

Wire: TypeAlias = Literal["http", "grpc"]
MODELS: Final = ("identity", "mlp")
#: Served by the platform itself, for gRPC without anything behind.
IN_PROCESS: Final = "tiny"
#: Servers of the library alone, see grpc_bare.py: one passes on, one answers nothing.
BARE: Final = "bare"
EMPTY: Final = "empty"
CONCURRENCY: Final = (1, 16, 64)
_DELAY: Final = re.compile(r"max_queue_delay_microseconds: \d+")
_NO_DELAY: Final = "max_queue_delay_microseconds: 0"


@dataclass(frozen=True)
class _Target:
    """Who is asked: its port, its process, and Triton's where that is another."""

    subject: str
    port: int
    pid: int
    behind_pid: int | None = None


def subjects(wire: Wire, proxies: Sequence[Subject]) -> list[str]:
    """Who is asked over a wire: directly, and through which of these proxies."""
    return [DIRECT, *proxies] if wire == "http" else [DIRECT, BARE, "headrace"]


def scenario(model: str, wire: Wire, subject: str, concurrency: int) -> str:
    """The name of a measurement."""
    return f"{model}/{wire}/{subject}/c{concurrency}"


class TritonCampaign:
    """Measures Triton with and without proxies before it. `folder` is for files."""

    def __init__(
        self,
        proxies: Sequence[Subject],
        *,
        concurrency: Sequence[int] = CONCURRENCY,
        lengths: Lengths,
        cores: Cores,
        folder: Path,
        say: Callable[[str], None],
    ) -> None:
        self._proxies = proxies
        self._concurrency = concurrency
        self._lengths = lengths
        self._cores = cores
        self._folder = folder
        self._rounds = Rounds(lengths, cores=cores, say=say)
        self._tiny = workload.make(IN_PROCESS, folder / "repository-tiny")
        mlp = workload.make("mlp", folder / "repository-mlp")
        # the same row, so that both models are sent as many bytes
        identity = dataclasses.replace(mlp, model="identity", expected=mlp.row)
        self._works = (identity, mlp)

    def run(self) -> Results:
        """Measure every round.

        Raises:
            BenchFailure: a server did not start, or an answer was not the right one.
        """
        with self._triton() as triton:
            for _ in self._rounds:
                self._wire("http", triton, triton.http_port)
                self._wire("grpc", triton, triton.grpc_port)
                self._without()
        return self._rounds.results

    @contextlib.contextmanager
    def _triton(self) -> Iterator[Triton]:
        repository = lay_out(self._folder / "models", MODELS)
        for model in MODELS:
            # a request that waits for others that do not come would hide what passing it on takes
            file = repository / model / "config.pbtxt"
            file.write_text(_DELAY.sub(_NO_DELAY, file.read_text("utf-8")), "utf-8")
        triton = Triton(self._folder / "triton", repository)
        try:
            with cores.on(self._cores.load):
                try:
                    triton.start()
                except AssertionError as error:
                    raise BenchFailure(str(error)) from error
            yield triton
        finally:
            triton.kill()

    def _wire(self, wire: Wire, triton: Triton, port: int) -> None:
        with contextlib.ExitStack() as stack:
            targets = [_Target(DIRECT, port, triton.pid)]
            if wire == "grpc":
                bare = stack.enter_context(self._bare(BARE, triton.grpc))
                targets.append(_Target(BARE, bare.grpc_port, bare.pid, triton.pid))
            for subject in self._proxies if wire == "http" else ("headrace",):
                folder = self._folder / f"{subject}-{wire}-{self._rounds.number}"
                proxy = stack.enter_context(
                    proxy_subjects.proxying(
                        subject, port, folder,
                        on=self._cores.measured, models=MODELS, grpc=wire == "grpc",
                    )
                )  # fmt: skip
                through = proxy.grpc_port if wire == "grpc" else proxy.port
                targets.append(_Target(subject, through, proxy.pid, triton.pid))
            for work in self._works:
                for target in targets:
                    _check(work, wire, target)
                for concurrency in self._concurrency:
                    self._compare(work, wire, targets, concurrency)

    def _compare(
        self, work: Workload, wire: Wire, targets: Sequence[_Target], concurrency: int
    ) -> None:
        direct: dict[str, float] = {}
        for target in targets:
            figures = self._load(work, wire, target, concurrency)
            if target.subject == DIRECT:
                direct = figures
                figures["triton_us"] = figures.pop("cpu_us")
            else:
                for latency in ("p50_ms", "p99_ms"):
                    figures[f"added_{latency}"] = figures[latency] - direct[latency]
            self._rounds.add(scenario(work.model, wire, target.subject, concurrency), **figures)

    def _without(self) -> None:
        """GRPC with nothing behind: the platform's own model, and a handler that does nothing."""
        log_file = self._folder / f"in-process-{self._rounds.number}.log"
        repository = self._tiny.repository
        with (
            self._bare(EMPTY) as empty,
            serving("headrace", repository, log_file, on=self._cores.measured) as platform,
        ):
            targets = (
                _Target(EMPTY, empty.grpc_port, empty.pid),
                _Target("headrace", platform.grpc_port, platform.pid),
            )
            _check(self._tiny, "grpc", targets[1])
            for concurrency in self._concurrency:
                for target in targets:
                    figures = self._load(self._tiny, "grpc", target, concurrency)
                    name = scenario(IN_PROCESS, "grpc", target.subject, concurrency)
                    self._rounds.add(name, **figures)

    def _bare(self, subject: str, *arguments: str) -> AbstractContextManager[Server]:
        return running(
            [sys.executable, "-m", "bench.grpc_bare", *arguments],
            self._folder / f"{subject}-{self._rounds.number}.log",
            subject=subject,
            on=self._cores.measured,
            environment=os.environ,
        )

    def _load(
        self, work: Workload, wire: Wire, target: _Target, concurrency: int
    ) -> dict[str, float]:
        task = LoadTask(
            port=target.port,
            request=_request(work, wire),
            connections=concurrency,
            warm_up_s=self._lengths.warm_up_s,
            seconds=self._lengths.seconds,
            server_pid=target.pid,
            behind_pid=target.behind_pid,
        )
        program = "bench.grpc_load" if wire == "grpc" else "bench.load"
        try:
            outcome = load.put_on(task, on=self._cores.load, program=program)
        except BenchFailure as failure:
            msg = f"{scenario(work.model, wire, target.subject, concurrency)}: {failure}"
            raise BenchFailure(msg) from failure
        figures = outcome.figures()
        if target.behind_pid is not None:
            figures["triton_us"] = outcome.behind_cpu_s * 1e6 / outcome.requests
        return figures


def _message(work: Workload) -> Message:
    return Message(*work.request("binary"))


def _request(work: Workload, wire: Wire) -> bytes:
    if wire == "grpc":
        message = grpc_payload.message(work)
        return grpc_frames.request(grpc_payload.INFER, message, grpc_payload.METADATA)
    return relay_payload.request(_message(work), work.model, HEADERS)


def _check(work: Workload, wire: Wire, target: _Target) -> None:
    try:
        if wire == "grpc":
            grpc_payload.check_first(work, target.port)
        else:
            work.check(*first_answer(target.port, work.model, _message(work)))
    except BenchFailure as failure:
        raise BenchFailure(f"{target.subject}, {wire}: {failure}") from failure
