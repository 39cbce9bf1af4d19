"""What is known of a version: its state, and how far a load of it has come."""

from __future__ import annotations

import enum

import msgspec

from headrace.orchestrator.served_version import ServedVersion


class State(enum.StrEnum):
    """A version's state, in the words of Triton's repository index."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


class Progress(msgspec.Struct):
    """How far a load has come. The thread that warms up writes it; readers may be a step behind."""

    done: int = 0
    total: int = 0  # warm-up requests, over all instances; 0 until the first is due

    def tell(self, done: int, total: int) -> None:
        """Say how many warm-up requests have been run."""
        self.total = total
        self.done = done

    @property
    def step(self) -> str:
        """What the load is at."""
        if not self.total:
            return "loading its files"
        return f"warming up: {self.done} of {self.total} requests"


class VersionRecord(msgspec.Struct):
    """What is known of a version; `served` is set exactly while it can be asked."""

    state: State
    reason: str = ""
    fingerprint: str = ""
    served: ServedVersion | None = None
    progress: Progress | None = None  # of the load under way
    loaded: int = 0  # which load of the process it was that ended so; later ones are higher

    @property
    def told(self) -> str:
        """The reason as the index tells it: a load under way tells its step."""
        if self.progress is None:
            return self.reason
        return self.progress.step if self.served is None else f"reloading: {self.progress.step}"
