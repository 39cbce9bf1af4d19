"""Servers that restart under jobs, and workers that join and leave without end."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal, TypeAlias, get_args

import msgspec

from tests.support.chaos.client import Client
from tests.support.chaos.place import Place, Places
from tests.support.chaos.process import Process, start
from tests.support.chaos.shapes import Shape
from tests.support.chaos.verdict import Job

Server: TypeAlias = Literal["postgres", "kafka", "s3"]
SERVERS: Final[tuple[Server, ...]] = get_args(Server)

_PATIENCE_S: Final = 600.0
_POLL_S: Final = 0.02
_JOBS: Final = 2
_AT_ONCE: Final = 4  # workers that come and go
_JOIN_S: Final = 60.0
#: Jobs long enough that a server is away in the midst of them.
_LONG: Final = Shape(name="plain", rows=480, chunk_rows=10, bad=7, model_s=0.2)
_STORMY: Final = Shape(name="plain", rows=240, chunk_rows=4, bad=7, model_s=0.1)


class Passed(msgspec.Struct, kw_only=True):
    """What came of one outage or storm. `problem` is "" where all was as it has to be."""

    what: str
    jobs: int = 0
    rows: int = 0
    away_s: float = 0.0  # how long the server was
    resumed_s: float = 0.0  # from when it was back to the next row that was done
    joins: int = 0
    problem: str = ""


class _Fleet:
    """Processes at one place, and a client of the first."""

    def __init__(self, place: Place, shape: Shape) -> None:
        self._place = place
        self._shape = shape
        self._count = 0
        self._submitted = 0
        self.processes: list[Process] = []
        self.client = Client(
            port=lambda: self.processes[0].port, look=self._look, patience_s=_PATIENCE_S
        )

    def begin(self) -> Process:
        """One more process."""
        process = start(self._place, self._shape, name=f"process-{self._count}")
        self._count += 1
        self.processes.append(process)
        return process

    def close(self) -> None:
        """End all that there are."""
        for process in self.processes:
            process.end()

    def submit(self, count: int) -> list[str]:
        """Begin jobs."""
        file = self.client.upload(self._shape.input())
        made = []
        for _ in range(count):
            self._submitted += 1
            made.append(self.client.create(file, key=f"job {self._submitted}"))
        return made

    def check(self, ids: Sequence[str], passed: Passed) -> None:
        """Wait for the end of all jobs there are, and see that nothing is wrong; count them."""
        client, rows = self.client, list(range(self._shape.rows))
        jobs = [Job(client.end_of(id_), rows) for id_ in ids]
        client.until_none(self._place.left)
        client.check(self._shape, jobs)
        passed.jobs, passed.rows = len(ids), len(ids) * self._shape.rows

    def done(self, ids: Sequence[str]) -> int:
        """Rows of jobs that have an outcome."""
        told = [self.client.ask("GET", f"/v1/batches/{id_}")["request_counts"] for id_ in ids]
        return sum(counts["completed"] + counts["failed"] for counts in told)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something."""
        deadline = time.monotonic() + _PATIENCE_S
        while not condition():
            self._look()
            assert time.monotonic() < deadline, f"never: {what}"

    def _look(self) -> None:
        time.sleep(_POLL_S)


@contextlib.contextmanager
def _passing(places: Places, name: str, shape: Shape, what: str) -> Iterator[tuple[Passed, _Fleet]]:
    """A fleet until the block ends; what breaks the block off is the problem that is told."""
    passed = Passed(what=what)
    fleet = _Fleet(places.make(name, shape), shape)
    try:
        yield passed, fleet
    except Exception as error:  # noqa: BLE001 - told
        passed.problem = f"{type(error).__name__}: {error}"
    finally:
        fleet.close()


def restart(places: Places, server: Server) -> Passed:
    """Crash a server in the midst of jobs and start it again; a job is asked for meanwhile."""
    what = f"restart of {server}"
    with _passing(places, f"restart_{server}", _LONG, what) as (passed, fleet):
        for process in (fleet.begin(), fleet.begin()):
            process.listening()
        jobs = fleet.submit(_JOBS)
        fleet.until(lambda: fleet.done(jobs) > 0, "the first rows are done")
        went = time.monotonic()
        places.crash(server)
        places.recover(server)
        back = time.monotonic()
        passed.away_s = back - went
        before = fleet.done(jobs)
        total = _JOBS * _LONG.rows
        fleet.until(lambda: fleet.done(jobs) > min(before, total - 1), "more rows are done")
        passed.resumed_s = time.monotonic() - back
        jobs += fleet.submit(1)
        fleet.check(jobs, passed)
    return passed


def storm(places: Places, joins: int) -> Passed:
    """Let workers join the group and leave it, or die, while jobs go on."""
    what = f"{joins} joins and leaves"
    with _passing(places, "storm", _STORMY, what) as (passed, fleet):
        jobs: list[str] = []
        coming: list[Process] = []
        fleet.begin().listening()
        while passed.joins < joins:
            if not jobs or fleet.done(jobs[-1:]) > _STORMY.rows // 2:
                jobs += fleet.submit(1)
            while len(coming) < min(_AT_ONCE, joins - passed.joins):
                coming.append(fleet.begin())
            # the first that came has its share of the partitions before it goes again
            first = coming.pop(0)
            joined = first.heard("joined", _JOIN_S)
            assert joined is not None, f"a worker was given nothing: {first.log}"
            passed.joins += 1
            # few die: a chunk whose workers die again and again is taken for poison
            leaves = passed.joins % 5
            code = first.end(signal.SIGTERM if leaves else signal.SIGKILL)
            assert code == (0 if leaves else -signal.SIGKILL), f"a worker left with {code}"
            fleet.processes.remove(first)
        fleet.check(jobs, passed)
    return passed
