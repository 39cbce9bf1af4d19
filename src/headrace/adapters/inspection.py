"""Looking at a model in a process of its own, which may crash, hang or eat memory by itself.

The program in it is named by the composition. It gets an `Assignment` on its standard input, and
answers with `Report`s on its standard output, a line of JSON each: a `Step` before whatever could
end it, at last `Passed` or `Refused`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import msgspec

from headrace.domain.errors import InvalidRequest, ModelLoadFailed
from headrace.domain.models import Signature
from headrace.ports.artifacts import Inspection

log = logging.getLogger(__name__)

_MAX_ANSWER_BYTES: Final = 16 * 1024**2
_STDERR_BYTES: Final = 4096  # of what it said last
_CHUNK_BYTES: Final = 64 * 1024


class InspectionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a look at an uploaded model may take."""

    #: Seconds by the clock, for starting the process, the checks and all runs together.
    timeout_s: float = 120.0
    #: Seconds of processor time.
    cpu_s: float = 120.0
    #: Bytes of address space; a model needs about three times its size, and 0.5 GiB besides.
    memory_bytes: int = 4 * 1024**3
    #: Models looked at side by side; others wait.
    concurrency: int = 1


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """What the child has to do, and within which limits."""

    timeout_s: float
    cpu_s: float
    memory_bytes: int
    max_answer_bytes: int
    default_max_batch_size: int
    smoke: list[Any] = []


class Step(msgspec.Struct, frozen=True, tag="step"):
    """What comes next, as it goes on after "while": "it was loaded"."""

    doing: str


