"""`headrace demo`: a real model served in this process, and asked over HTTP about real files."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec
import numpy as np
import uvloop
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from headrace.compose import demo_magika
from headrace.compose.demo_client import Client, infer_path, json_request, model_path
from headrace.compose.demo_files import pick
from headrace.compose.demo_magika import Magika, Verdict
from headrace.compose.platform import Platform
from headrace.domain.errors import HeadraceError, InvalidSettings
from headrace.domain.tensors import Array
from headrace.gateway.static_tokens import DEMO_TOKEN
from headrace.settings import Settings, load
from headrace.telemetry import logs

_PICKED: Final = 14
_PICKED_ELSEWHERE: Final = 8
_TOLERANCE: Final = 1e-6
_OK: Final = 200
_UNAUTHORIZED: Final = 401
_SHOWN_METRICS: Final = (
    "headrace_requests_total{",
    "headrace_batch_rows_count{",
    "headrace_batch_rows_sum{",
    "headrace_executor_seconds_sum{",
)


def run(files: Sequence[Path], *, keep: bool, http_port: int, version: str) -> None:
    """Serve, ask, print; with `keep` serve on until a signal. Exits 1 where an answer is wrong.

    Raises:
        InvalidSettings: no model, no file to ask about, or the port is taken.
    """
    installed = demo_magika.find()
    magika = demo_magika.load(installed)
    top = Path()
    chosen = list(files) or pick(top, _PICKED)
    if not chosen:
        top = Path(sysconfig.get_path("stdlib"))
        chosen = pick(top, _PICKED_ELSEWHERE)
    if not chosen:
        msg = "there is no file here to ask about: name some, as in headrace demo FILE..."
        raise InvalidSettings(msg)
    with tempfile.TemporaryDirectory(prefix="headrace-demo-") as folder:
        settings = load(
            overrides={
                "server": {"host": "127.0.0.1", "http_port": http_port, "grpc_port": 0},
                "storage": {"data_dir": str(Path(folder, "data"))},
                "mode": "development",
                "log": {"level": "warning", "access": "off"},
            }
        )
        logs.configure(settings.log, sys.stderr)
        demo_magika.write_repository(Path(folder, "models"), installed, magika)
        demo = _Demo(settings, Path(folder), magika, top, token=DEMO_TOKEN, version=version)
        problems = uvloop.run(demo.run(chosen, keep=keep))
    for problem in problems:
        sys.stderr.write(f"headrace: {logs.one_line(problem)}\n")
    if problems:
        sys.exit(1)


# The questions


class Inference(Protocol):
    """What the demo asks of its client; see Client."""

    def infer_json(self, model: str, name: str, row: Array) -> Array: ...

    def infer_binary(self, model: str, name: str, row: Array) -> Array: ...


class Row(msgspec.Struct, frozen=True):
    """A line of the table: a verdict, with times where the model gave it, or a problem."""

    file: Path
    verdict: Verdict | None = None
    json_s: float = 0.0
    binary_s: float = 0.0
    features: Array | None = None
    problem: str = ""


def classify(file: Path, magika: Magika, client: Inference) -> Row:
    """Ask about one file twice, in JSON and in binary; the two must agree."""
    try:
        # a pipe or a device may never end
        if not file.is_file():
            return Row(file, problem="is not a regular file")
        with file.open("rb") as stream:
            features = magika.features(stream)
    except OSError as error:
        return Row(file, problem=f"cannot be read: {error.strerror}")
    if isinstance(features, Verdict):
        return Row(file, features)
    question = (demo_magika.NAME, demo_magika.INPUT, features)
    expected = (1, len(magika.target_labels_space))
    try:
        begun = time.perf_counter()
        by_json = client.infer_json(*question)
        between = time.perf_counter()
        by_binary = client.infer_binary(*question)
        ended = time.perf_counter()
    except HeadraceError as error:
        return Row(file, problem=error.message)
    if by_json.shape != expected or by_binary.shape != expected:
        problem = f"answered {by_json.shape} and {by_binary.shape}, not {expected}"
        return Row(file, problem=problem)
    verdict, other = magika.verdict(by_json), magika.verdict(by_binary)
    if not np.allclose(by_json, by_binary, rtol=0, atol=_TOLERANCE):
        problem = (
            f"the answers disagree: JSON {verdict.label} {verdict.score:.6f}, "
            f"binary {other.label} {other.score:.6f}"
        )
        return Row(file, problem=problem)
    return Row(file, verdict, between - begun, ended - between, features)


class _Demo:
    def __init__(
        self,
        settings: Settings,
        folder: Path,
        magika: Magika,
        top: Path,
        *,
        token: str,
        version: str,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._magika = magika
        self._top = top
        self._token = token
        self._version = version
        self._console = Console(highlight=False, markup=False)
        self._url = ""

    async def run(self, files: Sequence[Path], *, keep: bool) -> list[str]:
        """What went wrong."""
        stopped = _stopped_by_signal()
        begun = time.monotonic()
        models = self._folder / "models"
        platform = Platform(self._settings, models, version=self._version, log=sys.stderr)
        async with platform.running():
            await platform.loaded.wait()
            host, port = platform.http_address
            self._url = f"http://{host}:{port}"
            self._print(
                f"headrace {self._version} serves {demo_magika.NAME} ({demo_magika.RELEASE}) "
                f"on {self._url}, ready after {time.monotonic() - begun:.2f} s\n"
            )
            if self._top != Path():
                self._print(f"Nothing to ask about here, so these files are from {self._top}\n")
            client = Client(platform.http_address, token=self._token)
            try:
                rows, problems = await asyncio.to_thread(
                    self._ask, client, files, stopped=stopped.is_set
                )
            finally:
                client.close()
            if keep and not problems:
                self._print_how_to_call(rows)
                await stopped.wait()
                self._print("\nstopping")
        return problems

    def _ask(
        self, client: Client, files: Sequence[Path], *, stopped: Callable[[], bool]
    ) -> tuple[list[Row], list[str]]:
        """The table's rows, and what went wrong. Runs in a thread beside the platform's loop."""
        rows: list[Row] = []
        console = self._console
        quiet = not console.is_terminal
        for file in track(files, "asking", console=console, transient=True, disable=quiet):
            if stopped():
                return rows, ["interrupted"]
            rows.append(classify(file, self._magika, client))
        console.print(_table(rows, self._top))
        self._print(_summary(rows))
        problems = [f"{row.file}: {row.problem}" for row in rows if row.problem]
        try:
            for problem in self._probe(client):
                problems.append(problem)  # noqa: PERF402 - what comes before an error counts too
            self._print_metrics(client)
        except HeadraceError as error:
            problems.append(error.message)
        return rows, problems

    def _probe(self, client: Client) -> Iterator[str]:
        """Show health and metadata; yield what is not as it should be."""
        for path in ("/livez", "/readyz", "/v2/health/ready"):
            status, body = client.get(path, authorized=False)
            self._print_answer(path, status, body.decode(errors="replace"))
            if status != _OK:
                yield f"{path} answered {status}"
        path = model_path(demo_magika.NAME)
        self._print_answer(path, _OK, client.metadata(demo_magika.NAME))
        status, _ = client.get(path, authorized=False)
        self._print_answer(path, status, "without the token")
        if status != _UNAUTHORIZED:
            yield f"{path} answered {status} to a request without the token"

    def _print_metrics(self, client: Client) -> None:
        _, body = client.get("/metrics", authorized=False)
        self._print(f"\nfrom {self._url}/metrics:")
        for line in body.decode().splitlines():
            if line.startswith(_SHOWN_METRICS):
                self._print(f"  {line}")

    def _print_answer(self, path: str, status: int, text: str) -> None:
        self._print(f"  {path:<18} {status}  {text}")

    def _print_how_to_call(self, rows: Sequence[Row]) -> None:
        file, features = _example(rows, self._magika)
        body = self._folder / "request.json"
        three = {"name": demo_magika.OUTPUT, "parameters": {"classification": 3}}
        body.write_bytes(json_request(demo_magika.INPUT, features, outputs=[three]))
        infer = self._url + infer_path(demo_magika.NAME)
        self._print(
            f"\n"
            f"infer     POST {infer}\n"
            f"metadata  GET  {self._url}{model_path(demo_magika.NAME)}\n"
            f"metrics   GET  {self._url}/metrics\n"
            f"health    GET  {self._url}/readyz\n"
            f"token     {self._token}\n"
            f"\n"
            f"The three likeliest types of {file}:\n"
            f"\n"
            f"curl -sS --noproxy '*' {infer} \\\n"
            f"  -H 'Authorization: Bearer {self._token}' \\\n"
            f"  -H 'Content-Type: application/json' \\\n"
            f"  --data-binary {shlex.quote(f'@{body}')}\n"
            f"\n"
            f"Stop with Ctrl-C, or: kill {os.getpid()}"
        )

    def _print(self, text: str) -> None:
        # never wrapped, so that it can be copied
        lines = (logs.one_line(line) for line in text.split("\n"))
        self._console.print("\n".join(lines), soft_wrap=True)


def _stopped_by_signal() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; a second one ends the process at once."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()

    def on_signal() -> None:
        loop.remove_signal_handler(signal.SIGTERM)
        loop.remove_signal_handler(signal.SIGINT)
        stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    return stopped


# What is shown


def _table(rows: Sequence[Row], top: Path) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("file", overflow="fold")
    table.add_column("type", overflow="fold")
    for name in ("score", "JSON ms", "binary ms"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        shown = row.file.relative_to(top) if row.file.is_relative_to(top) else row.file
        file = Text(logs.one_line(str(shown)))
        if row.verdict is None:
            table.add_row(file, Text("failed", style="red"))
        elif row.features is None:
            table.add_row(file, row.verdict.label, "by rule", "-", "-", style="dim")
        else:
            sure = "" if row.verdict.sure else " ?"
            table.add_row(
                file,
                row.verdict.label + sure,
                f"{row.verdict.score:.3f}",
                f"{row.json_s * 1000:.2f}",
                f"{row.binary_s * 1000:.2f}",
            )
    return table


def _summary(rows: Sequence[Row]) -> str:
    lines = []
    if not any(row.problem for row in rows):
        lines.append("JSON and binary answers agree for every file. Times are the client's.")
    if any(row.verdict and row.features is None for row in rows):
        lines.append("by rule: too few bytes to tell, so the model is not asked.")
    if any(row.verdict and not row.verdict.sure for row in rows):
        lines.append("?: the score is below what magika asks for before it trusts this type.")
    return "\n".join(["", *lines, ""])


def _example(rows: Sequence[Row], magika: Magika) -> tuple[Path, Array]:
    for row in rows:
        if row.features is not None:
            return row.file, row.features
    file = Path(__file__)
    with file.open("rb") as stream:
        features = magika.features(stream)
    assert not isinstance(features, Verdict)  # noqa: S101 - this file is long enough
    return file, features
