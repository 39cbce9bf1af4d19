"""A small fixed piece of work, to compare runs on other machines or among other noise by.

Runs as its own process (`python -m bench.calibration`).
"""

from __future__ import annotations

import asyncio
import time

import msgspec
import uvloop

from bench import child

_BLOCK = 1000


class CalibrationTask(msgspec.Struct, frozen=True):
    """How long to go on."""

    seconds: float


class CalibrationOutcome(msgspec.Struct, frozen=True):
    """Processor time of one `await asyncio.create_task(nop())` on uvloop."""

    task_us: float


async def measure(task: CalibrationTask) -> CalibrationOutcome:
    """Await tasks that do nothing."""
    count = 0
    until, cpu_before = time.perf_counter() + task.seconds, time.process_time()
    while time.perf_counter() < until:
        for _ in range(_BLOCK):
            await asyncio.create_task(_nop())
        count += _BLOCK
    return CalibrationOutcome((time.process_time() - cpu_before) * 1e6 / count)


async def _nop() -> None:
    pass


if __name__ == "__main__":
    child.answer(uvloop.run(measure(child.task(CalibrationTask))))
