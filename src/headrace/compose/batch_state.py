"""The small file beside an output that knows which batch will fill it, so that a run resumes."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from headrace.domain.errors import InvalidRequest

SUFFIX: Final = ".headrace-batch.json"
#: Of the key that creates a batch once only, which is twice as many hexadecimal digits.
ONCE_BYTES: Final = 16


class Input(msgspec.Struct, frozen=True, kw_only=True):
    """What was uploaded, so that another input is not taken for it."""

    size_bytes: int
    sha256: str
    mtime_ns: int | None = None  # None: it came through a pipe


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the creation of a batch may say."""

    input_file_id: str
    endpoint: str
    completion_window: str | msgspec.UnsetType = msgspec.UNSET
    priority: int | msgspec.UnsetType = msgspec.UNSET
    max_attempts: int | msgspec.UnsetType = msgspec.UNSET
    metadata: dict[str, str] | msgspec.UnsetType = msgspec.UNSET


class RunState(msgspec.Struct, frozen=True, kw_only=True):
    """A run that has uploaded its rows. Whatever is here is of no use to others: no token."""

    server: str
    input: Input
    content: dict[str, Any]  # that the batch is created with
    #: The key that creates it once only: it goes into a header.
    once: Annotated[str, msgspec.Meta(pattern=rf"^[0-9a-f]{{{2 * ONCE_BYTES}}}\Z")]
    batch: str = ""  # its id, once that is known
    overwrites: bool = False  # whether what is where its files go was given up

    def __post_init__(self) -> None:
        """Raises msgspec.ValidationError where no batch is created with such a content."""
        msgspec.convert(self.content, _Content)


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
