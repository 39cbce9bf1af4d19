"""Run what a seed stands for, and say what became of it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec

from headrace.batch.failed_rows import FailedRows
from headrace.batch.jobs import Jobs
from headrace.batch.metrics import BatchMetrics
from headrace.domain.batch_requests import Again, NewJob
from headrace.domain.calls import Call, Principal
from headrace.domain.errors import Conflict
from headrace.domain.files import File
from headrace.domain.scopes import EVERYTHING
from headrace.transport.oip_rest.rows import OipRows
from tests.support.simulation.broker import Broker
from tests.support.simulation.process import Machine, settings_of
from tests.support.simulation.scenario import JobPlan, draw
from tests.support.simulation.watch import Broken, Expected, Watch
from tests.support.simulation.world import World, settle

_URL: Final = "/v2/models/triple/infer"
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
        self._watch = Watch(world, self._machines)
        self._watch.on_end = self._has_ended
        settings, codec = settings_of(scenario), OipRows()
        self._jobs = Jobs(
            store=world.store,
            objects=world.objects,
            failed_rows=FailedRows(
                store=world.store, objects=world.objects, codec=codec, settings=settings
            ),
            settings=settings,
            clock=world.now,
            monotonic=world.loop.time,
            new_id=world.new_id,
        )
        self._due_s = scenario.faults_s  # from when on the end may be waited for

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
        return tuple(seen.job.state for seen in self._watch.jobs.values())

    async def _main(self) -> None:
        world, scenario = self._world, self._world.scenario
        world.outages()
        for machine in self._machines:
            world.later(world.chance.random(), machine.start)
        for stop in scenario.stops:
            machine = self._machines[stop.process]
            world.later(max(1.0, stop.at_s), self._stop, machine, stop.deed, stop.for_s)
        for number, plan in enumerate(scenario.jobs):
            world.later(plan.at_s, self._begin, number, plan)
        await self._until_all_have_ended()
        while True:
            await self._until_all_have_ended()
            ended_s = self._watch.ended_s
            await asyncio.sleep(2 * scenario.look_s + 1)
            if not self._watch.open and self._watch.ended_s == ended_s:
                break  # else one was begun again
        if self._watch.garbage():  # whoever removes it may have been kept from it
            calm_s = max(world.disturbed_s, scenario.faults_s) - world.loop.time()
            await asyncio.sleep(max(0.0, calm_s) + 3 * scenario.look_s + 1)
        self._watch.at_the_end()
        if self._broker is not None and (left := self._broker.forgotten()):
            raise Broken(f"{left[0].message} is not acknowledged by {left[0].link.process.name}")

    async def _until_all_have_ended(self) -> None:
        world, watch = self._world, self._watch
        scenario = world.scenario
        while True:
            await asyncio.sleep(_LOOK_S)
            now = world.loop.time()
            watch.at_times()
            begun = len(watch.jobs) >= len(scenario.jobs)
            if begun and now > 1.5 and not watch.open:
                return
            due = max(self._due_s, world.disturbed_s) + _ENDS_S + self._work_s()
            if now > due:
                raise Broken(f"at {now:.1f} s: {watch.told()}")

    def _work_s(self) -> float:
        scenario = self._world.scenario
        return scenario.model_s * (2 + 2 * scenario.rows)

    def _stop(self, machine: Machine, deed: str, for_s: float) -> None:
        assert machine.process is not None
        if deed == "kill":
            machine.process.kill()
        else:
            machine.process.pause(for_s)

    # --- what callers do -------------------------------------------------------------------------

    def _begin(self, number: int, plan: JobPlan) -> None:
        """Write a file, and ask for its job."""
        world = self._world
        ids, numbers, text = _written(number, plan)
        file_id = world.new_id("file-", 0.0)
        key = f"batch/files/{file_id}"
        settle(world.objects.upload(key, _once(text), limit_bytes=2**40))
        file = File(
            id=file_id, tenant=plan.tenant, purpose="batch", filename="rows.jsonl",
            size_bytes=len(text), key=key,
        )  # fmt: skip
        settle(world.store.add_file(file))
        if plan.defect == "no object":
            settle(world.objects.remove(key))
        wanted = NewJob(
            input_file_id=file_id,
            endpoint=_URL,
            completion_window=f"{plan.window_s}s",
            priority=plan.priority,
            max_attempts=plan.max_attempts,
        )
        job = settle(self._jobs.create(_call(plan.tenant), wanted))
        world.note("created", job.id, plan)
        self._watch.jobs[job.id] = Expected(job, plan, ids, numbers)
        if plan.cancel_after_s is not None:
            world.later(plan.cancel_after_s, self._cancel, job.id, plan.tenant)

    def _cancel(self, id_: str, tenant: str) -> None:
        self._world.note("cancel", id_)
        with contextlib.suppress(Conflict):  # it has ended
            settle(self._jobs.cancel(_call(tenant), id_))
        self._watch.cancelled(id_)

    def _has_ended(self, seen: Expected) -> None:
        """Run its failed rows again, or let go of its input, as planned."""
        plan, world = seen.plan, self._world
        if plan.retried and seen.job.error_file:
            world.later(world.chance.random(), self._retry, seen)
        elif plan.input_deleted:
            world.later(world.chance.random(), self._delete_input, seen)

    def _retry(self, seen: Expected) -> None:
        failed = [id_ for id_ in seen.ids if id_ in seen.failed]
        job = settle(self._jobs.retry(_call(seen.tenant), seen.id, Again()))
        rows = "".join(seen.kinds[id_] for id_ in failed)
        plan = msgspec.structs.replace(seen.plan, rows=rows, retried=False, cancel_after_s=None)
        self._world.note("retry", seen.id, job.id)
        numbers = [seen.numbers[id_] for id_ in failed]
        self._watch.jobs[job.id] = Expected(job, plan, failed, numbers)
        self._due_s = self._world.loop.time()

    def _delete_input(self, seen: Expected) -> None:
        settle(self._world.store.delete_file(seen.tenant, seen.job.input_file))


def _call(tenant: str) -> Call:
    return Call("simulated", Principal("ann", tenant, EVERYTHING))


async def _once(text: bytes) -> AsyncIterator[bytes]:
    yield text


def _written(number: int, plan: JobPlan) -> tuple[list[str], list[int], bytes]:
    """The ids, the numbers and the lines of a job's rows."""
    ids, numbers, lines = [], [], []
    for place, kind in enumerate(plan.rows):
        id_ = f"{number}-{place}"
        value = (number + 1) * 1000 + place
        if kind == "b":
            value = -value
        data = [value, value] if kind == "u" else [value]
        ids.append(id_)
        numbers.append(value)
        lines.append(_line(id_, data))
    if plan.defect == "repeated id":
        lines.append(_line(ids[0], [1]))
    elif plan.defect == "other url":
        lines[-1] = lines[-1].replace(b"triple", b"double")
    elif plan.defect == "no json":
        lines[-1] = lines[-1][:-5] + b"\n"
    elif plan.defect == "no rows":
        lines = [b"\n"]
    return ids, numbers, b"".join(lines)


def _line(custom_id: str, data: list[int]) -> bytes:
    body = {"inputs": [{"name": "x", "datatype": "INT64", "shape": [1], "data": data}]}
    row: dict[str, Any] = {"custom_id": custom_id, "method": "POST", "url": _URL, "body": body}
    return json.dumps(row).encode() + b"\n"
