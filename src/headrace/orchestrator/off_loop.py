"""Blocking work beside the event loop, on a thread that nobody has to wait for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def off_loop(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `function` on a daemon thread of its own and wait for what it returns or raises.

    `asyncio.to_thread` would let a model that hangs while it loads keep the process from ending:
    the default executor's threads are joined at exit.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def finish(result: T | None, error: Exception | None) -> None:
        if future.done():  # nobody waits any more
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result = None
        error: Exception | None = None
        try:
            result = function(*args, **kwargs)
        except StopIteration as raised:  # no future can carry it (PEP 479)
            error = RuntimeError(f"StopIteration: {raised}")
        except Exception as raised:  # noqa: BLE001 - handed to the one who waits
            error = raised
        except BaseException as raised:  # noqa: BLE001 - on the loop it would end the process
            error = RuntimeError(f"{type(raised).__name__}: {raised}")
        try:
            loop.call_soon_threadsafe(finish, result, error)
        except RuntimeError:  # the loop is closed: the process is ending
            return

    threading.Thread(target=run, name=f"off-loop-{function.__name__}", daemon=True).start()
    return await future
