"""The batch service as its users meet it: one process or several, asked with the `openai` SDK."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from openai import OpenAI
from openai.types import Batch

from tests.support import postgres, repositories, s3
from tests.support.postgres import Postgres
from tests.support.process import Server, eventually, run_cli, serving
from tests.support.tcp_proxy import TcpProxy, tcp_proxy

FINAL: Final = frozenset({"failed", "completed", "expired", "cancelled"})
_PATIENCE_S: Final = 45.0
_STOP_S: Final = 20.0
_NUMBERS: Final = itertools.count(1)

#: Every wait is short, and a chunk is few rows, so that a small file is many of them.
SETTINGS: Final = """
[batch]
chunk_rows = 10
max_rows = 1000
max_row_bytes = 2000
chunks_in_hand = 2
window = 12
lease_s = 1.5
look_s = 0.1
model_patience_s = 0.2
backlog_s = 0.1
requeue_after_s = 2.0
max_retry_delay_s = 0.2
min_window_s = 1
max_jobs_per_tenant = 8
follow_poll_s = 0.02
[batch.rows]
retry_base_s = 0.02
retry_max_s = 0.1
patience_s = 0.5
look_s = 0.05
"""

#: Callers by their tokens' names: what they may do, and whose tenant they are of.
TOKENS: Final[Mapping[str, tuple[Sequence[str], str]]] = {
    "ann": (["admin"], "default"),
    "bob": (["batch", "infer:other"], "default"),
    "guest": (["infer"], "default"),
    "eve": (["batch", "infer"], "elsewhere"),
    "many": (["batch", "infer"], "crowded"),
}


def callers() -> str:
    """The settings of TOKENS."""
    lines = []
    for name, (scopes, tenant) in TOKENS.items():
        digest = hashlib.sha256(name.encode()).hexdigest()
        lines += [
            f"[authentication.tokens.{name}]", f'sha256 = "{digest}"',
            f"scopes = {json.dumps(scopes)}", f'tenant = "{tenant}"',
        ]  # fmt: skip
    return "\n".join([*lines, ""])


# --- rows -----------------------------------------------------------------------------------------


def row(
    custom_id: str, value: int, /, *, model: str = "tenfold", version: str = "", **more: Any
) -> str:
    """A line for the models of `models`; `more` replaces fields of it."""
    part = f"/versions/{version}" if version else ""
    body = {"inputs": [{"name": "value", "datatype": "INT64", "shape": [1, 1], "data": [value]}]}
    line = {"custom_id": custom_id, "method": "POST", "url": f"/v2/models/{model}{part}/infer"}
    return json.dumps({**line, "body": body, **more}) + "\n"


def rows(values: Iterable[int], *, model: str = "tenfold", version: str = "") -> bytes:
    """Lines whose custom ids say where they stand and what they ask: `3:17`."""
    lines = [row(f"{i}:{x}", x, model=model, version=version) for i, x in enumerate(values)]
    return "".join(lines).encode()


_TENFOLD: Final = """\
import os
from pathlib import Path

from headrace import InvalidRequest, Model, TensorSpec


class Tenfold(Model):
    inputs = (TensorSpec("value", "INT64", (1,)),)
    outputs = (TensorSpec("answer", "INT64", (1,)),)
    max_batch_size = 64

    def load(self, context):
        self.sick = Path(context.parameters["sick"])

    def predict(self, inputs):
        values = inputs["value"].ravel().tolist()
        if min(values) < 0:
            raise InvalidRequest("a value is negative")
        if 13 in values:
            raise RuntimeError("13 is unlucky")
        if 14 in values:
            return {"result": inputs["value"]}
        if 15 in values:
            return {"answer": inputs["value"][:-1]}
        if 16 in values and self.sick.exists():
            raise RuntimeError("16 makes sick at present")
        if 99 in values:
            os._exit(9)
        return {"answer": inputs["value"] * 10}
"""

_GATED: Final = """\
import json
import os
import time
from pathlib import Path

from headrace import Model, TensorSpec


