"""Run very many schedules, on all cores, and stop at the first that breaks.

    python -m tests.support.simulation --seeds 1000000
    python -m tests.support.simulation --seeds 5000 --first 1000000 --processes 1
    python -m tests.support.simulation --seed 42

The last one runs one seed and shows all that happened.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Final

import msgspec

from headrace.batch.metrics import BatchMetrics
from headrace.telemetry.metrics import Metrics
from tests.support.simulation.simulation import Failed, run, simulate

_BLOCK: Final = 50  # seeds that a process runs before it tells of them
_EVERY_S: Final = 1.0  # where the line is written over
_EVERY_LOGGED_S: Final = 60.0
_WIDTH: Final = 79


class Told(msgspec.Struct, frozen=True):
    """What became of some seeds."""

    runs: int
    jobs: int
    failure: str  # of the last one; "": none


def main(arguments: list[str]) -> int:
    """The exit code: 1 where a schedule broke."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.simulation")
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="run this one alone, and show it")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="how many at a time")
    asked = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    if asked.seed is not None:
        return _show(asked.seed)
    last = asked.first + asked.seeds
    blocks = [range(n, min(n + _BLOCK, last)) for n in range(asked.first, last, _BLOCK)]
    progress, failure = _Progress(asked.seeds), ""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(asked.processes, mp_context=spawn, initializer=_begin) as pool:
        for done in as_completed([pool.submit(_run, block) for block in blocks]):
            told = done.result()
            progress.add(told)
            if failure := told.failure:
                pool.shutdown(wait=False, cancel_futures=True)
                break
    progress.end()
    if failure:
        _print(failure)
    return 1 if failure else 0


def _begin() -> None:
    logging.disable(logging.WARNING)


def _run(seeds: range) -> Told:
    """Run some seeds, up to the first that breaks."""
    metrics = BatchMetrics(Metrics())
    jobs = 0
    for number, seed in enumerate(seeds):
        try:
            outcome = simulate(seed, metrics)
        except Failed as failure:
            return Told(number + 1, jobs, str(failure))
        jobs += len(outcome.states)
    return Told(len(seeds), jobs, "")


def _show(seed: int) -> int:
    metrics = BatchMetrics(Metrics())
    try:
        outcome = run(seed, metrics, traced=True)
    except Exception:  # noqa: BLE001 - once more, so that what happened is told with it
        try:
            simulate(seed, metrics)
        except Failed as failure:
            _print(str(failure))
        return 1
    for line in outcome.trace or ():
        _print(line)
    _print(f"SEED={seed}: {', '.join(outcome.states)} at {outcome.ended_s:.1f} s")
    return 0


class _Progress:
    """One line that says how far it is, how fast, and how long it will take."""

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._began = time.monotonic()
        self._told = 0.0
        self._runs = self._jobs = 0
        self._is_shown = sys.stderr.isatty()

    def add(self, told: Told) -> None:
        self._runs += told.runs
        self._jobs += told.jobs
        now = time.monotonic()
        if now - self._told >= (_EVERY_S if self._is_shown else _EVERY_LOGGED_S):
            self._told = now
            self._say(self._line())

    def end(self) -> None:
        self._say(self._line())
        if self._is_shown:
            sys.stderr.write("\n")

    def _line(self) -> str:
        rate = self._runs / max(time.monotonic() - self._began, 1e-9)
        left_s = (self._wanted - self._runs) / max(rate, 1e-9)
        share = self._runs / max(self._wanted, 1)
        return (
            f"{self._runs:,} of {self._wanted:,} schedules ({share:.0%}), {self._jobs:,} jobs, "
            f"{rate:.0f}/s, {_span(left_s)} left"
        )

    def _say(self, line: str) -> None:
        sys.stderr.write(f"\r{line:{_WIDTH}}" if self._is_shown else f"{line}\n")
        sys.stderr.flush()


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
