"""Work in forked processes: nothing of what it starts, threads above all, stays with who forks."""

from __future__ import annotations

import ctypes
import os
import signal
import traceback
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def fork(work: Callable[[], None]) -> int:
    """The pid of a process that does `work` and ends; it dies with whoever forked it."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:  # it may be dead already
            work()
            code = 0
    except BaseException:  # noqa: BLE001 - the root of the process
        traceback.print_exc()
    finally:
        os._exit(code)


def aside(work: Callable[[], str]) -> str:
    """What `work` answers in a process of its own; it is waited for."""
    reading, writing = os.pipe()

    def tell() -> None:
        with os.fdopen(writing, "w") as out:
            out.write(work())

    pid = fork(tell)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, "a process that was to look at something failed"
    return text
