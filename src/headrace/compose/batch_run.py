"""`headrace batch run`."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from headrace.batch import endpoints
from headrace.compose.batch_client import BatchClient
from headrace.compose.batch_results import Places
from headrace.compose.batch_rows import Rows
from headrace.compose.batch_state import (
    ONCE_BYTES,
    Input,
    RunState,
    read_state,
    state_file,
    write_state,
)
from headrace.compose.batch_wait import finish, wait
from headrace.compose.interrupts import interruptible
from headrace.compose.model_file import opened
from headrace.compose.models_output import Output
from headrace.compose.platform_client import Refused, path_of
from headrace.domain.errors import HeadraceError, InvalidRequest

_STDIN: Final = "stdin"
#: Of a creation, beside its rows and for what they are.
_OPTIONS: Final = ("completion_window", "priority", "max_attempts", "metadata")


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be run, and how."""

    input: Path | None  # None: stdin
    model: str = ""  # "": every line says it
    version: str = ""
    places: Places
    #: What of a batch's creation is said.
    said: Mapping[str, Any] = {}
    fresh: bool = False
    waits: bool = True

    @property
    def url(self) -> str:
        """What rows say that are made of inputs; "" where they say it themselves."""
        if not self.model:
            return ""
        version = ("versions", self.version) if self.version else ()
        return path_of("v2", "models", self.model, *version, "infer")

    @property
    def name(self) -> str:
        """What messages call the input."""
        return str(self.input) if self.input else _STDIN


def run(client: BatchClient, output: Output, wanted: Wanted) -> int:
    """Run the rows of a file and save what comes of them; the exit code.

    The state beside the output tells which batch it will be filled from: where there is one, that
    batch is gone on with.

    Raises:
        InvalidRequest: the input cannot be read, or the state is that of another run.
        Refused: the platform would not begin the batch, or does not know it.
    """
    place = wanted.places.output
    file = state_file(place) if place is not None else None
    state = None
    wanted.places.require_apart(source=wanted.input, state=file, reads=True)
    if file is not None and wanted.fresh:
        _leave(output, file)
    elif file is not None:
        state = read_state(file)
    if state is None:
        wanted.places.require_free(force=wanted.fresh, hint="--fresh overwrites it")
        state = _upload(client, output, wanted)
        _keep(file, state)
    else:
        _require_same(client, state, wanted, file)
    if not state.batch:
        state = _create(client, state, file)
        _keep(file, state)
    elif wanted.waits:
        output.note(f"going on with {state.batch}, which {file} tells of")
    if not wanted.waits:
        return _told(client, output, state)
    resume = "the same command again, or" if file is not None else ""
    resume += f" `headrace batch results {state.batch} --wait`"
    with _known(file):
        ended = wait(client, output, state.batch, resume=resume.strip())
    places = msgspec.structs.replace(wanted.places, overwrites=state.overwrites)
    code = finish(client, output, ended, places, name=wanted.name)
    _forget(file)
    return code


def _told(client: BatchClient, output: Output, state: RunState) -> int:
    output.say(state.batch)
    output.note(f"wait for it: `headrace batch results {state.batch} --wait`")
    output.json({"batch": client.batch(state.batch).raw, "saved": {}})
    return 0


# Begin


def _upload(client: BatchClient, output: Output, wanted: Wanted) -> RunState:
    """Keep the input as a file of rows."""
    with interruptible(lambda: ["nothing was begun"]), _opened(wanted) as (stream, size, mtime_ns):
        rows = Rows(stream, name=wanted.name)
        url = wanted.url or rows.endpoint()
        target = endpoints.parse(url)
        client.require_batches()  # before much is sent in vain
        if target.model:
            _require_model(client, url)
        with output.bar(f"uploading {Path(wanted.name).name}", size) as advance:
            pieces = _counted(rows, wanted.url, advance)
            kept = client.upload(Path(wanted.name).name, pieces)
    return RunState(
        server=client.url,
        input=Input(size_bytes=rows.size_bytes, sha256=rows.sha256, mtime_ns=mtime_ns),
        content={"input_file_id": kept.value.id, "endpoint": url, **wanted.said},
        once=secrets.token_hex(ONCE_BYTES),
        overwrites=wanted.fresh,
    )


def _require_model(client: BatchClient, url: str) -> None:
    """Raises Refused where rows would be sent in vain."""
    try:
        client.require_model(url)
    except Refused as refused:
        # other processes may have the model and be known to: the platform judges
        if refused.status != HTTPStatus.NOT_FOUND or client.refuses_model(url):
            raise


