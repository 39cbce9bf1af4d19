"""The files of a batch that has ended, saved whole or not at all."""

from __future__ import annotations

import filecmp
import itertools
import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final, TextIO

import msgspec

from headrace.compose import batch_text as text
from headrace.compose.batch_client import BatchClient
from headrace.compose.batch_follow import Patience
from headrace.compose.batch_views import Batch
from headrace.compose.model_file import Damaged, move, require_free
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
    #: What is there already was given up, in so many words.
    overwrites: bool = False

    def require_apart(
        self, *, source: Path | None = None, state: Path | None = None, reads: bool = False
    ) -> None:
        """Raises InvalidRequest where two of these are one file, by whatever names and links.

        `source` is what is read, None with `reads` stdin; `state` is where a run is remembered.
        """
        files = [
            ("--output", _seen(self.output, sys.stdout)),
            ("--errors", _seen(self.errors, sys.stdout)),
            ("the run's state", _seen(state, sys.stdout)),
        ]
        if reads or source is not None:
            files.insert(0, ("--input", _seen(source or STDOUT, sys.stdin)))
        for (what, one), (other, two) in itertools.combinations(files, 2):
            if one is not None and two is not None and one.is_same(two):
                raise InvalidRequest(
                    f"{what} {one.name} and {other} {two.name} are the same file: "
                    "name another, or one would overwrite the other"
                )

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
    an older file there, if it may be overwritten, is removed, as it would tell of rows that did
    not fail.

    Raises:
        Damaged: a file came that is not whole. It is not saved.
        InvalidRequest: a place cannot be written, or has come to hold something else.
    """
    saved: dict[str, str] = {}
    # one that was refused has none; one whose input is gone has what was answered before
    if places.output is not None and (batch.status != "failed" or batch.output_file_id):
        rows = _rows(batch, batch.request_counts.completed)
        file = _File(batch.output_file_id, rows)
        _save(client, output, file, places.output, overwrites=places.overwrites)
        saved["output"] = str(places.output)
    if places.errors is not None:
        if batch.error_file_id:
            rows = _rows(batch, batch.request_counts.failed)
            file = _File(batch.error_file_id, rows)
            _save(client, output, file, places.errors, overwrites=places.overwrites)
            saved["errors"] = str(places.errors)
        elif places.errors != STDOUT and os.path.lexists(places.errors):
            _leave_none(output, places.errors, overwrites=places.overwrites)
    counts = batch.request_counts
    for kind, count, what in (
        ("output", counts.completed, "the answers of"),
        ("errors", counts.failed, "the errors of"),
    ):
        if kind in saved and saved[kind] != str(STDOUT):
            output.say(f"{saved[kind]} has {what} {text.rows_of(count)}")
    return saved


class _Seen(msgspec.Struct, frozen=True):
    """A file as it is named, and what tells whether another name is the same file."""

    name: str
    path: Path | None  # without links; None: a stream
    status: os.stat_result | None  # None: it is not there yet

    def is_same(self, other: _Seen) -> bool:
        if self.path is not None and self.path == other.path:
            return True
        one, two = self.status, other.status
        return one is not None and two is not None and os.path.samestat(one, two)


def _seen(place: Path | None, stream: TextIO) -> _Seen | None:
    """What a place is; `stream` is that of `-`. None where there is nothing to mistake it for."""
    if place is None:
        return None
    if place != STDOUT:
        path = Path(os.path.realpath(place))
        return _Seen(str(place), path, path.stat() if path.exists() else None)
    with suppress(OSError, ValueError, AttributeError):  # it is closed, or is no file
        status = os.fstat(stream.fileno())
        if stat.S_ISREG(status.st_mode):
            return _Seen(str(place), None, status)
    return None


class _File(msgspec.Struct, frozen=True):
    """A file of a batch: its id, None where there is none, and its rows where they are told."""

    id: str | None
    rows: int | None


def _rows(batch: Batch, count: int) -> int | None:
    """Rows that a file must have; of one that failed as a whole it is not known."""
    told = batch.status != "failed" and batch.request_counts.total
    return count if told else None


def _save(
    client: BatchClient, output: Output, file: _File, place: Path, *, overwrites: bool
) -> None:
    if file.id is None:
        if file.rows:
            raise Damaged(f"there are {text.rows_of(file.rows)} for {place}, and no file of them")
        _write(place, iter(()), force=overwrites)
        return
    size = client.file(file.id).value.bytes
    with output.bar(f"downloading {place.name}", size) as advance:
        fetched = _fetched(client, file.id, Patience(tell=output.note))
        _write(place, _told(_whole(fetched, file, size), advance), force=overwrites)


def _whole(pieces: Iterator[bytes], file: _File, size: int) -> Iterator[bytes]:
    """The same. Raises Damaged in the end where it is not all."""
    came = lines = 0
    last = b"\n"
    for piece in pieces:
        if piece:
            came += len(piece)
            if came > size:
                break  # whatever else would come
            lines += piece.count(b"\n")
            last = piece[-1:]
            yield piece
    lines += last != b"\n"
    if came != size:
        more = "or more " if came > size else ""
        raise Damaged(f"file {file.id} has {size} bytes, and {came} {more}came: take it again")
    if file.rows is not None and lines != file.rows:
        raise Damaged(
            f"file {file.id} should tell of {text.rows_of(file.rows)}, and it has {lines} lines"
        )


def _leave_none(output: Output, place: Path, *, overwrites: bool) -> None:
    """No row failed: an older file would tell otherwise."""
    if overwrites:
        require_free(place, force=True)
        place.unlink(missing_ok=True)
    else:
        output.note(f"{place} is not of this batch, none of whose rows failed")


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


def _write(place: Path, pieces: Iterator[bytes], *, force: bool) -> None:
    if place == STDOUT:
        _write_to(sys.stdout.buffer, pieces)
        return
    require_free(place, force=True)
    beside = place.with_name(f".{place.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        with beside.open("xb") as stream:
            _write_to(stream, pieces)
            os.fsync(stream.fileno())
        # as a run left it that was killed before it could forget its batch
        if not force and os.path.lexists(place):
            if not _is_file_with(place, beside):
                raise InvalidRequest(f"{place} is there already, and is something else: move it")
        else:
            move(beside, place, force=force)
    except OSError as error:
        raise InvalidRequest(f"{place} cannot be written: {error.strerror}") from error
    finally:
        beside.unlink(missing_ok=True)


def _is_file_with(place: Path, beside: Path) -> bool:
    return place.is_file() and filecmp.cmp(place, beside, shallow=False)


def _write_to(stream: BinaryIO, pieces: Iterator[bytes]) -> None:
    stream.writelines(pieces)
    stream.flush()
