"""Runs the Triton of the wheel `nvidia-pytriton`, on the CPU and as its own process.

`make test` puts it, with the interpreter that its models run in, into an environment of its own:
the models need a NumPy before 2, with which this Triton was built. With NumPy 2 their outputs
arrive empty, and nothing says so.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.support.ports import free_ports
from tests.support.process import eventually
from tests.support.server_process import STOP_S, ServerProcess, is_ok
from tests.support.triton_repository import MODELS, lay_out

_ENVIRONMENT: Final = Path(sys.prefix, "triton")
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - where Triton's Python backend keeps tensors
_START_S: Final = 60.0
_PROBE: Final = (
    "import sys, sysconfig; "
    "print(sysconfig.get_path('purelib'), sysconfig.get_config_var('LIBDIR'), "
    "'%d.%d' % sys.version_info[:2], sep='\\n')"
)


class Triton(ServerProcess):
    """A server on ports of its own, which it keeps when it is started again.

    By default under explicit model control, with every model of the repository loaded.
    """

    def __init__(
        self,
        folder: Path,
        repository: Path,
        *,
        load: Sequence[str] = ("*",),
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.repository = repository
        self.http_port, self.grpc_port, self.metrics_port = free_ports(3)
        # in the names of what it keeps in shared memory, where a killed server leaves it
        self._mark = f"headrace-{uuid.uuid4().hex}"
        folder.mkdir(parents=True, exist_ok=True)
        backends = _link_backend(folder / "backends")
        where = _installed()
        command = [
            str(where.server),
            f"--model-repository={self.repository}",
            f"--backend-directory={backends}",
            f"--cache-directory={where.caches}",
            f"--backend-config=python,shm-region-prefix-name={self._mark}",
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in load),
            "--http-address=127.0.0.1", f"--http-port={self.http_port}",
            "--grpc-address=127.0.0.1", f"--grpc-port={self.grpc_port}",
            "--metrics-address=127.0.0.1", f"--metrics-port={self.metrics_port}",
            "--allow-gpu-metrics=false",
            # each model would be started twice, the first time to ask it for its configuration
            "--disable-auto-complete-config",
            "--model-load-thread-count=16",
            "--exit-timeout-secs=1",  # clients' idle connections would hold it up
            *arguments,
        ]  # fmt: skip
        super().__init__(
            "Triton",
            command,
            log_file=folder / "triton.log",
            start_s=_START_S,
            environment={
                **os.environ,
                # the backend takes the interpreter that it finds first
                "PATH": f"{where.python.parent}:{os.environ['PATH']}",
                "LD_LIBRARY_PATH": f"{where.libraries}:{os.environ.get('LD_LIBRARY_PATH', '')}",
                "ORT_DISABLE_TELEMETRY": "1",
                **(environment or {}),
            },
            leads=True,  # the programs of its models
        )

    @property
    def http(self) -> str:
        """host:port of the HTTP wire, as tritonclient wants it."""
        return f"127.0.0.1:{self.http_port}"

    @property
    def grpc(self) -> str:
        """host:port of the gRPC wire."""
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def url(self) -> str:
        """http://host:port."""
        return f"http://{self.http}"

    @property
    def pid(self) -> int:
        """Of the server; its models' programs are its children."""
        assert self._process is not None
        return self._process.pid

    def stop(self) -> int:
        """Ask it to end, as an operator does, and answer its exit code."""
        assert self._process is not None
        self.thaw()
        self._process.terminate()
        try:
            return self._process.wait(STOP_S)
        finally:
            self.kill()

    def kill(self) -> None:
        """End it at once, and its models' programs with it."""
        super().kill()
        for left in self.shared_memory():
            left.unlink(missing_ok=True)

    def restart(self) -> None:
        """Kill it and start it again, on the same ports."""
        self.kill()
        self.start()

    def kill_program(self, model: str) -> None:
        """End the process in which the model runs; the server does not start another."""
        pids = self._programs(model)
        assert pids, f"no program of the model {model!r} is running"
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: not self._programs(model))

    def journal(self, model: str) -> list[str]:
        """What `slow`, `queued` or `stream` wrote down: in each line an id and an event."""
        file = self.repository / model / "journal"
        return file.read_text().splitlines() if file.exists() else []

    def shared_memory(self) -> list[Path]:
        """The files in which its models' programs exchange tensors with it."""
        return list(_SHARED_MEMORY.glob(f"{self._mark}*"))

    def _programs(self, model: str) -> list[int]:
        children = Path(f"/proc/{self.pid}/task").glob("*/children")
        pids = [int(pid) for listing in children for pid in listing.read_text().split()]
        return [pid for pid in pids if f"{self.repository}/{model}/" in _command_line(pid)]

    def _answers(self) -> bool:
        return is_ok(f"{self.url}/v2/health/ready")


class _Installation:
    """Where the parts of the environment are."""

    def __init__(self, python: Path) -> None:
        asked = subprocess.run(
            [python, "-c", _PROBE], check=True, capture_output=True, text=True, timeout=60
        )
        packages, libraries, version = asked.stdout.split("\n")[:3]
        wheel = Path(packages, "pytriton", "tritonserver")
        self.python = python
        self.libraries = libraries
        self.server = wheel / "bin" / "tritonserver"
        self.caches = wheel / "caches"
        self.backend = (
            wheel / "backends" / "python" / "libtriton_python.so",
            wheel / "backends" / "python" / "triton_python_backend_utils.py",
            wheel / "python_backend_stubs" / version / "triton_python_backend_stub",
        )


@functools.cache
def _installed() -> _Installation:
    return _Installation(_ENVIRONMENT / "bin" / "python3")


def require() -> None:
    """Skip, saying why, where there is no Triton."""
    if (_ENVIRONMENT / ".requirements").exists():
        return
    missing = _ENVIRONMENT / "missing"
    pytest.skip(
        missing.read_text().strip()
        if missing.exists()
        else "NO TRITON: nothing was tested on a real Triton. To install it: make triton"
    )


@contextlib.contextmanager
def running(
    folder: Path,
    *,
    models: Sequence[str] = MODELS,
    load: Sequence[str] = ("*",),
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[Triton]:
    """A server of the named models until the block ends. Skips where there is no Triton."""
    require()
    repository = lay_out(folder / "models", models)
    server = Triton(folder, repository, load=load, arguments=arguments, environment=environment)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def _link_backend(root: Path) -> Path:
    """The folder that Triton takes its backends from; the wheel keeps the program's part apart."""
    folder = root / "python"
    if not folder.exists():
        folder.mkdir(parents=True)
        for file in _installed().backend:
            (folder / file.name).symlink_to(file)
    return root


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:  # it ended meanwhile
        return ""