def _counted(rows: Rows, url: str, advance: Callable[[int], None]) -> Iterator[bytes]:
    read = 0
    for piece in rows.pieces(url):
        yield piece
        advance(rows.size_bytes - read)
        read = rows.size_bytes


def _create(client: BatchClient, state: RunState, file: Path | None) -> RunState:
    """Begin the batch of an upload. Where it is refused there is nothing left of it."""
    with interruptible(lambda: _half_begun(file)):
        try:
            batch = client.create(state.content, once=state.once)
        except Refused as refused:
            if refused.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                _forget(file)
                _delete_input(client, state)
            raise
    return msgspec.structs.replace(state, batch=batch.value.id)


def _half_begun(file: Path | None) -> Iterator[str]:
    yield "the rows are uploaded, and their batch may have begun: `headrace batch list` tells"
    if file is not None:
        yield "the same command again goes on with it"


def _delete_input(client: BatchClient, state: RunState) -> None:
    with suppress(HeadraceError):  # it expires by itself
        client.delete_file(state.content["input_file_id"])


@contextmanager
def _opened(wanted: Wanted) -> Iterator[tuple[BinaryIO, int | None, int | None]]:
    """The input, its size and its time of change, where it has any."""
    if wanted.input is None:
        yield sys.stdin.buffer, None, None
        return
    with opened(wanted.input) as stream:
        status = os.fstat(stream.fileno())
        yield stream, status.st_size, status.st_mtime_ns


# Go on


def _require_same(client: BatchClient, state: RunState, wanted: Wanted, file: Path | None) -> None:
    """Raises InvalidRequest where the state is that of another run."""
    if state.server != client.url:
        raise InvalidRequest(
            f"{file} is of a run at {state.server}: name that as --url, or begin anew with --fresh"
        )
    url = state.content["endpoint"]
    if wanted.url and wanted.url != url:
        raise _other(file, f"a run for {url}, not {wanted.url}")
    with _opened(wanted) as (stream, size, mtime_ns):
        known = state.input
        rows = Rows(stream, name=wanted.name)
        if not wanted.url:
            rows.endpoint()  # where the lines do not say it, --model did
        if mtime_ns is None or (size, mtime_ns) != (known.size_bytes, known.mtime_ns):
            if size is None or size == known.size_bytes:
                rows.read_through()
            if rows.sha256 != known.sha256:
                raise _other(file, "a run with another input")
    _require_same_options(state, wanted, file)


def _require_same_options(state: RunState, wanted: Wanted, file: Path | None) -> None:
    """Raises InvalidRequest where the batch was asked for otherwise: it cannot be changed."""
    before, now = [
        {name: _option(name, content.get(name)) for name in _OPTIONS}
        for content in (state.content, wanted.said)
    ]
    other = [name for name in _OPTIONS if before[name] != now[name]]
    if other:
        then = ", ".join(before[name] for name in other)
        here = ", ".join(now[name] for name in other)
        raise InvalidRequest(
            f"{file} is of a run with {then}, and this has {here}: say it as then to go on with "
            "that batch, begin anew with --fresh, or name another --output"
        )


def _option(name: str, value: Any) -> str:
    """An option of a creation as it is said on the command line."""
    option = f"--{name.replace('_', '-')}"
    if not value:  # a priority of 0 is that of batches without any
        return f"no {option}"
    if isinstance(value, dict):
        return " ".join(f"{option} {key}={value[key]}" for key in sorted(value))
    return f"{option} {value}"


def _leave(output: Output, file: Path) -> None:
    """Say what becomes of the batch that was to fill this output."""
    with suppress(InvalidRequest):
        before = read_state(file)
        if before is not None and before.batch:
            output.note(
                f"{before.batch} is left to itself: `headrace batch cancel {before.batch}` stops it"
            )


def _other(file: Path | None, of: str) -> InvalidRequest:
    return InvalidRequest(f"{file} is of {of}: begin anew with --fresh, or name another --output")


@contextmanager
def _known(file: Path | None) -> Iterator[None]:
    """Where the platform does not know the batch, say how to begin anew."""
    try:
        yield
    except Refused as refused:
        if refused.status != HTTPStatus.NOT_FOUND or file is None:
            raise
        line = f"{refused.lines[0]}, of which {file} tells: begin anew with --fresh"
        raise Refused(refused.status, [line]) from refused


def _keep(file: Path | None, state: RunState) -> None:
    if file is not None:
        write_state(file, state)


def _forget(file: Path | None) -> None:
    if file is not None:
        file.unlink(missing_ok=True)
