"""A server that tests need, as its own process: started, frozen and killed by its pid."""

from __future__ import annotations

import abc
import contextlib
import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Final

from tests.support.process import eventually

STOP_S: Final = 10.0
_LOG_TAIL: Final = 3000  # characters


class ServerProcess(abc.ABC):
    """A server whose command, and so its address, stays when it is started again.

    It runs in the folder of its log. `leads` gives it a process group of its own, in which the
    processes that it starts are, too.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log_file: Path,
        start_s: float,
        environment: Mapping[str, str] | None = None,
        leads: bool = False,
    ) -> None:
        self.log_file = log_file
        self._name = name
        self._command = command
        self._start_s = start_s
        self._environment = environment
        self._leads = leads
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it and wait until it answers. Raises AssertionError with its log."""
        assert not self.running, f"{self._name} is running"
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.log_file.parent,
                env=self._environment,
                start_new_session=self._leads,
            )
        try:
            eventually(self._is_up, timeout_s=self._start_s, interval_s=0.02)
        except AssertionError as error:
            self.kill()
            msg = f"{self._name} did not start ({error}):\n{self.log()[-_LOG_TAIL:]}"
            raise AssertionError(msg) from error

    def kill(self) -> None:
        """End it at once, as a crash would, and with it the group that it leads."""
        if self._process is not None:
            self._send(signal.SIGKILL)
            self._process.wait(STOP_S)

    def freeze(self) -> None:
        """Let it answer nothing, with its connections open."""
        assert self.running, f"{self._name} is not running"
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._send(signal.SIGCONT)

    def log(self) -> str:
        """All that it printed."""
        return self.log_file.read_text(errors="replace")

    @abc.abstractmethod
    def _answers(self) -> bool:
        """Whether it serves; it may not have begun to listen."""

    def _is_up(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"it ended with {self._process.returncode}"
        return self._answers()

    def _send(self, number: signal.Signals) -> None:
        assert self._process is not None, f"{self._name} was not started"
        if self._leads:
            # the group outlives the server while a process that it started does
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
        else:
            self._process.send_signal(number)


def is_ok(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:  # noqa: S310
            return bool(answer.status == HTTPStatus.OK)
    except (OSError, urllib.error.URLError):
        return False
