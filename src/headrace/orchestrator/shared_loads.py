"""Loads on request: whoever asks for what is being loaded waits for that load."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

Asked: TypeAlias = tuple[str, bytes | None]  # a model, and the configuration sent with the request


class SharedLoad:
    """One load under way, and who waits for it."""

    def __init__(self) -> None:
        self.callers = 0
        #: Whether somebody asked since the files were looked at: they may have changed before.
        self.asked = True


Work: TypeAlias = Callable[[SharedLoad], Coroutine[Any, Any, None]]


class SharedLoads:
    """The loads that were asked for, by what was asked."""

    def __init__(self) -> None:
        self._under_way: dict[Asked, tuple[SharedLoad, asyncio.Task[None]]] = {}

    async def join(self, asked: Asked, work: Work) -> None:
        """Wait for the load that is under way, or begin it; return or raise as it does.

        A caller that goes away leaves it to the others. With the last one it is cancelled.
        """
        load, task = self._under_way.get(asked, (None, None))
        if load is None or task is None or task.done():
            load = SharedLoad()
            task = asyncio.get_running_loop().create_task(work(load))
            self._under_way[asked] = load, task
        load.asked = True
        load.callers += 1
        try:
            await asyncio.wait([task])  # which leaves the task alone if this caller is cancelled
        finally:
            load.callers -= 1
            if not load.callers:
                if self._under_way.get(asked, (None,))[0] is load:
                    del self._under_way[asked]  # at once: nobody may join what is given up
                if not task.done():
                    task.cancel()
                    await asyncio.wait([task])  # so that all is as before when the caller is gone
                if not task.cancelled():
                    task.exception()  # it has been heard
        task.result()
