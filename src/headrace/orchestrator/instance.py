"""One executor and the thread that runs what is too long for the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from typing import TypeAlias

from headrace.domain.errors import ModelFailed
from headrace.orchestrator.batching import Run
from headrace.orchestrator.execution import Execution, execute, execute_stream
from headrace.ports.executor import Executor

Finished: TypeAlias = "Callable[[Instance, Run, Execution], None]"

_logger = logging.getLogger(__name__)


class Instance:
    """Runs one batch at a time, here or on its own thread."""

    def __init__(
        self, executor: Executor, *, name: str, loop: asyncio.AbstractEventLoop, finished: Finished
    ) -> None:
        self.executor = executor
        self._executed = execute_stream if executor.decoupled else execute
        self.run: Run | None = None  # what it works on
        self.since = 0.0  # when that began, on the loop's clock
        self._name = name
        self._loop = loop
        self._finished = finished
        self._work: queue.SimpleQueue[Run | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def run_here(self, run: Run) -> Execution:
        """Run on the calling thread, the loop's."""
        return self._execute(run)

    def run_on_thread(self, run: Run) -> None:
        """Run on the instance's thread; `finished` is called on the loop."""
        if self._thread is None:
            # a daemon: a model that never returns must not keep the process from ending
            self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._thread.start()
        self._work.put(run)

    def abandoned(self, now: float, after_s: float) -> bool:
        """Whether it has worked for `after_s` on something that nobody waits for any more.

        Of a stream counts the work on its next answer alone.
        """
        if self.run is None:
            return False
        since = self.since
        for request in self.run.requests:
            if not request.future.done():
                return False
            if request.outlet is not None:
                since = max(since, request.outlet.moved)
        return now - since > after_s

    def close(self) -> None:
        """End the thread once its work is done, then release the executor."""
        if self._thread is None:
            self._release()
        else:
            self._work.put(None)

    def _serve(self) -> None:
        while (run := self._work.get()) is not None:
            execution = self._execute(run)
            try:
                self._loop.call_soon_threadsafe(self._finished, self, run, execution)
            except RuntimeError:  # the loop is closed: nobody is left to tell
                return
            del run, execution  # or the last batch would be held until the next one comes
        self._release()

    def _release(self) -> None:
        self.executor.close()
        del self.executor  # what refers to the instance for a while yet must not keep the model

    def _execute(self, run: Run) -> Execution:
        try:
            return self._executed(self.executor, run.requests, run.rows)
        except BaseException as error:  # a panic in a Rust extension is no Exception
            with contextlib.suppress(Exception):  # the thread must survive even its log line
                _logger.exception("an executor of %s broke its contract", self._name)
            failure = ModelFailed(f"the executor failed: {type(error).__name__}")
            return Execution([failure] * len(run.requests), 0, 0, 0, 0)