class Gated(Model):
    inputs = (TensorSpec("value", "INT64", (1,)),)
    outputs = (TensorSpec("answer", "INT64", (1,)),)
    max_batch_size = 10

    def load(self, context):
        self.journal = Path(context.parameters["journal"])
        self.shut = Path(context.parameters["shut"])

    def predict(self, inputs):
        line = json.dumps([os.getpid(), inputs["value"].ravel().tolist()]) + "\\n"
        file = os.open(self.journal, os.O_WRONLY | os.O_APPEND)
        os.write(file, line.encode())
        os.close(file)
        while self.shut.exists():
            time.sleep(0.002)
        return {"answer": inputs["value"] * 10}
"""


class Run(NamedTuple):
    """One run of `gated`: in which process, and for which values."""

    pid: int
    values: list[int]


class Models:
    """A repository for batch jobs, whose models take value INT64 [rows, 1] to ten times that.

    `tenfold` and `fleeting` fail for some values: see `_TENFOLD`. A run of `gated` has at most 10
    rows, is noted in a journal as it begins, and waits while the gate is shut. `broken` cannot be
    loaded. `sick` is a file that a test makes, and removes.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root
        outside = root.with_name(f"{root.name}-outside")
        outside.mkdir(parents=True, exist_ok=True)
        self.sick = outside / "sick"
        self._journal = outside / "journal"
        self._shut = outside / "shut"
        self._journal.touch()
        for name in ("tenfold", "fleeting"):
            config = f'[parameters]\nsick = "{self.sick}"\n'
            repositories.python_model(root, name, _TENFOLD, config=config)
        config = f'[parameters]\njournal = "{self._journal}"\nshut = "{self._shut}"\n'
        repositories.python_model(root, "gated", _GATED, config=config)
        repositories.corrupt(root, "broken")

    @contextlib.contextmanager
    def shut(self) -> Iterator[None]:
        """Let no run of `gated` get to its end, until the block ends or `open` is called."""
        self._shut.touch()
        try:
            yield
        finally:
            self.open()

    def open(self) -> None:
        """Let all runs go on."""
        self._shut.unlink(missing_ok=True)

    def runs(self) -> list[Run]:
        """What `gated` was asked, in order."""
        return [Run(*json.loads(line)) for line in self._journal.read_text("utf-8").splitlines()]


# --- users ----------------------------------------------------------------------------------------


class Failure(NamedTuple):
    """Why a row has no answer. `status` is None where it was never asked about."""

    status: int | None
    code: str
    message: str


class Results(NamedTuple):
    """What a job came to, by custom id."""

    answers: dict[str, Any]  # bodies
    failures: dict[str, Failure]

    @property
    def codes(self) -> set[str]:
        """Of all failures."""
        return {failure.code for failure in self.failures.values()}


