"""One run of the proxies' bench: every proxy in each round, started anew, before the same server.

Rounds rather than repetitions in a row: what else the machine does then falls on all of them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import load, proxy_subjects, relay_memory, relay_payload
from bench.cores import Cores
from bench.failure import BenchFailure
from bench.lengths import Lengths
from bench.load import LoadOutcome, LoadTask
from bench.proxy_subjects import Subject
from bench.relay_payload import LARGE_ANSWER, LARGE_REQUEST, SMALL_ANSWER, SMALL_REQUEST, Message
from bench.results import Results
from bench.rounds import Rounds
from bench.server import Server, ask, running

#: The requests without any proxy: what they take by themselves.
DIRECT: Final = "direct"

#: Of every request; who needs none does not look at it.
HEADERS: Final = {"Authorization": f"Bearer {proxy_subjects.TOKEN}"}
_OK: Final = 200
#: How long a proxy may take until requests come through, and how often that is tried.
OPEN_S: Final = 10.0
POLL_S: Final = 0.05


@dataclass(frozen=True)
class Exchange:
    """A kind of request, and its answer."""

    name: str
    title: str
    model: str
    request: Message
    answer: Message
    concurrency: tuple[int, ...]


EXCHANGES: Final = (
    Exchange("1k", "1 KB of JSON, small answer", "m", SMALL_REQUEST, SMALL_ANSWER, (1, 64)),
    Exchange("600k", "600 KB of tensors, small answer", "m", LARGE_REQUEST, SMALL_ANSWER, (1, 16)),
    Exchange(
        "600k-both", "600 KB of tensors both ways", "large", LARGE_REQUEST, LARGE_ANSWER, (1, 16)
    ),
)


def scenario(subject: str, exchange: str, concurrency: int) -> str:
    """The name of a measurement."""
    return f"{subject}/{exchange}/c{concurrency}"


class ProxyCampaign:
    """Measures proxies. `say` is told of every figure as it is found; `folder` is for files."""

    def __init__(
        self,
        subjects: Sequence[Subject],
        *,
        lengths: Lengths,
        cores: Cores,
        folder: Path,
        say: Callable[[str], None],
    ) -> None:
        self._subjects = subjects
        self._lengths = lengths
        self._cores = cores
        self._folder = folder
        self._rounds = Rounds(lengths, cores=cores, say=say)

    def run(self) -> Results:
        """Measure every round.

        Raises:
            BenchFailure: a proxy did not start, or an answer was not the right one.
        """
        with self._upstream() as upstream:
            for _ in self._rounds:
                self._exchanges(DIRECT, upstream)
                for subject in self._subjects:
                    self._proxy(subject, upstream)
        return self._rounds.results

    @contextlib.contextmanager
    def _upstream(self) -> Iterator[Server]:
        """On the load's core: what it takes is not the proxy's."""
        command = [sys.executable, "-m", "bench.relay_upstream"]
        with running(
            command, self._folder / "upstream.log",
            subject="the server behind", on=self._cores.load, environment=os.environ,
        ) as server:  # fmt: skip
            yield server

    def _proxy(self, subject: Subject, upstream: Server) -> None:
        folder = self._folder / f"{subject}-{self._rounds.number}"
        on = self._cores.measured
        with proxy_subjects.proxying(subject, upstream.port, folder, on=on) as server:
            try:
                self._exchanges(subject, server)
            except BenchFailure as failure:
                msg = f"{subject}: {failure}\nits log ends:\n{server.log_end()}"
                raise BenchFailure(msg) from failure

    def _exchanges(self, subject: str, server: Server) -> None:
        idle_bytes = 0  # once small requests have been through
        for exchange in EXCHANGES:
            _check(server, exchange)
            for concurrency in exchange.concurrency:
                relay_memory.forget_peak(server.pid)
                outcome = self._load(server, exchange, concurrency)
                figures = outcome.figures()
                if idle_bytes and concurrency > 1:
                    grown = relay_memory.peak_bytes(server.pid) - idle_bytes
                    figures["request_kib"] = grown / concurrency / 1024
                self._rounds.add(scenario(subject, exchange.name, concurrency), **figures)
            idle_bytes = idle_bytes or relay_memory.resident_bytes(server.pid)

    def _load(self, server: Server, exchange: Exchange, concurrency: int) -> LoadOutcome:
        task = LoadTask(
            port=server.port,
            request=relay_payload.request(exchange.request, exchange.model, HEADERS),
            connections=concurrency,
            warm_up_s=self._lengths.warm_up_s,
            seconds=self._lengths.seconds,
            server_pid=server.pid,
        )
        return load.put_on(task, on=self._cores.load)


def first_answer(port: int, model: str, request: Message) -> tuple[dict[str, str], bytes]:
    """Ask once: headers with lower-case names, and the body.

    Raises:
        BenchFailure: the answer is not a success, and none in a while is.
    """
    until = time.perf_counter() + OPEN_S
    while True:  # a proxy may look at the server behind before it sends anything there
        path, headers = f"/v2/models/{model}/infer", {**HEADERS, **request.headers}
        status, names, body = ask(port, "POST", path, headers, request.body)
        if status == _OK:
            return names, body
        if time.perf_counter() > until:
            raise BenchFailure(f"the first answer was {status}: {body[:300]!r}")
        time.sleep(POLL_S)


def _check(server: Server, exchange: Exchange) -> None:
    """Ask once, and compare all of the answer."""
    names, body = first_answer(server.port, exchange.model, exchange.request)
    path = f"/v2/models/{exchange.model}/infer"
    if body != exchange.answer.body:
        raise BenchFailure(f"the first answer to {path} was not what the server behind sent")
    for name, value in exchange.answer.headers.items():
        if names.get(name.lower()) != value:
            raise BenchFailure(f"the first answer to {path} came without {name}: {value}")
