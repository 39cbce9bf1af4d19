"""Sends that Python does not see, those of librdkafka and obstore: counted by a library of ours.

It is loaded before all others, so a program that wants it starts itself anew. Without a C compiler
there is none, and then the calls of these libraries are sites, but not what they send.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.support.chaos.sites import Fault

_SOURCE: Final = Path(__file__).with_name("sends.c")
_LIBRARY: Final = Path(__file__).parents[3] / ".cache" / "chaos" / "sends.so"
_PRELOAD: Final = "LD_PRELOAD"
_SEND: Final = "socket send "


def load(module: str, arguments: Sequence[str]) -> None:
    """Start this program anew with the library, unless it is there or cannot be made."""
    preload = os.environ.pop(_PRELOAD, "")  # the servers that are started do not need it
    if str(_LIBRARY) in preload or not _is_made():
        return
    environment = {**os.environ, _PRELOAD: str(_LIBRARY)}
    command = [sys.executable, "-m", module, *arguments]
    os.execve(sys.executable, command, environment)  # noqa: S606 - the very same program


def arm(fault: Fault | None, saying: int) -> None:
    """Count sends from now on; at the one that `fault` names, it happens."""
    nth, after = 0, False
    number = signal.SIGKILL
    if fault is not None and fault.site.startswith(_SEND):
        which, _, when = fault.site.removeprefix(_SEND).partition(":")
        nth, after = int(which), when == "after"
        if fault.action == "pause":
            number = signal.SIGSTOP
    loaded = _loaded()
    if loaded is not None:
        loaded.chaos_arm(ctypes.c_long(nth), int(after), int(number), saying)


def sites() -> list[str]:
    """Two for each send that was counted."""
    loaded = _loaded()
    count = 0 if loaded is None else int(loaded.chaos_seen())
    return [f"{_SEND}{n}:{when}" for n in range(1, count + 1) for when in ("before", "after")]


def _loaded() -> ctypes.CDLL | None:
    loaded = ctypes.CDLL(None)
    return loaded if hasattr(loaded, "chaos_arm") else None


def _is_made() -> bool:
    if _LIBRARY.exists() and _LIBRARY.stat().st_mtime >= _SOURCE.stat().st_mtime:
        return True
    compiler = shutil.which("cc")
    if compiler is None:
        print("NO C COMPILER: what libraries send is not seen")  # noqa: T201 - it is a program
        return False
    _LIBRARY.parent.mkdir(parents=True, exist_ok=True)
    passing = _LIBRARY.with_suffix(f".{os.getpid()}")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-o", passing, _SOURCE, "-ldl"], check=True
    )
    passing.replace(_LIBRARY)
    return True