class User:
    """Somebody with the SDK. With several processes, each request goes to the next of them."""

    def __init__(self, servers: Iterable[Server], name: str = "ann") -> None:
        self._clients = [
            OpenAI(api_key=name, base_url=f"{server.url}/v1", max_retries=0, timeout=20.0)
            for server in servers
        ]
        self._turns = itertools.cycle(self._clients)

    @property
    def sdk(self) -> OpenAI:
        """The SDK for one request."""
        return next(self._turns)

    def upload(self, data: bytes) -> str:
        """Upload a file and answer its id."""
        return self.sdk.files.create(file=("rows.jsonl", data), purpose="batch").id

    def create(
        self,
        data: bytes | None = None,
        *,
        model: str = "tenfold",
        endpoint: str = "",
        file: str = "",
        window: str = "24h",
        **more: Any,
    ) -> Batch:
        """Begin a job, of a file that is there or of a new one."""
        if data is not None:
            file = self.upload(data)
        wanted: dict[str, Any] = {  # OpenAI has fewer endpoints, and one window
            "endpoint": endpoint or f"/v2/models/{model}/infer",
            "completion_window": window,
            **more,
        }
        return self.sdk.batches.create(input_file_id=file, **wanted)

    def get(self, batch: Batch) -> Batch:
        """The job as it is now."""
        return self.sdk.batches.retrieve(batch.id)

    def end(self, batch: Batch, *, timeout_s: float = _PATIENCE_S) -> Batch:
        """The job once it has ended."""
        found = batch

        def ended() -> bool:
            nonlocal found
            found = self.get(batch)
            return found.status in FINAL

        try:
            eventually(ended, timeout_s=timeout_s, interval_s=0.03)
        except AssertionError as error:
            msg = f"the job did not end within {timeout_s} s: {found}"
            raise AssertionError(msg) from error
        return found

    def until(self, batch: Batch, *, done: int, timeout_s: float = _PATIENCE_S) -> Batch:
        """The job once so many of its rows have an outcome."""

        def reached() -> Batch | None:
            found = self.get(batch)
            assert found.status not in FINAL, found
            counts = found.request_counts
            assert counts is not None
            return found if counts.completed + counts.failed >= done else None

        found: Batch = eventually(reached, timeout_s=timeout_s)
        return found

    def text(self, file: str | None) -> str:
        """A file's content; "" without a file."""
        return self.sdk.files.content(file).text if file else ""

    def results(self, batch: Batch) -> Results:
        """What an ended job came to, once it is seen that it adds up.

        Every row has one outcome, in one of the files, in the rows' order, and the counts say so.
        """
        assert batch.status in FINAL, batch
        wanted = [_id(line) for line in _lines(self.text(batch.input_file_id))]
        answered = _lines(self.text(batch.output_file_id))
        failed = _lines(self.text(batch.error_file_id))
        assert sorted([_id(line) for line in answered + failed]) == sorted(wanted)
        places = {custom_id: place for place, custom_id in enumerate(wanted)}
        for found in (answered, failed):
            order = [places[_id(line)] for line in found]
            assert order == sorted(order), "the rows' order is not kept"
        counts = batch.request_counts
        assert counts is not None
        assert (counts.total, counts.completed, counts.failed) == (
            len(wanted), len(answered), len(failed),
        )  # fmt: skip
        assert (batch.output_file_id is None, batch.error_file_id is None) == (
            not answered, not failed,
        )  # fmt: skip
        answers = {}
        for line in answered:
            response = line["response"]
            assert (response["status_code"], line["error"]) == (200, None), line
            answers[_id(line)] = response["body"]
        return Results(answers, {_id(line): _failure(line) for line in failed})

    def answered_tenfold(self, batch: Batch) -> Results:
        """As `results`, once it is seen that every answer is that of its own row."""
        found = self.results(batch)
        for custom_id, body in found.answers.items():
            assert body["outputs"][0]["data"] == [10 * int(custom_id.partition(":")[2])], custom_id
        return found


def _lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _id(line: Mapping[str, Any]) -> str:
    return str(line["custom_id"])


def _failure(line: Mapping[str, Any]) -> Failure:
    response, error = line["response"], line["error"]
    if response is not None:
        told = response["body"]["error"]
        assert (told["code"], told["message"]) == (error["code"], error["message"]), line
    status = None if response is None else response["status_code"]
    return Failure(status, error["code"], error["message"])


# --- platforms ------------------------------------------------------------------------------------


