"""Starts `headrace serve` as its own process, the way a user does, and stops it by its pid."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

_START_S = 30.0
_STOP_S = 20.0


class Answer:
    """A whole HTTP answer."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers  # lower-case names
        self.body = body

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The sentence of an Open Inference Protocol error."""
        return str(self.json()["error"])


class Server:
    """A running platform."""

    def __init__(self, process: subprocess.Popen[bytes], log_file: Path) -> None:
        self.process = process
        self.port = 0
        self._log_file = log_file

    @property
    def address(self) -> str:
        """host:port, as tritonclient wants it."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """http://host:port."""
        return f"http://{self.address}"

    def log(self) -> list[dict[str, Any]]:
        """The JSON log lines written so far, without one that is half written."""
        lines = self.log_text().splitlines(keepends=True)
        return [json.loads(x) for x in lines if x.startswith("{") and x.endswith("\n")]

    def foreign_lines(self) -> list[str]:
        """What stands in the log and is no JSON line of ours: a warning, a traceback."""
        return [line for line in self.log_text().splitlines() if not line.startswith("{")]

    def log_text(self) -> str:
        """All that was written to stderr and stdout."""
        return self._log_file.read_text("utf-8")

    def request(
        self,
        method: str,
        path: str,
        body: bytes | str | dict[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 30.0,
    ) -> Answer:
        """One request on a connection of its own."""
        if isinstance(body, dict):
            body = json.dumps(body)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, response.read())
        finally:
            connection.close()

    def infer(self, model: str, body: dict[str, Any] | bytes | str, **headers: str) -> Answer:
        """POST an inference request; header names are given with '_' for '-'."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.request("POST", f"/v2/models/{model}/infer", body, named)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry `labels`; 0 where there is none."""
        text = self.request("GET", "/metrics").body.decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal the process and wait for its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(_STOP_S)


@contextlib.contextmanager
def serving(
    models: Path | None,
    log_file: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    ready: bool = True,
) -> Iterator[Server]:
    """Serve the model repository `models`, or the registry alone, until the block ends.

    Waits until the HTTP port answers, and with `ready` until /readyz is 200.
    """
    folder = [] if models is None else [str(models)]
    command = [sys.executable, "-m", "headrace", "serve", *folder, "--http-port=0",
               "--grpc-port=0", "--log-format=json", *arguments]  # fmt: skip
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={
                **os.environ,
                "HEADRACE_STORAGE__DATA_DIR": str(log_file.with_suffix(".data")),
                **(environment or {}),
            },
        )
    server = Server(process, log_file)
    try:
        eventually(lambda: _listening(server), timeout_s=_START_S)
        if ready:
            eventually(lambda: server.request("GET", "/readyz").status == 200, timeout_s=_START_S)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _listening(server: Server) -> bool:
    if server.process.poll() is not None:
        msg = f"the platform ended with {server.process.returncode}:\n{server.log_text()}"
        raise AssertionError(msg)
    for line in server.log():
        if "http_port" in line:
            server.port = int(line["http_port"])
            return True
    return False


def eventually(
    condition: Any,
    *,
    timeout_s: float = 10.0,
    interval_s: float = 0.01,
    otherwise: str = "not true",
) -> Any:
    """Poll until `condition()` is true and return what it gave.

    Raises:
        AssertionError: it was not in time; the message begins with `otherwise`.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            msg = f"{otherwise} within {timeout_s} s"
            raise AssertionError(msg)
        time.sleep(interval_s)


def run_cli(
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float = 60.0,
) -> subprocess.CompletedProcess[str]:
    """Run `headrace ARGUMENTS` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "headrace", *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        timeout=timeout_s,
    )
