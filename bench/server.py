"""Starts what is measured as its own process, asks it, and stops it by its pid."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

from prometheus_client.parser import text_string_to_metric_families

from bench import cores, usage
from bench.child import ROOT
from bench.failure import BenchFailure

Subject = Literal["headrace", "naive"]
SUBJECTS: Final[tuple[Subject, ...]] = ("headrace", "naive")

_START_S: Final = 60.0
_STOP_S: Final = 20.0
_POLL_S: Final = 0.003
_ASK_S: Final = 30.0
_OK: Final = 200
_SHOWN_LINES: Final = 10
_READY: Final = "/readyz"


class Server:
    """A running server that answered its readiness probe."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        log_file: Path,
        *,
        subject: str,
        port: int = 0,
        probe: str = _READY,
    ) -> None:
        self._process = process
        self._log_file = log_file
        self._subject = subject
        self._probe = probe
        self.port = port  # 0: it takes a free one, and says so in its log
        self.grpc_port = 0  # where its log tells of one
        self.ready_s = 0.0  # from the process's start to the probe's 200

    @property
    def pid(self) -> int:
        return self._process.pid

    def resident_mb(self) -> float:
        """Resident memory now, with children, in MB of 10^6 bytes."""
        return usage.resident_bytes(self.pid) / 1e6

    def ask(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> tuple[int, dict[str, str], bytes]:
        """See the function of this name."""
        return ask(self.port, method, path, headers, body)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry `labels`."""
        _, _, body = self.ask("GET", "/metrics")
        return sum(
            sample.value
            for family in text_string_to_metric_families(body.decode())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def log_end(self) -> str:
        """The last lines that it wrote."""
        return "\n".join(self._log_file.read_text("utf-8", "replace").splitlines()[-_SHOWN_LINES:])

    def await_ready(self, began: float) -> None:
        """Wait for the probe's 200.

        Raises:
            BenchFailure: it ended, or was not ready in time; with the end of its log.
        """
        while not (self._find_port() and self._is_ready()):
            if self._process.poll() is not None:
                code = self._process.returncode
                raise BenchFailure(f"{self._subject} ended with {code}:\n{self.log_end()}")
            if time.perf_counter() - began > _START_S:
                msg = f"{self._subject} was not ready within {_START_S:.0f} s:\n{self.log_end()}"
                raise BenchFailure(msg)
            time.sleep(_POLL_S)
        self.ready_s = time.perf_counter() - began

    def _find_port(self) -> bool:
        if not self.port:
            for line in self._log_file.read_bytes().split(b"\n")[:-1]:  # whole lines only
                if line.startswith(b"{") and b'_port"' in line:
                    told = json.loads(line)
                    self.port = int(told.get("http_port", 0))
                    self.grpc_port = int(told.get("grpc_port", 0))
        return bool(self.port or self.grpc_port)

    def _is_ready(self) -> bool:
        if not self.port:  # of gRPC alone: ready where it tells of its port
            return True
        try:
            status, _, _ = self.ask("GET", self._probe)
        except (OSError, http.client.HTTPException):
            return False
        return status == _OK


def ask(
    port: int, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers with lower-case names, and body of the answer to one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ASK_S)
    try:
        connection.request(method, path, body or None, dict(headers or {}))
        answer = connection.getresponse()
        names = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, names, answer.read()
    finally:
        connection.close()


@contextlib.contextmanager
def serving(
    subject: Subject,
    repository: Path | None,
    log_file: Path,
    *,
    on: frozenset[int],
    data_dir: Path | None = None,
) -> Iterator[Server]:
    """Serve `repository` with default settings on the given cores until the block ends.

    None serves what is in the registry in `data_dir` alone, which is else a new one.
    """
    own = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
    own["HEADRACE_STORAGE__DATA_DIR"] = str(data_dir or log_file.with_suffix(".data"))
    command = _command(subject, repository)
    with running(command, log_file, subject=subject, on=on, environment=own) as server:
        yield server


@contextlib.contextmanager
def running(
    command: Sequence[str],
    log_file: Path,
    *,
    subject: str,
    on: frozenset[int],
    environment: Mapping[str, str],
    port: int = 0,
    probe: str = _READY,
) -> Iterator[Server]:
    """Run a server on the given cores until the block ends; it begins when the probe says 200.

    `port` is where the command makes it listen; 0: it takes a free one, and writes it as a JSON
    line with `http_port`, or `grpc_port` alone where it speaks nothing else.

    Raises:
        BenchFailure: it ended, or was not ready in time; with the end of its log.
    """
    with log_file.open("wb") as log, cores.on(on):
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    server = Server(process, log_file, subject=subject, port=port, probe=probe)
    try:
        server.await_ready(began)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _command(subject: Subject, repository: Path | None) -> Sequence[str]:
    folder = [] if repository is None else [str(repository)]
    if subject == "naive":
        return [sys.executable, "-m", "bench.naive", *folder]
    return [sys.executable, "-m", "headrace", "serve", *folder, "--http-port=0", "--grpc-port=0",
            "--log-format=json"]  # fmt: skip