class Platform:
    """Processes that serve one repository with one set of settings. Places are from 0 on.

    `others` are repositories of places that have another, and with `together` all have one data
    directory.
    """

    def __init__(
        self,
        root: Path,
        folder: Path,
        *,
        settings: str,
        places: int,
        environment: Mapping[str, str] | None = None,
        others: Mapping[int, Path] | None = None,
        together: bool = False,
    ) -> None:
        self._root = root
        self._others = others or {}
        self._together = together
        self._folder = folder
        self._environment = environment or {}
        self._file = folder / "settings.toml"
        self._running: list[tuple[Server, contextlib.ExitStack] | None] = [None] * places
        self._starts = itertools.count(1)
        folder.mkdir(parents=True, exist_ok=True)
        self._file.write_text(settings, "utf-8")

    @property
    def settings(self) -> Path:
        """The settings file."""
        return self._file

    @property
    def servers(self) -> list[Server]:
        """Those that run."""
        return [entry[0] for entry in self._running if entry is not None]

    def start(self, *places: int) -> None:
        """Start what does not run, of `places`, or of all."""
        wanted = [p for p in places or range(len(self._running)) if self._running[p] is None]
        with ThreadPoolExecutor() as pool:
            list(pool.map(self._start, wanted))

    def _start(self, place: int) -> None:
        stack = contextlib.ExitStack()
        log = self._folder / f"log-{place}-{next(self._starts)}"
        data = self._folder / ("data" if self._together else f"data-{place}")
        arguments = (f"--settings={self._file}", f"--data-dir={data}")
        running = serving(
            self._others.get(place, self._root), log, *arguments, environment=self._environment
        )
        self._running[place] = stack.enter_context(running), stack

    def at(self, place: int) -> Server:
        """The process at a place."""
        entry = self._running[place]
        assert entry is not None
        return entry[0]

    def stop(self, place: int, number: signal.Signals = signal.SIGTERM) -> int:
        """End the process at a place, and answer its exit code."""
        server = self.at(place)
        if server.process.poll() is None:
            server.process.send_signal(number)
        return self.wait(place)

    def wait(self, place: int) -> int:
        """Wait for the end of the process at a place, which was asked to; its exit code."""
        entry = self._running[place]
        assert entry is not None
        self._running[place] = None
        with entry[1]:
            return entry[0].process.wait(_STOP_S)

    def close(self) -> None:
        """End all."""
        running = [place for place, entry in enumerate(self._running) if entry is not None]
        for place in running:
            self.at(place).process.terminate()
        for place in running:
            self.wait(place)

    def user(self, name: str = "ann") -> User:
        """Somebody who asks all that run now."""
        return User(self.servers, name)

    def metric(self, name: str, **labels: str) -> float:
        """The sum over all processes."""
        return sum(server.metric(name, **labels) for server in self.servers)


@contextlib.contextmanager
def embedded(
    root: Path, folder: Path, *, more: str = "", environment: Mapping[str, str] | None = None
) -> Iterator[Platform]:
    """One process on its own: SQLite, a folder of objects, a queue in memory.

    `more` are further sections of the settings, `environment` is what else they should be.
    """
    settings = SETTINGS + callers() + more
    platform = Platform(root, folder, settings=settings, places=1, environment=environment)
    try:
        platform.start()
        yield platform
    finally:
        platform.close()


class Backing(NamedTuple):
    """What the processes of a cluster share. `s3` is a proxy before the object store."""

    postgres: Postgres
    s3: TcpProxy


@contextlib.contextmanager
def cluster(
    root: Path,
    folder: Path,
    parts: Backing,
    *,
    queue: str,
    places: int = 2,
    more: str = "",
    others: Mapping[int, Path] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Platform]:
    """Several processes on a database, a bucket and a queue of their own, which is in TOML.

    `others` are repositories of places that have another one; see `embedded` for `environment`.
    """
    number = f"{next(_NUMBERS)}-{time.time_ns()}"
    database = parts.postgres.create_database()
    objects = s3.section(
        f"http://127.0.0.1:{parts.s3.port}", f"batch-{number}", timeout_s=3.0, max_retries=1
    )
    artifacts = "\n".join(f"{name} = {json.dumps(value)}" for name, value in objects.items())
    settings = f"""
{SETTINGS}
{callers()}
[database]
kind = "postgres"
dsn = "{parts.postgres.dsn(database)}"
command_timeout_s = 2.0
connect_timeout_s = 2.0
[artifacts]
{artifacts}
{queue}
{more}
"""
    platform = Platform(
        root, folder, settings=settings, places=places, others=others, environment=environment
    )
    migrated = run_cli(["migrate", f"--settings={platform.settings}"])
    assert migrated.returncode == 0, migrated.stderr
    try:
        platform.start()
        yield platform
    finally:
        platform.close()


def kafka_queue(bootstrap: str, topic: str, *, partitions: int = 4) -> str:
    """The settings of a queue on Kafka."""
    return f"""
[queue]
kind = "kafka"
brokers = "{bootstrap}"
topic = "{topic}"
group = "{topic}"
partitions = {partitions}
session_timeout_s = 2.0
publish_timeout_s = 3.0
commit_interval_s = 0.05
retry_s = 0.2
max_in_hand = 4
"""


@contextlib.contextmanager
def backing(folder: Path) -> Iterator[Backing]:
    """A database and an object store, until the block ends. Skips where there is none."""
    with postgres.running() as database, s3.seaweed(folder) as url:
        port = urlsplit(url).port
        assert port is not None
        with tcp_proxy(port) as proxy:
            yield Backing(database, proxy)
