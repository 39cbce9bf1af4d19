"""The small file beside an output that knows which batch will fill it, so that a run resumes."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace.domain.errors import InvalidRequest

SUFFIX: Final = ".headrace-batch.json"


class Input(msgspec.Struct, frozen=True, kw_only=True):
    """What was uploaded, so that another input is not taken for it."""

    size_bytes: int
    sha256: str
    mtime_ns: int | None = None  # None: it came through a pipe


class RunState(msgspec.Struct, frozen=True, kw_only=True):
    """A run that has uploaded its rows. Whatever is here is of no use to others: no token."""

    server: str
    input: Input
    content: dict[str, Any]  # that the batch is created with
    once: str  # the key that creates it once only
    batch: str = ""  # its id, once that is known


def state_file(output: Path) -> Path:
    """Where the state of the run is that fills `output`."""
    return output.with_name(output.name + SUFFIX)


def read_state(file: Path) -> RunState | None:
    """The state; None where there is none. Raises InvalidRequest where it cannot be read."""
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be read: {error.strerror}") from error
    try:
        return msgspec.json.decode(text, type=RunState)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(
            f"{file} is not the state of a run: begin anew with --fresh, or remove it"
        ) from error


def write_state(file: Path, state: RunState) -> None:
    """Replace the state: whole or not at all. Raises InvalidRequest."""
    beside = file.with_name(f".{file.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        with beside.open("xb") as stream:
            stream.write(msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(file)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise InvalidRequest(f"{file} cannot be written: {error.strerror}") from error
