"""One case: a client has a job done while a process dies, or is paused, at a given site."""

from __future__ import annotations

import random
import signal
import time
from typing import Final

import msgspec

from tests.support.chaos.client import Client
from tests.support.chaos.place import Place
from tests.support.chaos.process import Process, start
from tests.support.chaos.shapes import SHAPES, Name, Shape
from tests.support.chaos.sites import Fault
from tests.support.chaos.verdict import Job

#: How many leases a process is stopped for that is paused: its work is just taken over, or done.
_PAUSE: Final = (1.05, 3.0)
_PATIENCE_S: Final = 90.0
_POLL_S: Final = 0.02


class Outcome(msgspec.Struct, kw_only=True):
    """What came of a case. `problem` is "" where all was as it has to be."""

    shape: Name
    site: str = ""
    nth: int = 0
    action: str = ""
    happened: bool = False  # whether the process passed the site so often at all
    seconds: float = 0.0
    resumed_s: float = 0.0  # from the fault to the end of the last job, and of what it left
    problem: str = ""


class Case:
    """Processes at a place: the first may die, then there is another, or stop for a while."""

    def __init__(self, place: Place, shape: Shape, fault: Fault | None) -> None:
        self._place = place
        self._shape = shape
        self._fault = fault
        self._paused = fault is not None and fault.action == "pause"
        lease_s = place.settings.batch.lease_s
        self._pause_s = lease_s * random.Random(repr(fault)).uniform(*_PAUSE)
        self._processes: list[Process] = []
        self._faulted_at: float | None = None
        self._client = Client(
            port=lambda: self._processes[0 if self._faulted_at is None else -1].port,
            look=self._look,
            patience_s=_PATIENCE_S,
            timeout_s=1.0 if self._paused else 4.0,
        )

    def run(self) -> Outcome:
        """Have the job done. Never raises: what is wrong is the outcome's `problem`."""
        fault = self._fault
        begun = time.monotonic()
        outcome = Outcome(shape=self._shape.name)
        if fault is not None:
            outcome.site, outcome.nth, outcome.action = fault.site, fault.nth, fault.action
        try:
            self._start(fault)
            for _ in range(1 if self._paused else self._shape.workers - 1):
                self._start(None)
            jobs = self._drive()
            if self._faulted_at is not None:
                outcome.resumed_s = time.monotonic() - self._faulted_at
                if self._paused:
                    self._see_thawed()
                    self._client.check(self._shape, jobs)
        except Exception as error:  # noqa: BLE001 - told
            outcome.problem = f"{type(error).__name__}: {error}"
        finally:
            outcome.happened = self._faulted_at is not None
            for process in self._processes:
                code = process.end(signal.SIGTERM if fault is None else signal.SIGKILL)
                if fault is None and code and not outcome.problem:
                    outcome.problem = f"a process ended with {code}"
        outcome.seconds = time.monotonic() - begun
        return outcome

    def _drive(self) -> list[Job]:
        client, shape = self._client, self._shape
        first = client.create(client.upload(shape.input()), key="first")
        jobs = [Job(client.end_of(first, cancel=shape.cancelled), list(range(shape.rows)))]
        if shape.retried:
            again = client.retry(first, key="again")
            jobs.append(Job(client.end_of(again), shape.refused))
        client.until_none(self._place.left)
        client.check(shape, jobs)
        self._look(0.0)
        return jobs

    def _start(self, fault: Fault | None) -> None:
        name = f"process-{len(self._processes)}"
        process = start(self._place, self._shape, name=name, fault=fault)
        self._processes.append(process)
        process.listening()

    def _look(self, timeout_s: float = _POLL_S) -> None:
        """See whether the fault has happened; another process takes the place of a dead one.

        A paused one goes on when its leases are over.
        """
        first, fault = self._processes[0], self._fault
        if self._faulted_at is not None:
            time.sleep(timeout_s)
            if self._paused and time.monotonic() > self._faulted_at + self._pause_s:
                first.send(signal.SIGCONT)
        elif first.heard("fault ", timeout_s) is not None:
            self._faulted_at = time.monotonic()
            assert fault is not None
            if fault.action == "kill":
                first.end(timeout_s=5.0)
                self._start(None)
        elif first.is_over():
            msg = f"a process ended by itself:\n{first.log.read_text()[-2000:]}"
            raise AssertionError(msg)

    def _see_thawed(self) -> None:
        """Let the paused one go on, until it has found that its time was over."""
        first = self._processes[0]
        first.send(signal.SIGCONT)
        first.send(signal.SIGUSR1)
        assert first.heard("idle", _PATIENCE_S) is not None, "the paused process hangs"


def run_case(place: Place, name: Name, fault: Fault | None) -> Outcome:
    """Run one case to its end."""
    return Case(place, SHAPES[name], fault).run()