class Passed(msgspec.Struct, frozen=True, tag="passed", kw_only=True):
    """The model can be served."""

    signature: Signature
    max_batch_size: int
    warm_up_s: float
    outputs: tuple[dict[str, Any], ...]


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The model, or what was said to run it on, is no good; the reason is a sentence."""

    fault: Literal["model", "smoke"]
    reason: str


Report: TypeAlias = Step | Passed | Refused
_decode: Final = msgspec.json.Decoder(Report).decode


class ChildInspector:
    """Inspector over `python -m entry_module FOLDER`."""

    def __init__(
        self, settings: InspectionSettings, *, entry_module: str, default_max_batch_size: int
    ) -> None:
        self._settings = settings
        # isolated: nothing of the environment or the working directory is imported
        self._command = (sys.executable, "-I", "-B", "-m", entry_module)
        self._default_max_batch_size = default_max_batch_size
        self._places = asyncio.Semaphore(max(settings.concurrency, 1))

    async def inspect(self, folder: Path, *, smoke: Sequence[Mapping[str, Any]] = ()) -> Inspection:
        """See Inspector.inspect. `folder` is absolute."""
        settings = self._settings
        assignment = Assignment(
            timeout_s=settings.timeout_s,
            cpu_s=settings.cpu_s,
            memory_bytes=settings.memory_bytes,
            max_answer_bytes=_MAX_ANSWER_BYTES,
            default_max_batch_size=self._default_max_batch_size,
            smoke=list(smoke),
        )
        try:
            text = msgspec.json.encode(assignment)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequest(f"the smoke inputs have no JSON form: {error}") from error
        async with self._places:
            child = await self._start(folder)
            try:
                async with asyncio.timeout(settings.timeout_s):
                    await child.talk(text)
            except TimeoutError:
                raise ModelLoadFailed(
                    f"the model took over {settings.timeout_s:g} s{child.where}, where it was ended"
                ) from None
            finally:
                await child.end()
        return self._judge(child)

    async def _start(self, folder: Path) -> _Child:
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                str(folder),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd="/",
                env=_environment(),
                start_new_session=True,  # a group to kill, and no terminal to take signals from
            )
        except OSError as error:
            msg = f"no process could be started to look at the model: {error.strerror}"
            raise ModelLoadFailed(msg) from error
        return _Child(process)

    def _judge(self, child: _Child) -> Inspection:
        match child.report:
            case Passed() as passed if child.code == 0:
                return Inspection(
                    signature=passed.signature,
                    max_batch_size=passed.max_batch_size,
                    warm_up_s=passed.warm_up_s,
                    outputs=passed.outputs,
                )
            case Refused(fault="smoke", reason=reason):
                raise InvalidRequest(reason)
            case Refused(reason=reason):
                raise ModelLoadFailed(reason)
        log.warning(
            "an inspection ended by itself", extra={"code": child.code, "stderr": child.said}
        )
        raise ModelLoadFailed(f"{_how_it_ended(child.code, self._settings)}{child.where}")


class _Child:
    """The process, and what it has said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._doing = ""
        self._ended = False
        self._stderr = b""
        self.report: Report | None = None

    @property
    def code(self) -> int:
        """Its exit code, or minus the signal's number."""
        code = self._process.returncode
        return 0 if code is None else code

    @property
    def where(self) -> str:
        """At which step it was."""
        return f" while {self._doing}" if self._doing else ""

    @property
    def said(self) -> str:
        """The end of what it wrote to stderr."""
        return self._stderr.decode(errors="replace")

    async def talk(self, assignment: bytes) -> None:
        """Send the assignment, take the reports, and wait for the end."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send(assignment))
            tasks.create_task(self._keep_stderr())
            await self._take_reports()
        await self._process.wait()
        self._ended = True

    async def end(self) -> None:
        """Kill it and whatever it started, unless all has ended by itself, and wait for that."""
        if not self._ended:  # else the group's number may be another's by now
            self._kill()
        await self._process.wait()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def _send(self, assignment: bytes) -> None:
        stdin = self._process.stdin
        assert stdin is not None  # noqa: S101 - a pipe was asked for
        with contextlib.suppress(ConnectionError):  # it is gone: its end tells why
            stdin.write(assignment)
            await stdin.drain()
            stdin.close()
            await stdin.wait_closed()

    async def _keep_stderr(self) -> None:
        stderr = self._process.stderr
        assert stderr is not None  # noqa: S101 - a pipe was asked for
        while chunk := await stderr.read(_CHUNK_BYTES):
            self._stderr = (self._stderr + chunk)[-_STDERR_BYTES:]

    async def _take_reports(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None  # noqa: S101 - a pipe was asked for
        received = bytearray()
        while chunk := await stdout.read(_CHUNK_BYTES):
            received += chunk
            if len(received) > 2 * _MAX_ANSWER_BYTES:
                self.report = Refused("model", "the model answered more than can be taken")
                self._kill()
                return
            if b"\n" in chunk:
                *lines, received = received.split(b"\n")
                for line in lines:
                    self._take(line)

    def _take(self, line: bytearray) -> None:
        try:
            report = _decode(line)
        except msgspec.DecodeError:
            return  # its end tells that something is wrong
        if isinstance(report, Step):
            self._doing = report.doing
        else:
            self.report = report


def _environment() -> dict[str, str]:
    """As little as Python starts with: no secrets of the platform."""
    environment = {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "HOME": "/nonexistent",
        "ORT_DISABLE_TELEMETRY": "1",
        "OPENBLAS_NUM_THREADS": "1",  # each thread takes address space
        "MALLOC_ARENA_MAX": "2",
    }
    libraries = os.environ.get("LD_LIBRARY_PATH")  # an interpreter may not start without
    if libraries:
        environment["LD_LIBRARY_PATH"] = libraries
    return environment


def _how_it_ended(code: int, settings: InspectionSettings) -> str:
    if code >= 0:
        return f"the process that tried the model ended with code {code} and no answer"
    if -code == signal.SIGXCPU:
        return f"the model took over {settings.cpu_s:g} s of processor time"
    if -code == signal.SIGALRM:
        return f"the model took over {settings.timeout_s:g} s"
    if -code == signal.SIGKILL:
        return "the process that tried the model was killed, most likely for want of memory"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"the model crashed the process that tried it ({name})"
