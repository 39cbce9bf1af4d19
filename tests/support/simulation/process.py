"""A simulated process: the real parts of the batch service, over links that may fail."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Final, cast

import numpy as np

from headrace.batch.chunk_leases import ChunkLeases, Lease
from headrace.batch.dispatcher import Dispatcher
from headrace.batch.finisher import Finisher
from headrace.batch.hands import Hands
from headrace.batch.metrics import BatchMetrics
from headrace.batch.planner import Planner
from headrace.batch.row_runner import RowRunner, RowRunnerSettings
from headrace.batch.settings import BatchSettings
from headrace.batch.spare_hands import Spare
from headrace.batch.sweep import Sweep
from headrace.batch.warden import Warden
from headrace.batch.worker import Worker
from headrace.domain.calls import Call
from headrace.domain.chunks import Claim
from headrace.domain.errors import HeadraceError, ModelFailed, NoReadyEndpoint, QueueFull
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.jobs import Job
from headrace.domain.tensors import Tensor
from headrace.ports.inference import Responses, single
from headrace.ports.job_queue import JobQueue
from headrace.ports.job_store import JobStore
from headrace.ports.object_store import ObjectStore
from headrace.transport.oip_rest.rows import OipRows
from tests.support.simulation.broker import SESSION_S, Broker, OwnQueue, SharedQueue
from tests.support.simulation.link import Killed, Link, RemoteObjects, RemoteStore, failure
from tests.support.simulation.scenario import Scenario
from tests.support.simulation.virtual_time import OWNER, Owner
from tests.support.simulation.visit import Answer, Asked, Visit
from tests.support.simulation.world import World

#: What the model makes of a number.
FACTOR: Final = 3
#: Seconds after which an object that nobody names may be removed.
ORPHAN_AGE_S: Final = 40.0
#: From this number on, one ends the process that asks the model about it.
POISON: Final = 1_000_000


def settings_of(scenario: Scenario) -> BatchSettings:
    """How the processes of a scenario are set up."""
    return BatchSettings(
        small_file_bytes=500,  # three rows
        chunks_in_hand=scenario.chunks_in_hand,
        lease_s=scenario.lease_s,
        look_s=scenario.look_s,
        max_retry_delay_s=8.0,
        rows=RowRunnerSettings(timeout_s=30.0, retry_max_s=2.0, patience_s=4.0),
        chunk_rows=scenario.chunk_rows,
        chunk_s=scenario.chunk_s,
        min_window_s=1,
        window=scenario.window,
        max_jobs_per_tenant=scenario.max_jobs,
        max_job_bytes_per_tenant=scenario.max_job_bytes,
        requeue_after_s=scenario.lease_s,
        sweep_s=scenario.sweep_s,
        orphan_age_s=ORPHAN_AGE_S,
    )


class Machine:
    """Where one process runs at a time; after its death another one does."""

    def __init__(
        self, world: World, number: int, *, broker: Broker | None, metrics: BatchMetrics
    ) -> None:
        self.world = world
        self.broker = broker
        self.metrics = metrics
        self.settings = settings_of(world.scenario)
        self.process: Process | None = None
        self.deaths: list[tuple[str, float]] = []  # names, and when
        self.back_s = 0.0  # when the life after the last death begins
        self._number = number
        self._lives = 0

    def start(self) -> None:
        """Begin a life."""
        self._lives += 1
        self.world.disturb()
        self.process = Process(self, f"p{self._number}.{self._lives}")
        self.process.start()

    def died(self, process: Process, restart_s: float) -> None:
        """Begin another life in a while."""
        now = self.world.loop.time()
        self.deaths.append((process.name, now))
        self.back_s = now + restart_s
        self.world.later(restart_s, self.start)

    def end(self) -> None:
        """Let nothing have an effect any more."""
        if self.process is not None:
            self.process.is_dead = True
            self.process.let_go()


class Process:
    """One life."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.name = name
        self.is_dead = False
        self.root: asyncio.Task[None] | None = None
        self._machine = machine
        self._world = machine.world
        self._link = Link(self._world, self)
        self._owner = Owner()
        self._pauses = 0
        self._skew_s = self._world.chance.choice((0.0, 1000.0))
        self._hands: Hands | None = None
        self._dispatcher: Dispatcher | None = None
        self._visits: list[asyncio.Task[None]] = []

    @property
    def is_serving(self) -> bool:
        """Whether clients reach it."""
        return not self.is_dead and self._dispatcher is not None

    def start(self) -> None:
        """Begin all that a process runs."""
        self.root = self._task(self._house())
        self.root.add_done_callback(self._ended, context=self._world.context)

    def kill(self) -> None:
        """End at once; another life begins in a while."""
        if self.is_dead:
            return
        world = self._world
        world.note(self.name, "killed")
        self.is_dead = self._owner.is_over = True
        self.let_go()
        assert self.root is not None
        for task in (self.root, *self._visits):
            task.cancel()
        world.disturb()
        if self._machine.broker is not None:
            world.later(world.chance.uniform(0, SESSION_S), self._machine.broker.left, self._link)
        self._machine.died(self, world.chance.choice((0.0, 0.5, 5.0, 20.0)))

    def pause(self, seconds: float) -> None:
        """Do nothing for a while, without knowing it."""
        if self.is_dead:
            return
        world = self._world
        world.note(self.name, "paused", seconds)
        world.disturb(world.loop.time() + seconds)
        self._owner.is_paused = True
        self._pauses += 1
        world.later(seconds, self._resume, self._pauses)
        if self._machine.broker is not None:
            world.later(SESSION_S, self._silent, self._pauses)

    def let_go(self) -> None:
        """Go on after a pause."""
        if self._owner.is_paused:
            self._world.loop.let_go(self._owner)

    def serve(self, asked: Asked, answered: asyncio.Future[Answer | None]) -> Callable[[], None]:
        """Have a request answered; what is returned breaks it off. None: the connection breaks."""
        visit = Visit(self._world, self, len(self._visits), self._machine.settings)

        async def see_to() -> None:
            answer = None
            try:
                answer = await visit.answer(asked)
            finally:
                if not answered.done():
                    answered.set_result(answer)

        task = self._task(see_to())
        self._visits.append(task)
        task.add_done_callback(self._visited, context=self._world.context)

        async def break_off() -> None:
            task.cancel()

        def hang_up() -> None:
            if not self.is_dead:
                self._task(break_off())

        return hang_up

    def offer(self) -> AbstractContextManager[Spare | None]:
        """See headrace.batch.spare_hands.Offer."""
        assert self._hands is not None
        return self._hands.offer()

    def changed(self) -> None:
        """See Hands and Dispatcher: there may be something to do."""
        assert self._hands is not None
        assert self._dispatcher is not None
        self._hands.wanted.set()
        self._dispatcher.wanted.set()

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Something that the process does: it waits while the process is paused."""
        context = contextvars.copy_context()
        context.run(OWNER.set, self._owner)
        return self._world.loop.create_task(work, name=self.name, context=context)

    def _visited(self, task: asyncio.Task[None]) -> None:
        """Only what was killed, or given up by its client, is not answered."""
        if not self.is_dead and not task.cancelled() and (error := task.exception()) is not None:
            self._world.loop.broken = error

    def _ended(self, root: asyncio.Task[None]) -> None:
        """Only what was killed ends."""
        if not self.is_dead:
            raise root.exception() or AssertionError(f"{self.name} has ended")

    def _resume(self, pause: int) -> None:
        if pause == self._pauses and not self.is_dead:
            self._world.note(self.name, "goes on")
            self.let_go()

    def _silent(self, pause: int) -> None:
        if pause == self._pauses and self._owner.is_paused and self._machine.broker is not None:
            self._machine.broker.left(self._link)

    async def _house(self) -> None:
        """As headrace.compose.batch puts them together."""
        world, machine, link = self._world, self._machine, self._link
        settings, scenario = machine.settings, world.scenario
        store = cast("JobStore", RemoteStore(link))
        objects = cast("ObjectStore", RemoteObjects(link))
        queue: JobQueue = OwnQueue(link)
        if machine.broker is not None:
            queue = SharedQueue(link, machine.broker)
        codec = OipRows()
        self._dispatcher = dispatcher = Dispatcher(
            store=store, queue=queue, settings=settings, metrics=machine.metrics, by=self.name
        )
        self._hands = hands = Hands(
            store=store,
            planner=Planner(
                store=store, objects=objects, codec=codec, clock=self._clock, settings=settings
            ),
            finisher=Finisher(
                store=store, objects=objects, codec=codec, settings=settings, now=self.wall
            ),
            settings=settings,
            metrics=machine.metrics,
            holder=self.name,
            changed=dispatcher.planned,
        )
        leases = _Leases(
            self._working,
            store=store,
            lease_s=settings.lease_s,
            look_s=settings.look_s,
            clock=self._clock,
        )
        worker = Worker(
            store=store,
            objects=objects,
            queue=queue,
            runner=partial(self._runner, Model(link), codec),
            codec=codec,
            leases=leases,
            settings=settings,
            metrics=machine.metrics,
            holder=self.name,
            changed=self.changed,
            done=dispatcher.done,
            offer=hands.offer,
            clock=self._clock,
        )
        warden = Warden(
            store=store,
            objects=objects,
            dispatcher=dispatcher,
            settings=settings,
            changed=self.changed,
        )
        sweep = Sweep(
            store=store,
            objects=objects,
            settings=settings,
            metrics=machine.metrics,
            chance=world.chance.random,
        )
        async with asyncio.TaskGroup() as tasks:
            for work in (
                queue.run,
                leases.run,
                *[hands.run] * scenario.hands,
                hands.run_small,
                *[hands.take_given] * scenario.given_hands,
                dispatcher.run,
                worker.run,
                warden.run,
                sweep.run,
            ):
                tasks.create_task(work())

    async def _runner(self, model: Model, codec: OipRows, _: Job) -> RowRunner:
        world = self._world
        return RowRunner(
            service=model,
            codec=codec,
            mergeable=lambda *_: world.scenario.merged,
            ids=lambda: world.new_id("r", 0.0),
            clock=self._clock,
            sleep=asyncio.sleep,
            chance=world.chance.random,
            settings=self._machine.settings.rows,
        )

    def _working(self, claims: Sequence[Claim]) -> None:
        if self._world.watch is not None and not self.is_dead:
            self._world.watch("working", tuple(claims), None, self.name)

    def _clock(self) -> float:
        return self._world.loop.time() + self._skew_s

    def wall(self) -> float:
        """Seconds since 1970 by its own clock."""
        return self._world.now() - self._skew_s


class _Leases(ChunkLeases):
    """As they are, telling of each change which chunks are worked on."""

    def __init__(self, working: Callable[[Sequence[Claim]], None], **settings: Any) -> None:
        super().__init__(**settings)
        self._working = working
        self._claims: list[Claim] = []

    @contextlib.asynccontextmanager
    async def kept(self, claim: Claim) -> AsyncIterator[Lease]:
        self._claims.append(claim)
        self._working(self._claims)
        try:
            async with super().kept(claim) as lease:
                yield lease
        finally:
            self._claims.remove(claim)
            self._working(self._claims)


class Model:
    """Answers `FACTOR` times its input, as far as that is not negative. See InferenceService."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def infer(self, request: InferRequest, call: Call) -> InferResponse:
        world = self._link.world
        takes_s = world.chance.random() * world.scenario.model_s
        numbers = request.content.inputs[0].array
        args = (call.principal.tenant, *numbers.ravel().tolist())
        process = self._link.process
        if world.watch is not None:
            world.watch("asked", args, None, process.name)
        if (numbers >= POISON).any():
            await asyncio.sleep(takes_s)  # what runs beside it may end
            if world.watch is not None and not process.is_dead:
                world.watch("poisoned", args, None, process.name)
            process.kill()
            raise Killed
        return await self._link.ask(
            "model", "infer", lambda: self._answer(request, numbers), takes_s=takes_s, args=args
        )

    def stream(self, request: InferRequest, call: Call) -> Responses:
        return single(self, request, call)

    def _answer(self, request: InferRequest, numbers: Any) -> InferResponse:
        world = self._link.world
        if world.happens(world.scenario.model_fails):
            raise self._passing_failure()
        if (numbers < 0).any():
            raise ModelFailed("it takes no negative numbers")
        answers = np.asarray(numbers * FACTOR)
        outputs = [Tensor("y", "INT64", answers)]
        if world.happens(world.scenario.model_is_wrong):
            # how many answers there must be is known of rows that may be merged
            short = world.scenario.merged and world.chance.random() < 0.5
            outputs = [Tensor("y", "INT64", answers[:-1])] if short else []
        return InferResponse(request.model, "1", outputs)

    def _passing_failure(self) -> HeadraceError:
        which = self._link.world.chance.randrange(4)
        if which == 0:
            return QueueFull("no room", retry_after_s=0.5)
        if which == 1:
            return NoReadyEndpoint("nobody is ready")
        return failure("model", sent=which == 2)
