"""A simulated process: the real parts of the batch service, over links that may fail."""

from __future__ import annotations

import asyncio
import contextvars
from functools import partial
from typing import Any, Final, cast

import numpy as np

from headrace.batch.chunk_leases import ChunkLeases
from headrace.batch.dispatcher import Dispatcher
from headrace.batch.finisher import Finisher
from headrace.batch.hands import Hands
from headrace.batch.metrics import BatchMetrics
from headrace.batch.planner import Planner
from headrace.batch.row_runner import RowRunner, RowRunnerSettings
from headrace.batch.settings import BatchSettings
from headrace.batch.warden import Warden
from headrace.batch.worker import Worker
from headrace.domain.calls import Call
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
from tests.support.simulation.link import Link, RemoteObjects, RemoteStore, failure
from tests.support.simulation.scenario import Scenario
from tests.support.simulation.virtual_time import OWNER, Owner
from tests.support.simulation.world import World

#: What the model makes of a number.
FACTOR: Final = 3


def settings_of(scenario: Scenario) -> BatchSettings:
    """How the processes of a scenario are set up."""
    return BatchSettings(
        chunks_in_hand=scenario.chunks_in_hand,
        lease_s=scenario.lease_s,
        look_s=scenario.look_s,
        max_retry_delay_s=8.0,
        rows=RowRunnerSettings(timeout_s=30.0, retry_max_s=2.0, patience_s=4.0),
        chunk_rows=scenario.chunk_rows,
        min_window_s=1,
        window=scenario.window,
        requeue_after_s=scenario.lease_s,
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
        self.deaths.append((process.name, self.world.loop.time()))
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

    def start(self) -> None:
        """Begin all that a process runs."""
        context = contextvars.copy_context()
        context.run(OWNER.set, self._owner)
        self.root = self._world.loop.create_task(self._house(), name=self.name, context=context)
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
        self.root.cancel()
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
        world.is_late = True
        self._owner.is_paused = True
        self._pauses += 1
        world.later(seconds, self._resume, self._pauses)
        if self._machine.broker is not None:
            world.later(SESSION_S, self._silent, self._pauses)

    def let_go(self) -> None:
        """Go on after a pause."""
        if self._owner.is_paused:
            self._world.loop.let_go(self._owner)

    def changed(self) -> None:
        """See Hands and Dispatcher: there may be something to do."""
        assert self._hands is not None
        assert self._dispatcher is not None
        self._hands.wanted.set()
        self._dispatcher.wanted.set()

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
            planner=Planner(store=store, objects=objects, codec=codec, settings=settings),
            finisher=Finisher(
                store=store, objects=objects, codec=codec, settings=settings, now=self._wall
            ),
            settings=settings,
            metrics=machine.metrics,
            holder=self.name,
            changed=self.changed,
        )
        leases = ChunkLeases(
            store=store, lease_s=settings.lease_s, look_s=settings.look_s, clock=self._clock
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
            clock=self._clock,
        )
        warden = Warden(
            store=store,
            objects=objects,
            dispatcher=dispatcher,
            settings=settings,
            changed=self.changed,
        )
        async with asyncio.TaskGroup() as tasks:
            for work in (
                queue.run,
                leases.run,
                *[hands.run] * scenario.hands,
                dispatcher.run,
                worker.run,
                warden.run,
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

    def _clock(self) -> float:
        return self._world.loop.time() + self._skew_s

    def _wall(self) -> float:
        return self._world.now() - self._skew_s


class Model:
    """Answers `FACTOR` times its input, as far as that is not negative. See InferenceService."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def infer(self, request: InferRequest, call: Call) -> InferResponse:
        world = self._link.world
        takes_s = world.chance.random() * world.scenario.model_s
        numbers = request.content.inputs[0].array
        args = (call.principal.tenant, *numbers.ravel().tolist())
        if world.watch is not None:
            world.watch("asked", args, None, self._link.process.name)
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
