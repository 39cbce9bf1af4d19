"""Kill and pause processes of the batch service wherever a job takes them.

    python -m tests.support.chaos --kills 1000 --pauses 50
    python -m tests.support.chaos --kind cluster --restart kafka --joins 100
    python -m tests.support.chaos --shape plain --site store.finish:after --nth 1

The last one runs one case, which is how a failing one is repeated.

Sites are: before and after every call of a port (store, objects, queue, keys, model), every await
that waits in whatever task, every send on a socket by whatever library, every step of a file, and
every commit and statement of SQLite.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.support.chaos import native
from tests.support.chaos.case import Outcome
from tests.support.chaos.matrix import Matrix, Wanted, kills, pauses
from tests.support.chaos.outages import SERVERS, Passed, restart, storm
from tests.support.chaos.place import places
from tests.support.chaos.shapes import NAMES
from tests.support.chaos.sites import Fault

_EVERY_S: Final = 5.0
_TOO_MANY: Final = 10


class Report(msgspec.Struct, kw_only=True):
    """What was done, and what came of it."""

    kind: str
    seconds: float = 0.0
    cases: int = 0
    kills: int = 0
    pauses: int = 0
    sites: int = 0  # different ones at which something happened
    by_shape: dict[str, int] = {}
    slowest_s: float = 0.0  # from a fault to the end of all
    passed: list[Passed] = []
    problems: list[str] = []


class Show:
    """Counts outcomes and prints how it goes."""

    def __init__(self, report: Report, *, wanted: int, bound_s: float) -> None:
        self._report = report
        self._bound_s = bound_s
        self._wanted = wanted
        self._begun = time.monotonic()
        self._shown = 0.0
        self._sites: set[str] = set()
        self._shapes: Counter[str] = Counter()

    def outcome(self, outcome: Outcome, folder: Path) -> None:
        """One more."""
        report = self._report
        report.cases += 1
        if outcome.happened:
            report.kills += outcome.action == "kill"
            report.pauses += outcome.action == "pause"
            self._sites.add(outcome.site)
            self._shapes[outcome.shape] += 1
            report.slowest_s = max(report.slowest_s, outcome.resumed_s)
            late = outcome.action == "kill" and outcome.resumed_s > self._bound_s
            if late and not outcome.problem:
                outcome.problem = f"it took {outcome.resumed_s:.1f} s to go on"
        report.sites, report.by_shape = len(self._sites), dict(self._shapes)
        report.seconds = time.monotonic() - self._begun
        if outcome.problem:
            again = shlex.join(
                ["python", "-m", "tests.support.chaos", "--kind", report.kind,
                 "--shape", outcome.shape, "--site", outcome.site, "--nth", str(outcome.nth),
                 "--action", outcome.action]
            )  # fmt: skip
            report.problems.append(f"{outcome.problem}\n  again: {again}\n  logs: {folder}")
            self._line(f"\nFAILED {report.problems[-1]}\n")
            if len(report.problems) >= _TOO_MANY:
                msg = "too many have failed"
                raise SystemExit(msg)
        if time.monotonic() - self._shown > _EVERY_S:
            self.show()

    def show(self) -> None:
        """One line on how far it is."""
        self._shown = time.monotonic()
        report = self._report
        done = report.kills + report.pauses
        left_s = report.seconds / done * max(self._wanted - done, 0) if done else 0
        self._line(
            f"{report.kind}: {report.kills} kills and {report.pauses} pauses of {self._wanted}, "
            f"at {report.sites} sites; {len(report.problems)} failed; "
            f"slowest back after {report.slowest_s:.1f} s; {left_s / 60:.1f} min left"
        )

    def _line(self, text: str) -> None:
        print(text, flush=True)  # noqa: T201 - it is a program


def main(arguments: list[str]) -> int:
    """Run what the command line asks for; 1 where something was not as it has to be."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.chaos")
    parser.add_argument("--kind", choices=["laptop", "cluster"], default="laptop")
    parser.add_argument("--kills", type=int, default=0, help="at least so many")
    parser.add_argument("--all", action="store_true", help="every site at least once")
    parser.add_argument("--pauses", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=4, help="cases at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the order")
    parser.add_argument("--report", type=Path, help="write figures as JSON here")
    parser.add_argument("--shape", choices=NAMES)
    parser.add_argument("--site")
    parser.add_argument("--nth", type=int, default=1)
    parser.add_argument("--action", choices=["kill", "pause"], default="kill")
    parser.add_argument("--bound", type=float, default=30.0, help="seconds until all goes on")
    parser.add_argument("--leases", choices=["short", "default"], default="short")
    parser.add_argument("--restart", action="append", choices=SERVERS, default=[])
    parser.add_argument("--joins", type=int, default=0, help="of workers of a cluster")
    parser.add_argument("--list", action="store_true", help="only tell the sites")
    asked = parser.parse_args(arguments)
    logging.basicConfig(level=logging.ERROR)
    folder = Path(tempfile.mkdtemp(prefix="headrace-chaos-"))
    report = Report(kind=asked.kind)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))
    with places(asked.kind, folder, leases=asked.leases) as made:
        _run(asked, Matrix(made, folder, jobs=asked.jobs), report)
        for server in asked.restart:
            _note(report, restart(made, server))
        if asked.joins:
            _note(report, storm(made, asked.joins))
    if asked.report:
        asked.report.write_bytes(msgspec.json.encode(report))
    if not report.problems:
        made.remove()
    return 1 if report.problems else 0


def _note(report: Report, passed: Passed) -> None:
    report.passed.append(passed)
    if passed.problem:
        report.problems.append(f"{passed.what}: {passed.problem}")
    print(passed, flush=True)  # noqa: T201 - it is a program


def _run(asked: Any, matrix: Matrix, report: Report) -> None:
    names = [asked.shape] if asked.shape else list(NAMES)
    if not (asked.site or asked.list or asked.all or asked.kills or asked.pauses):
        return
    if asked.site:
        show = Show(report, wanted=1, bound_s=asked.bound)
        fault = Fault(asked.site, asked.nth, asked.action)
        cases = iter([Wanted(name, fault) for name in names])
        matrix.run(cases, enough=len(names), told=show.outcome)
        show.show()
        return
    inventory = matrix.inventory(names)
    if asked.list:
        for name, sites in inventory.items():
            for site, count in sorted(sites.items()):
                print(name, site, count)  # noqa: T201 - it is a program
        return
    enough = asked.kills
    if asked.all:
        enough = max(enough, sum(map(len, inventory.values())))
    show = Show(report, wanted=enough + asked.pauses, bound_s=asked.bound)
    if enough:
        matrix.run(kills(inventory, seed=asked.seed, again=True), enough=enough, told=show.outcome)
    if asked.pauses:
        cases = pauses(inventory, seed=asked.seed)
        matrix.run(cases, enough=asked.pauses, told=show.outcome)
    show.show()


if __name__ == "__main__":
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    native.load("tests.support.chaos", sys.argv[1:])
    sys.exit(main(sys.argv[1:]))
