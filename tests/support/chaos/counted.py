"""What makes a process pass sites: its ports, its awaits, its sockets, its files."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import socket
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from types import CodeType
from typing import Any, Final

import headrace
from headrace.adapters.sql import sqlite, sqlite_changes
from headrace.ports.job_queue import Delivery
from tests.support.chaos.sites import Sites

_SOURCE: Final = str(Path(headrace.__file__).parent)
_INTERNET: Final = frozenset({socket.AF_INET, socket.AF_INET6})
_FILE_CALLS: Final = ("fsync", "link", "mkdir", "rename", "replace", "unlink")
_SENDS: Final = ("send", "sendall", "sendmsg", "sendto")


class Counted:
    """A port whose every call is two sites: before it, and after it.

    What a call yields piece by piece is a site with each piece.
    """

    def __init__(self, port: Any, name: str, sites: Sites) -> None:
        self._port = port
        self._name = name
        self._sites = sites

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._port, name)
        wrapped = counted(found, f"{self._name}.{name}", self._sites)
        if wrapped is not found:
            setattr(self, name, wrapped)
        return wrapped


def counted(function: Any, name: str, sites: Sites) -> Any:
    """The same, with sites around it; as it is where it is neither awaited nor iterated over."""
    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        async def pieces(*args: Any, **kwargs: Any) -> Any:
            sites.passed(f"{name}:before")
            async for piece in function(*args, **kwargs):
                sites.passed(f"{name}:piece")
                yield piece
            sites.passed(f"{name}:after")

        return pieces
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def around(*args: Any, **kwargs: Any) -> Any:
            sites.passed(f"{name}:before")
            result = await function(*args, **kwargs)
            sites.passed(f"{name}:after")
            return _CountedDelivery(result, sites) if name.endswith(".take") else result

        return around
    return function


class _CountedDelivery:
    """A delivery whose acknowledgement is two sites."""

    def __init__(self, delivery: Delivery, sites: Sites) -> None:
        self._delivery = delivery
        self._sites = sites

    def __getattr__(self, name: str) -> Any:
        return getattr(self._delivery, name)

    def done(self) -> None:
        self._sites.passed("queue.done:before")
        self._delivery.done()
        self._sites.passed("queue.done:after")


class Steps(Coroutine[Any, Any, Any]):
    """A task's coroutine; each await that waits is two sites: when it begins, and when it ends."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], sites: Sites) -> None:
        self.__qualname__ = getattr(coroutine, "__qualname__", "")
        self._coroutine = coroutine
        self._sites = sites

    def send(self, value: Any) -> Any:
        """Go on to the next await."""
        self._pass("go on")
        result = self._coroutine.send(value)
        self._pass("wait")
        return result

    def throw(self, *error: Any) -> Any:
        """Go on with an error."""
        self._pass("go on")
        result = self._coroutine.throw(*error)
        self._pass("wait")
        return result

    def close(self) -> None:
        """End it."""
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._coroutine.__await__()

    def _pass(self, what: str) -> None:
        if self._sites.armed:
            place = _place(self._coroutine)
            if place:
                self._sites.passed(f"{place}:{what}")


def _place(coroutine: Any) -> str:
    """At which lines of ours a coroutine is; "" where none of ours is in it.

    The innermost one, behind the innermost one that is no adapter's.
    """
    place = adapter = ""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None)
        if frame is not None and _is_ours(frame.f_code):
            name = frame.f_code.co_filename.removeprefix(_SOURCE + os.sep)
            if name.startswith("adapters"):
                adapter = f"{name}:{frame.f_lineno}"
            else:
                place, adapter = f"{name}:{frame.f_lineno}", ""
        coroutine = getattr(coroutine, "cr_await", None)
    return f"{place}>{adapter}" if adapter else place


@functools.cache
def _is_ours(code: CodeType) -> bool:
    return code.co_filename.startswith(_SOURCE)


def count_awaits(loop: asyncio.AbstractEventLoop, sites: Sites) -> None:
    """Every await of every task that begins from now on is a site."""

    def make(
        loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **kwargs: Any
    ) -> asyncio.Task[Any]:
        return asyncio.Task(Steps(coroutine, sites), loop=loop, **kwargs)

    loop.set_task_factory(make)  # type: ignore[arg-type]


def count_system(sites: Sites) -> None:
    """Every send on a socket, every step of a file and every commit of SQLite is two sites.

    For the rest of the process's life. Only what Python sends is seen: see native.py.
    """
    for name in _FILE_CALLS:
        setattr(os, name, _around(getattr(os, name), f"os.{name}", sites))
    for name in _SENDS:
        setattr(socket.socket, name, _around(getattr(socket.socket, name), "send", sites, _is_far))
    for module in (sqlite, sqlite_changes):
        for name in ("_commit", "_fetch"):
            place = f"{module.__name__.rpartition('.')[2]}.{name.strip('_')}"
            setattr(module, name, _around(getattr(module, name), place, sites))


def _around(
    function: Callable[..., Any],
    name: str,
    sites: Sites,
    counts: Callable[..., bool] = lambda *_: True,
) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if not counts(*args):
            return function(*args, **kwargs)
        sites.passed(f"{name}:before")
        result = function(*args, **kwargs)
        sites.passed(f"{name}:after")
        return result

    return call


def _is_far(sock: socket.socket, *_: Any) -> bool:
    """Whether somebody else is at the other end: loops wake themselves by a socket, too."""
    return sock.family in _INTERNET
