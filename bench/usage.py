"""What a process and its descendants have used, from /proc. Source: proc_pid_stat(5)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
# places in /proc/PID/stat after the command's name, which may hold blanks
_PARENT: Final = 1
_UTIME: Final = 11
_CSTIME: Final = 14  # utime, stime, and both again for descendants that are dead and waited for
_RESIDENT_PAGES: Final = 21


def cpu_s(pid: int) -> float:
    """User and system time of `pid` and all its descendants, living and dead."""
    return sum(sum(map(int, s[_UTIME : _CSTIME + 1])) for s in _tree(pid)) * _TICK_S


def resident_bytes(pid: int) -> int:
    """Resident memory of `pid` and its living descendants; shared pages count in each."""
    return sum(int(stat[_RESIDENT_PAGES]) for stat in _tree(pid)) * _PAGE_BYTES


def _tree(pid: int) -> list[list[str]]:
    """The stat fields of `pid` and its descendants; [] where it has ended."""
    stats = {}
    for folder in _PROC.iterdir():
        if folder.name.isdigit():
            try:
                text = (folder / "stat").read_text("utf-8", "replace")
            except OSError:  # it ended since the folder was listed
                continue
            stats[int(folder.name)] = text[text.rindex(")") + 1 :].split()
    found: list[list[str]] = []
    wanted = {pid} & stats.keys()
    while wanted:
        found += [stats[one] for one in wanted]
        wanted = {one for one, stat in stats.items() if int(stat[_PARENT]) in wanted}
    return found
