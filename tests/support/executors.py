"""Executors, and their loader, that do what a test tells them.

The suite in `tests/conformance/executor` holds them to the port, beside the real ones.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeAlias

import numpy as np

from headrace.domain.errors import HeadraceError, InvalidRequest, ModelFailed
from headrace.domain.models import Signature, TensorSpec
from headrace.domain.tensors import Array
from headrace.ports.executor import Arrays, ModelSource

Answer: TypeAlias = Callable[[Arrays], Sequence[Array]]
Answers: TypeAlias = Callable[[Arrays], Iterator[Sequence[Array]]]  # a generator function

#: x FP32 [rows, 1] to y FP32 [rows, 1].
SIGNATURE: Final = Signature(
    (TensorSpec("x", "FP32", (-1, 1)),), (TensorSpec("y", "FP32", (-1, 1)),)
)
_FOREVER_S: Final = 60.0  # a thread that a test forgot ends some day


def plus(amount: float) -> Answer:
    """y = x + amount: the answer tells which executor ran."""

    def answer(inputs: Arrays) -> Sequence[Array]:
        return [inputs["x"] + np.float32(amount)]

    return answer


def counting(inputs: Arrays) -> Iterator[Sequence[Array]]:
    """As many answers as x says in its first row: y = 0, 1, 2 and so on."""
    for i in range(int(inputs["x"][0, 0])):
        yield [np.array([[i]], dtype=np.float32)]


class FakeExecutor:
    """Answers at once, and keeps what it was asked and by which thread; with `answers` a stream."""

    def __init__(
        self,
        answer: Answer | None = None,
        *,
        signature: Signature = SIGNATURE,
        max_batch_size: int = 8,
        bounded: bool = False,
        answers: Answers | None = None,
    ) -> None:
        self.answer = answer or plus(1)
        self.answers = answers
        self.decoupled = answers is not None
        self.signature = signature
        self.max_batch_size = max_batch_size
        self.bounded = bounded
        self.asked: list[Arrays] = []
        self.threads: list[int] = []
        self.closed = 0
        self._ended = threading.Event()

    @property
    def values(self) -> list[list[float]]:
        """The elements of `x`, one list for each run."""
        return [inputs["x"].ravel().tolist() for inputs in self.asked]

    def run(self, inputs: Arrays) -> Sequence[Array]:
        """See Executor.run."""
        assert not self.decoupled
        self._ask(inputs)
        return self.answer(inputs)

    def stream(self, inputs: Arrays) -> Iterator[Sequence[Array]]:
        """See Executor.stream."""
        if self.answers is None:
            yield self.run(inputs)
            return
        self._ask(inputs)
        yield from self.answers(inputs)

    def _ask(self, inputs: Arrays) -> None:
        if self.closed:
            msg = "the model is unloaded"
            raise ModelFailed(msg)
        for spec in self.signature.inputs:
            array = inputs.get(spec.name)
            if array is None or not _fits(array.shape, spec.shape):
                msg = f"the model refuses the input: '{spec.name}'"
                raise InvalidRequest(msg)
        self.threads.append(threading.get_ident())
        self.asked.append(inputs)

    def close(self) -> None:
        """See Executor.close."""
        self.closed += 1
        self._ended.set()

    async def ended(self) -> None:
        """Wait until it is closed, by whatever thread."""
        assert await asyncio.to_thread(self._ended.wait, _FOREVER_S)


def _fits(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    return len(shape) == len(wanted) and all(
        w in {-1, size} for size, w in zip(shape, wanted, strict=True)
    )


class GatedExecutor(FakeExecutor):
    """Begins every run, and ends it only when told to: a model that takes its time."""

    def __init__(self, answer: Answer | None = None, *, max_batch_size: int = 8) -> None:
        super().__init__(self._held, max_batch_size=max_batch_size)
        self._behind = answer or plus(1)
        self._loop = asyncio.get_running_loop()
        self._begun: asyncio.Queue[None] = asyncio.Queue()
        self._gate = threading.Semaphore(0)

    async def begun(self) -> None:
        """Wait until one more run has begun."""
        await self._begun.get()

    def release(self, runs: int = 1) -> None:
        """Let runs end, those that wait or the next ones."""
        self._gate.release(runs)

    def _held(self, inputs: Arrays) -> Sequence[Array]:
        self._loop.call_soon_threadsafe(self._begun.put_nowait, None)
        self._gate.acquire(timeout=_FOREVER_S)
        return self._behind(inputs)


class SteppedExecutor(FakeExecutor):
    """A stream of 0, 1, 2 and so on without end, that takes each step only when told to.

    Told what to raise, it raises it in the place of that answer.
    """

    def __init__(self, *, raises: BaseException | None = None, at: int = 0) -> None:
        super().__init__(answers=self._steps)
        self.raises = raises
        self._at = at
        self._steps_allowed = threading.Semaphore(0)
        self.made = 0  # answers
        self.ended_by = 0  # the thread in which the generator ended; 0 before
        self.begun = threading.Event()

    def allow(self, steps: int = 1) -> None:
        """Let that many answers be made, now or later."""
        self._steps_allowed.release(steps)

    def _steps(self, _: Arrays) -> Iterator[Sequence[Array]]:
        self.begun.set()
        try:
            for i in range(10**6):
                self._steps_allowed.acquire(timeout=_FOREVER_S)
                if self.raises is not None and i == self._at:
                    raise self.raises
                self.made += 1
                yield [np.array([[i]], dtype=np.float32)]
        finally:
            self.ended_by = threading.get_ident()


class Hold:
    """A load that has to wait."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._begun = asyncio.Event()
        self._gate = threading.Event()

    async def begun(self) -> None:
        """Wait until the load has begun."""
        await self._begun.wait()

    def release(self) -> None:
        """Let it go on."""
        self._gate.set()

    def wait(self) -> None:
        """Called by the load, on its thread."""
        self._loop.call_soon_threadsafe(self._begun.set)
        self._gate.wait(_FOREVER_S)


Made: TypeAlias = Sequence[FakeExecutor] | BaseException


class FakeLoader:
    """Loads `plus(1)`, then `plus(2)` and so on, unless it was told otherwise for a version."""

    def __init__(self) -> None:
        self.loaded: list[tuple[str, str]] = []
        self.executors: list[FakeExecutor] = []  # all that were ever handed out, in order
        self._next: dict[tuple[str, str], list[Made]] = {}
        self._holds: dict[tuple[str, str], Hold] = {}

    def will(self, model: str, version: str, *made: Made) -> None:
        """What the next loads of a version answer or raise."""
        self._next.setdefault((model, version), []).extend(made)

    def hold(self, model: str, version: str) -> Hold:
        """Make the next load of a version wait."""
        hold = self._holds[model, version] = Hold()
        return hold

    def load(self, source: ModelSource) -> Sequence[FakeExecutor]:
        """See ExecutorLoader.load."""
        key = (source.config.name, source.version)
        self.loaded.append(key)
        planned = self._next.get(key)
        made: Made = (
            planned.pop(0)
            if planned
            else [FakeExecutor(plus(len(self.loaded))) for _ in range(source.config.instances)]
        )
        if hold := self._holds.pop(key, None):
            hold.wait()
        if isinstance(made, BaseException):
            raise made
        self.executors.extend(made)
        return made


def failing(error: HeadraceError | BaseException, *, at: float | None = None) -> Answer:
    """y = x + 1, but `error` where an element of x is `at`, or always."""

    def answer(inputs: Arrays) -> Sequence[Array]:
        if at is None or at in inputs["x"]:
            raise error
        return plus(1)(inputs)

    return answer
