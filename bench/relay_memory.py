"""The most memory that a process and its descendants held. Source: proc(5), clear_refs, VmHWM.

Each process's own peak is taken, and they are added up: a sum over processes that peak at
different times is too high rather than too low.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_RESET_PEAK: Final = "5"


def forget_peak(pid: int) -> None:
    """Let the peak begin anew, at what is held now."""
    for one in _tree(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            (_PROC / str(one) / "clear_refs").write_text(_RESET_PEAK, "ascii")


def peak_bytes(pid: int) -> int:
    """The most resident memory since `forget_peak`, or since the start."""
    return sum(_field(one, "VmHWM") for one in _tree(pid))


def resident_bytes(pid: int) -> int:
    """Resident memory now, from the same source as the peak."""
    return sum(_field(one, "VmRSS") for one in _tree(pid))


def _field(pid: int, name: str) -> int:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        for line in (_PROC / str(pid) / "status").read_text("utf-8", "replace").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0


def _tree(pid: int) -> Iterator[int]:
    """`pid` and its living descendants."""
    yield pid
    children: set[int] = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        for thread in (_PROC / str(pid) / "task").iterdir():
            children.update(map(int, (thread / "children").read_text("ascii").split()))
    for child in children:
        yield from _tree(child)
