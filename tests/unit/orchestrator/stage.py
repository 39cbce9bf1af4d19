"""What the orchestrator's tests put around it: a clock that stands still, requests, models."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from headrace.domain.errors import InvalidRequest
from headrace.domain.models import Batching, ModelConfig
from headrace.domain.tensors import Array
from headrace.orchestrator.lifecycle import Models
from headrace.orchestrator.metrics import OrchestratorMetrics
from headrace.orchestrator.pending import BatchKey, Pending
from headrace.orchestrator.response_cache import response_cache
from headrace.orchestrator.scheduler import Scheduler
from headrace.orchestrator.settings import OrchestratorSettings
from headrace.ports.executor import Arrays, Executor, ModelSource
from headrace.ports.repository import FoundModel, FoundVersion
from headrace.telemetry.metrics import Metrics
from tests.support.executors import Answer, FakeLoader

START = 1000.0


class Ticks:
    """A stand-in for the module `time`, in which time passes only where a test says so."""

    def __init__(self) -> None:
        self.now_s = 500.0
        self.cpu_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def perf_counter_ns(self) -> int:
        return round(self.now_s * 1e9)

    def thread_time_ns(self) -> int:
        return round(self.cpu_s * 1e9)

    def taking(self, seconds: float, answer: Answer, *, cpu_s: float | None = None) -> Answer:
        """An executor's answer that takes so long; `cpu_s` of it, or all, in the processor."""

        def slow(inputs: Arrays) -> Sequence[Array]:
            self.now_s += seconds
            self.cpu_s += seconds if cpu_s is None else cpu_s
            return answer(inputs)

        return slow


async def turns(count: int = 8) -> None:
    """Let the loop do whatever it can without waiting for time or threads."""
    for _ in range(count):
        await asyncio.sleep(0)


class Clock:
    """The running loop, but for its clock and its timers: these move when a test says so."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._now = START
        self._timers: list[asyncio.TimerHandle] = []
        self.heard: asyncio.Queue[None] = asyncio.Queue()  # one item for each word from a thread

    @property
    def loop(self) -> Any:
        """What a scheduler is given as its loop."""
        return self

    @property
    def armed(self) -> list[float]:
        """When the timers that are set will be due, the first one first."""
        return sorted(timer.when() for timer in self._timers if not timer.cancelled())

    def advance(self, seconds: float) -> None:
        """Move the clock, and do what is due by then."""
        self._now += seconds
        while due := [t for t in self._timers if not t.cancelled() and t.when() <= self._now]:
            self._fire(min(due, key=asyncio.TimerHandle.when))

    def fire_early(self) -> None:
        """Do what is due next although its time has not come, as a coarse clock makes a loop do."""
        self._fire(
            min((t for t in self._timers if not t.cancelled()), key=asyncio.TimerHandle.when)
        )

    def _fire(self, timer: asyncio.TimerHandle) -> None:
        self._timers.remove(timer)
        timer._run()  # noqa: SLF001 - as the loop would

    def time(self) -> float:
        return self._now

    def get_debug(self) -> bool:
        return False

    def create_future(self) -> asyncio.Future[Any]:
        return self._loop.create_future()

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        return self._loop.call_soon(callback, *args, context=context)

    def call_soon_threadsafe(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        def call() -> None:
            callback(*args)
            self.heard.put_nowait(None)

        return self._loop.call_soon_threadsafe(call, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self.loop, context)
        self._timers.append(timer)
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass


def pending(
    *values: float,
    key: BatchKey = (),
    level: int = 2,
    enqueued: float = START,
    deadline: float = math.inf,
    queue_expires: float = math.inf,
    background: bool = False,
) -> Pending:
    """A request of one row for each value. Needs a running loop."""
    return Pending(
        {"x": np.array([[value] for value in values], dtype=np.float32)},
        len(values),
        key,
        level,
        enqueued,
        deadline,
        asyncio.get_running_loop().create_future(),
        queue_expires,
        background=background,
    )


class Stage:
    """A scheduler, its clock, and requests for it."""

    def __init__(
        self,
        *executors: Executor,
        batching: Batching | None = None,
        max_rows: int = 8,
        queue_limit: int = 1000,
    ) -> None:
        self.clock = Clock()
        self.behind_s = 0.0  # that the loop's clock lags behind the exact one
        self.metrics = OrchestratorMetrics(Metrics(version="test")).version("m", "1")
        self.scheduler = Scheduler(
            executors,
            label="m-1",
            batching=batching,
            max_rows=max_rows,
            queue_limit=queue_limit,
            loop=self.clock.loop,
            metrics=self.metrics,
            clock=lambda: self.clock.time() + self.behind_s,
        )
        self.requests: list[Pending] = []

    def request(
        self,
        *values: float,
        key: BatchKey = (),
        priority: int = 0,
        within_s: float = math.inf,
        queue_us: int = 0,
        background: bool = False,
    ) -> Pending:
        """A request as ServedVersion makes it."""
        queue, now = self.scheduler.queue, self.clock.time()
        level = queue.last_level if background else queue.level(priority)
        request = pending(
            *values,
            key=key,
            level=level,
            enqueued=now,
            deadline=now + within_s,
            queue_expires=now + queue.timeout_s(level, queue_us),
            background=background,
        )
        self.requests.append(request)
        return request

    def send(self, *values: float, **options: Any) -> asyncio.Task[Sequence[Array]]:
        """Submit a request; it reaches the queue at the loop's next turn."""
        request = self.request(*values, **options)
        return asyncio.get_running_loop().create_task(self.scheduler.submit(request))

    @property
    def left_over(self) -> dict[str, int]:
        """What should be zero once every request is answered."""
        return {
            "queued": len(self.scheduler.queue),
            "in flight": self.scheduler.in_flight,
            "timers": len(self.clock.armed),
            "unanswered": sum(not request.future.done() for request in self.requests),
        }


