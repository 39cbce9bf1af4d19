"""`headrace serve` as its users start it, on an address that stays when it is killed."""

from __future__ import annotations

import contextlib
import itertools
import signal
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.support.chaos.model import BAD, NAME
from tests.support.ports import free_port
from tests.support.process import Server, serving

_MODEL: Final = f"""\
from headrace import InvalidRequest, Model, TensorSpec


class Double(Model):
    inputs = (TensorSpec("x", "FP64", (1,)),)
    outputs = (TensorSpec("y", "FP64", (1,)),)
    max_batch_size = 4

    def predict(self, inputs):
        if (inputs["x"] >= {BAD!r}).any():
            raise InvalidRequest("a value is too large")
        return {{"y": inputs["x"] * 2}}
"""
#: Leases are over soon, since tests wait for it.
_BATCH: Final = {
    "LEASE_S": "1.5",
    "LOOK_S": "0.1",
    "REQUEUE_AFTER_S": "1.5",
    "CHUNK_ROWS": "10",
}


class Platform:
    """One process at a time, over the same data. Start it, kill it, start it again."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        self._folder = folder
        self._numbers = itertools.count(1)
        self._data = folder / "data"
        self._models = folder / "models"
        self._environment = {
            "HEADRACE_STORAGE__DATA_DIR": str(self._data),
            **{f"HEADRACE_BATCH__{name}": value for name, value in _BATCH.items()},
            **(settings or {}),
        }
        self._stack = contextlib.ExitStack()
        self._server: Server | None = None
        version = self._models / NAME / "1"
        version.mkdir(parents=True)
        (version / "model.py").write_text(_MODEL)

    @property
    def url(self) -> str:
        """Where the SDK asks."""
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Start it and wait until it is ready."""
        log = self._folder / f"platform-{next(self._numbers)}.log"
        self._server = self._stack.enter_context(
            serving(self._models, log, f"--http-port={self.port}", environment=self._environment)
        )

    def kill(self) -> None:
        """End it at once; and let a minute pass for whoever holds an idempotency key."""
        assert self._server is not None
        assert self._server.stop(signal.SIGKILL) == -signal.SIGKILL
        self._stack.close()
        file = self._data / "registry.db"
        with contextlib.closing(sqlite3.connect(file, timeout=10.0)) as connection:
            connection.execute("UPDATE idempotency_keys SET until_us = 0 WHERE answer IS NULL")
            connection.commit()

    def close(self) -> None:
        """End it in an orderly manner."""
        self._stack.close()
