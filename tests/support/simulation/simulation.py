"""Run what a seed stands for, and say what became of it."""

from __future__ import annotations

import asyncio
import gc
import logging
from typing import Final

import msgspec

from headrace.batch.metrics import BatchMetrics
from headrace.ports.idempotency import LEASE_S
from tests.support.simulation.broker import Broker
from tests.support.simulation.client import Clients
from tests.support.simulation.process import ORPHAN_AGE_S, Machine
from tests.support.simulation.scenario import draw
from tests.support.simulation.watch import Broken, Watch
from tests.support.simulation.world import World

#: Seconds after the last fault within which everything has ended, its work not counted.
_ENDS_S: Final = 30.0
_LOOK_S: Final = 0.5
_SHOWN: Final = 120  # events of a trace


class Failed(AssertionError):
    """A seed whose run broke what must hold."""


class Outcome(msgspec.Struct, frozen=True):
    """What became of a run."""

    seed: int
    states: tuple[str, ...]  # of the jobs
    ended_s: float
    steps: int
    trace: tuple[str, ...] | None


def simulate(seed: int, metrics: BatchMetrics) -> Outcome:
    """Run a seed. Raises Failed, with what happened last, once it has run again to trace it."""
    try:
        return run(seed, metrics, traced=False)
    except Exception as error:
        world = World(seed, draw(seed), traced=True)
        again: Exception | None = None
        try:
            Simulation(world, metrics).run()
        except Exception as raised:  # noqa: BLE001 - it is told, whatever it is
            again = raised
        shown = "\n".join((world.trace or [])[-_SHOWN:])
        msg = f"SEED={seed}: {error!r}\n{world.scenario}\n{shown}\nSEED={seed}: {again!r}"
        raise Failed(msg) from error


def run(seed: int, metrics: BatchMetrics, *, traced: bool) -> Outcome:
    """Run a seed. Raises what breaks."""
    world = World(seed, draw(seed), traced=traced)
    simulation = Simulation(world, metrics)
    states = simulation.run()
    trace = tuple(world.trace) if world.trace is not None else None
    return Outcome(seed, states, world.loop.time(), world.loop.steps, trace)


class _Errors(logging.Handler):
    """Failures that only a log tells of."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.found.append(self.format(record))


class Simulation:
    """One run."""

    def __init__(self, world: World, metrics: BatchMetrics) -> None:
        scenario = world.scenario
        self._world = world
        self._broker = Broker(world) if scenario.shared else None
        self._machines = [
            Machine(world, n, broker=self._broker, metrics=metrics)
            for n in range(scenario.processes)
        ]
        self.watch = Watch(world, self._machines)
        self._clients = Clients(world, self._machines, self.watch)

    def run(self) -> tuple[str, ...]:
        """The states in which the jobs ended. Raises what breaks."""
        errors = _Errors()
        logger = logging.getLogger("headrace.batch")
        before = logger.level, logger.propagate
        logger.addHandler(errors)
        logger.setLevel(logging.ERROR)
        logger.propagate = False
        gc.disable()  # so that nothing ends at another step of another run
        try:
            self._world.loop.run(self._main())
        finally:
            for machine in self._machines:
                machine.end()
            self._world.loop.close()
            gc.enable()
            logger.removeHandler(errors)
            logger.setLevel(before[0])
            logger.propagate = before[1]
        if errors.found:
            raise Broken(errors.found[0])
        return tuple(seen.job.state for seen in self.watch.jobs.values())

    async def _main(self) -> None:
        world, scenario = self._world, self._world.scenario
        world.outages()
        for machine in self._machines:
            world.later(world.chance.random(), machine.start)
        for stop in scenario.stops:
            machine = self._machines[stop.process]
            world.later(max(1.0, stop.at_s), self._stop, machine, stop.deed, stop.for_s)
        self._clients.start()
        await self._until_all_have_ended()
        while True:
            await self._until_all_have_ended()
            ended_s = self.watch.ended_s
            await asyncio.sleep(2 * scenario.look_s + 1)
            is_over = not self.watch.open and not self._clients.busy
            if is_over and self.watch.ended_s == ended_s:
                break  # else one was begun again
        if self.watch.garbage():  # whoever removes it may have been kept from it
            back_s = max(machine.back_s for machine in self._machines)
            calm_s = max(world.disturbed_s, scenario.faults_s, back_s) - world.loop.time()
            await asyncio.sleep(max(0.0, calm_s) + 3 * scenario.look_s + 1)
        if scenario.sweep_s and self.watch.orphans():
            calm_s = max(world.disturbed_s, scenario.faults_s) - world.loop.time()
            await asyncio.sleep(max(0.0, calm_s) + ORPHAN_AGE_S + 2 * scenario.sweep_s + 1)
        self.watch.at_the_end()
        if self._broker is not None and (left := self._broker.forgotten()):
            raise Broken(f"{left[0].message} is not acknowledged by {left[0].link.process.name}")

    async def _until_all_have_ended(self) -> None:
        world, watch = self._world, self.watch
        scenario = world.scenario
        while True:
            await asyncio.sleep(_LOOK_S)
            now = world.loop.time()
            watch.at_times()
            busy = self._clients.busy
            if not busy and now > 1.5 and not watch.open:
                return
            last_s = max(scenario.faults_s, watch.began_s, world.disturbed_s)
            due = last_s + _ENDS_S + self._work_s()
            if watch.open and now > due:
                raise Broken(f"at {now:.1f} s: {watch.told()}")
            if busy and now > max(due, watch.ended_s + _ENDS_S) + LEASE_S:
                raise Broken(f"at {now:.1f} s: {busy} clients wait for answers")

    def _work_s(self) -> float:
        scenario = self._world.scenario
        return scenario.model_s * (2 + 2 * scenario.rows)

    def _stop(self, machine: Machine, deed: str, for_s: float) -> None:
        assert machine.process is not None
        if deed == "kill":
            machine.process.kill()
        else:
            machine.process.pause(for_s)