NOTHING = {"queued": 0, "in flight": 0, "timers": 0, "unanswered": 0}


def values(arrays: Sequence[Array]) -> list[float]:
    """The elements of the first output."""
    answer: list[float] = arrays[0].ravel().tolist()
    return answer


class FakeRepository:
    """Models that a test puts there; a version's fingerprint says what its files are."""

    def __init__(self) -> None:
        self.models: dict[str, FoundModel] = {}

    def put(
        self,
        name: str,
        versions: Mapping[str, str] | None = None,
        *,
        config: ModelConfig | None = None,
        problems: Mapping[str, str] | None = None,
        problem: str = "",
    ) -> None:
        """Put a model there, or in another's place; `versions` are fingerprints by version."""
        config = config or ModelConfig(name)
        folder = Path("models", name)
        found = {
            version: FoundVersion(
                ModelSource(config, "python", version, folder / version / "model.py", folder),
                fingerprint,
            )
            for version, fingerprint in ({"1": "a"} if versions is None else versions).items()
        }
        self.models[name] = FoundModel(
            name, config, {} if problem else found, problems or {}, problem
        )

    def names(self) -> list[str]:
        return sorted(self.models)

    def find(self, name: str, *, config_json: bytes | None = None) -> FoundModel | None:
        if config_json == b"broken":
            msg = "config is not JSON"
            raise InvalidRequest(msg)
        found = self.models.get(name)
        if found is None or config_json is None:
            return found
        config = hashlib.sha256(config_json).hexdigest()
        versions = {
            version: msgspec.structs.replace(each, fingerprint=each.fingerprint + config)
            for version, each in found.versions.items()
        }
        return msgspec.structs.replace(found, versions=versions)


class House:
    """All models of a process, on a fake repository and a fake loader."""

    def __init__(
        self,
        *,
        drain_s: float = 30.0,
        max_queue_size: int = 1024,
        cache_bytes: int = 0,
        transient: bool = False,
    ) -> None:
        self.repository = FakeRepository()
        self.loader = FakeLoader()
        self.metrics = Metrics(version="test")
        settings = OrchestratorSettings(
            drain_s=drain_s, max_queue_size=max_queue_size, response_cache_bytes=cache_bytes
        )
        orchestrator_metrics = OrchestratorMetrics(self.metrics)
        self.models = Models(
            self.repository,
            loaders={"python": self.loader},
            settings=settings,
            metrics=orchestrator_metrics,
            cache=response_cache(settings, orchestrator_metrics),
            transient=transient,
        )
        self.metrics.observe(self.models.observe)

    def samples(self, family: str) -> dict[tuple[str, ...], float]:
        """What a scrape tells of a family, by its labels' values in the order of their names."""
        body, _ = self.metrics.render()
        return {
            tuple(value for _, value in sorted(sample.labels.items())): sample.value
            for found in text_string_to_metric_families(body.decode())
            for sample in found.samples
            if sample.name == family
        }

    def states(self) -> dict[tuple[str, str], str]:
        """The index, without reasons."""
        return {(entry.name, entry.version): entry.state for entry in self.models.index()}

    def reasons(self) -> dict[tuple[str, str], str]:
        """The index, without states, where there is a reason."""
        return {
            (entry.name, entry.version): entry.reason
            for entry in self.models.index()
            if entry.reason
        }
