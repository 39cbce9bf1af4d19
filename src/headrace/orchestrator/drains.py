"""Versions that are served no more, until they have ended what they have."""

from __future__ import annotations

import asyncio
import gc
import logging

from headrace.orchestrator.metrics import OrchestratorMetrics
from headrace.orchestrator.served_version import ServedVersion

_logger = logging.getLogger(__name__)


class Drains:
    """Lets versions end in their own time, which is `drain_s` at most; then they are closed."""

    def __init__(self, *, drain_s: float, metrics: OrchestratorMetrics) -> None:
        self._drain_s = drain_s
        self._metrics = metrics
        self._under_way: dict[asyncio.Task[None], ServedVersion] = {}

    def begin(self, served: ServedVersion) -> asyncio.Task[None]:
        """End a version that no new request can reach. The task goes on without a waiter."""
        task = asyncio.get_running_loop().create_task(self._end(served))
        self._under_way[task] = served
        task.add_done_callback(self._under_way.pop)
        return task

    def requests(self) -> dict[tuple[str, str], int]:
        """The requests under way by model and version, where there are any."""
        found: dict[tuple[str, str], int] = {}
        for served in self._under_way.values():
            if requests := served.scheduler.in_flight:
                key = served.model, served.version
                found[key] = found.get(key, 0) + requests
        return found

    async def wait(self) -> None:
        """Wait until all has ended, for the drain time at most."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=self._drain_s)

    async def _end(self, served: ServedVersion) -> None:
        outcome = "cut_off"
        try:
            async with asyncio.timeout(self._drain_s):
                await served.scheduler.drain()
            outcome = "ended"
        except TimeoutError:
            _logger.warning(
                "model %s version %s is unloaded with %d requests unfinished",
                served.model, served.version, served.scheduler.in_flight,
            )  # fmt: skip
        finally:
            self._metrics.drains.labels(served.model, outcome).value += 1
            served.scheduler.close()
            collect_soon()


def collect_soon() -> None:
    """Collect garbage once the frames that held a model are gone.

    What it held may be large, and refers to itself in many ways.
    """
    asyncio.get_running_loop().call_soon(gc.collect)
