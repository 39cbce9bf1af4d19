"""The files of a batch that has ended, saved whole or not at all."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from headrace.compose import batch_text as text
from headrace.compose.batch_client import BatchClient
from headrace.compose.batch_follow import Patience
from headrace.compose.batch_views import Batch
from headrace.compose.model_file import require_free
from headrace.compose.models_output import Output
from headrace.domain.errors import HeadraceError, InvalidRequest

#: Instead of a file: what comes is written to stdout.
STDOUT: Final = Path("-")

COMPLETED: Final = 0
REFUSED: Final = 1
ROWS_FAILED: Final = 3


class Places(msgspec.Struct, frozen=True):
    """Where a batch's files go; None: nowhere."""

    output: Path | None
    errors: Path | None

    def require_free(self, *, force: bool, hint: str) -> None:
        """Raises InvalidRequest where something is there that may not be overwritten.

        `hint` says how it may be.
        """
        for place in (self.output, self.errors):
            if place is None or place == STDOUT:
                continue
            if not place.absolute().parent.is_dir():
                raise InvalidRequest(f"{place.absolute().parent} is not a directory")
            if not force and os.path.lexists(place):
                raise InvalidRequest(f"{place} is there already; {hint}")
            require_free(place, force=True)


def exit_code(batch: Batch) -> int:
    """What a command that waited for a batch exits with."""
    if batch.status != "completed":
        return REFUSED
    return ROWS_FAILED if batch.request_counts.failed else COMPLETED


def take(client: BatchClient, output: Output, batch: Batch, places: Places) -> dict[str, str]:
    """Save a batch's files and tell where; answers their places.

    A place for answers is written to even if there are none, one for errors only if there are:
    an older file there is removed, as it would tell of rows that did not fail.
    """
    saved: dict[str, str] = {}
    patience = Patience(tell=output.note)
    if places.output is not None and batch.status != "failed":
        _save(client, output, batch.output_file_id, places.output, patience)
        saved["output"] = str(places.output)
    if places.errors is not None:
        if batch.error_file_id:
            _save(client, output, batch.error_file_id, places.errors, patience)
            saved["errors"] = str(places.errors)
        elif places.errors != STDOUT:
            places.errors.unlink(missing_ok=True)
    counts = batch.request_counts
    for kind, count, what in (
        ("output", counts.completed, "the answers of"),
        ("errors", counts.failed, "the errors of"),
    ):
        if kind in saved and saved[kind] != str(STDOUT):
            output.say(f"{saved[kind]} has {what} {text.rows_of(count)}")
    return saved


def _save(
    client: BatchClient, output: Output, file: str | None, place: Path, patience: Patience
) -> None:
    if file is None:
        _write(place, iter(()))
        return
    size = client.file(file).value.bytes
    with output.bar(f"downloading {place.name}", size) as advance:
        _write(place, _told(_fetched(client, file, patience), advance))


def _told(pieces: Iterator[bytes], advance: Callable[[int], None]) -> Iterator[bytes]:
    for piece in pieces:
        yield piece
        advance(len(piece))


def _fetched(client: BatchClient, file: str, patience: Patience) -> Iterator[bytes]:
    """The bytes of a file; where they break off, they go on from there."""
    came = 0
    while True:
        try:
            with client.content(file, start=came) as pieces:
                for piece in pieces:
                    patience.answered()
                    came += len(piece)
                    yield piece
        except HeadraceError as error:
            patience.bear(error)
        else:
            return


def _write(place: Path, pieces: Iterator[bytes]) -> None:
    if place == STDOUT:
        _write_to(sys.stdout.buffer, pieces)
        return
    require_free(place, force=True)
    beside = place.with_name(f".{place.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        with beside.open("xb") as stream:
            _write_to(stream, pieces)
            os.fsync(stream.fileno())
        beside.replace(place)
    except OSError as error:
        raise InvalidRequest(f"{place} cannot be written: {error.strerror}") from error
    finally:
        beside.unlink(missing_ok=True)


def _write_to(stream: BinaryIO, pieces: Iterator[bytes]) -> None:
    stream.writelines(pieces)
    stream.flush()
