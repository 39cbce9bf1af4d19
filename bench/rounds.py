"""The rounds of a run, each begun with a calibration, and what they find."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from bench import child
from bench.calibration import CalibrationOutcome, CalibrationTask
from bench.cores import Cores
from bench.lengths import Lengths
from bench.results import CALIBRATION, Results

_PATIENCE_S: Final = 120.0


class Rounds:
    """Numbers from 1. `say` is told of every figure as it is found."""

    def __init__(self, lengths: Lengths, *, cores: Cores, say: Callable[[str], None]) -> None:
        self._lengths = lengths
        self._cores = cores
        self._say = say
        self.number = 0  # of the round that runs
        self.results = Results()

    def __iter__(self) -> Iterator[int]:
        for number in range(1, self._lengths.rounds + 1):
            self.number = number
            outcome = child.run(
                "bench.calibration", CalibrationTask(self._lengths.loop_s), CalibrationOutcome,
                on=self._cores.measured, timeout_s=_PATIENCE_S,
            )  # fmt: skip
            self.add(CALIBRATION, task_us=outcome.task_us)
            yield number

    def add(self, name: str, **figures: float) -> None:
        """Keep the figures of a scenario in this round."""
        self.results.add(name, **figures)
        shown = "  ".join(f"{figure} {value:,.4g}" for figure, value in figures.items())
        self._say(f"{self.number}/{self._lengths.rounds}  {name:<26} {shown}")
