"""All sites of all shapes: what to do to whom, some cases at a time."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from tests.support.chaos.case import Outcome, run_case
from tests.support.chaos.forked import fork
from tests.support.chaos.place import Places
from tests.support.chaos.shapes import NAMES, SHAPES, Name
from tests.support.chaos.sites import Action, Fault

_HANGS_S: Final = 180.0
_POLL_S: Final = 0.005
_LOOKS: Final = 2  # runs whose sites are looked at: which are passed is in part chance


class Wanted(msgspec.Struct, frozen=True):
    """A case to run."""

    shape: Name
    fault: Fault | None


class Matrix:
    """Runs cases at places of one kind, `jobs` at a time."""

    def __init__(self, places: Places, folder: Path, *, jobs: int) -> None:
        self._places = places
        self._folder = folder
        self._jobs = jobs
        self._number = 0

    def inventory(self, shapes: Sequence[Name] = NAMES) -> dict[Name, dict[str, int]]:
        """How often each site is passed when nothing happens.

        Raises:
            AssertionError: a job goes wrong by itself.
        """
        found: dict[Name, dict[str, int]] = {name: {} for name in shapes}
        wanted = (Wanted(name, None) for name in shapes for _ in range(_LOOKS))
        for folder, outcome in self._run(wanted):
            assert not outcome.problem, f"{outcome.shape} without any fault: {outcome.problem}"
            sites = found[outcome.shape]
            for file in folder.glob("sites-*"):
                for line in file.read_text().splitlines():
                    count, _, site = line.partition(" ")
                    sites[site] = max(sites.get(site, 0), int(count))
            shutil.rmtree(folder)
        return found

    def run(
        self, cases: Iterator[Wanted], *, enough: int, told: Callable[[Outcome, Path], None]
    ) -> None:
        """Run cases until a fault has happened `enough` times, or there are no more."""
        happened = 0

        def until() -> Iterator[Wanted]:
            for case in cases:
                if happened >= enough:
                    return
                yield case

        for folder, outcome in self._run(until()):
            happened += outcome.happened
            told(outcome, folder)
            if not outcome.problem:
                shutil.rmtree(folder, ignore_errors=True)

    def _run(self, cases: Iterator[Wanted]) -> Iterator[tuple[Path, Outcome]]:
        running: dict[int, tuple[str, Wanted, float]] = {}
        more = True
        while more or running:
            while more and len(running) < self._jobs:
                case = next(cases, None)
                if case is None:
                    more = False
                    break
                self._number += 1
                name = f"n{self._number}"
                running[self._begin(name, case)] = (name, case, time.monotonic())
            over = [pid for pid in running if os.waitpid(pid, os.WNOHANG)[0]]
            for pid in over:
                name, case, _ = running.pop(pid)
                yield self._folder / name, self._outcome(name, case)
            for pid, (_, _, begun) in running.items():
                if time.monotonic() - begun > _HANGS_S:
                    os.kill(pid, signal.SIGKILL)
            if not over:
                time.sleep(_POLL_S)

    def _begin(self, name: str, case: Wanted) -> int:
        def work() -> None:
            place = self._places.make(name, SHAPES[case.shape])
            outcome = run_case(place, case.shape, case.fault)
            self._places.end(name)
            (place.folder / "outcome").write_bytes(msgspec.json.encode(outcome))

        return fork(work)

    def _outcome(self, name: str, case: Wanted) -> Outcome:
        file = self._folder / name / "outcome"
        if file.exists():
            return msgspec.json.decode(file.read_bytes(), type=Outcome)
        fault = case.fault or Fault("")
        return Outcome(
            shape=case.shape,
            site=fault.site,
            nth=fault.nth,
            action=fault.action,
            problem="the case itself hung or failed",
        )


def kills(inventory: dict[Name, dict[str, int]], *, seed: int, again: bool) -> Iterator[Wanted]:
    """Each site of each shape, at its first passing; then the second, and so on.

    With `again` all of that again and again: what happens at a site is in part chance.
    """
    return _cases(inventory, "kill", seed=seed, again=again)


def pauses(inventory: dict[Name, dict[str, int]], *, seed: int) -> Iterator[Wanted]:
    """The same with processes that stop, and go on when it is too late."""
    return _cases(inventory, "pause", seed=seed, again=True)


def _cases(
    inventory: dict[Name, dict[str, int]], action: Action, *, seed: int, again: bool
) -> Iterator[Wanted]:
    chance = random.Random(seed)
    while True:
        most = max((n for sites in inventory.values() for n in sites.values()), default=0)
        for nth in range(1, most + 1):
            cases = [
                Wanted(name, Fault(site, nth, action))
                for name, sites in inventory.items()
                for site, count in sites.items()
                if count >= nth
            ]
            chance.shuffle(cases)
            yield from cases
        if not again or not most:
            return
