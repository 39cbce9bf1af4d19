"""Places that a process passes on the path of a job, and the one at which it dies."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from typing import Literal, TypeAlias

import msgspec

Action: TypeAlias = Literal["kill", "pause"]


class Fault(msgspec.Struct, frozen=True):
    """What happens to a process when it passes a site for the `nth` time; 1 is the first."""

    site: str
    nth: int = 1
    action: Action = "kill"


class Sites:
    """Counts how often each site is passed. `tell` is told of the fault just before it happens.

    Sites are passed by the loop's thread and by those that block on files and on SQLite.
    """

    def __init__(self, fault: Fault | None, *, tell: Callable[[str], None]) -> None:
        self.seen: Counter[str] = Counter()
        self.armed = False
        self._fault = fault
        self._tell = tell
        self._lock = threading.Lock()

    def passed(self, site: str) -> None:
        """Count, and die if it is time to."""
        if not self.armed:
            return
        with self._lock:
            self.seen[site] += 1
            fault = self._fault
            if fault is None or fault.site != site or fault.nth != self.seen[site]:
                return
            self._fault = None
            self._tell(f"fault {site}")
            if fault.action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGSTOP)
