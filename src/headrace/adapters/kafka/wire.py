"""How messages and dead letters are written: small JSON objects that say their version."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

import msgspec

from headrace.domain.chunks import ChunkRef
from headrace.ports.job_queue import DeadLetter, Message

#: A reference is some 100 bytes; what is larger is no message of ours.
MAX_MESSAGE_BYTES: Final = 16 * 1024
#: Of a message that could not be read, so that the letter about it fits into its topic.
MAX_RAW_BYTES: Final = 256 * 1024

_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    """Fields that are not known are left alone: a newer process may have added them."""

    v: Literal[1] = 1
    job: Annotated[str, msgspec.Meta(min_length=1)]
    chunk: _Count
    failures: _Count = 0


class _Letter(msgspec.Struct, frozen=True, kw_only=True):
    v: Literal[1] = 1
    reason: str
    job: str | None
    chunk: int | None
    raw: bytes  # base64 in JSON
    raw_bytes: int  # how many it had, where it is cut
    source: str
    story: tuple[str, ...]


_decoder: Final = msgspec.json.Decoder(_Line)


def encode(message: Message) -> bytes:
    """A message as it is sent."""
    ref = message.ref
    return msgspec.json.encode(_Line(job=ref.job, chunk=ref.index, failures=message.failures))


def decode(raw: bytes) -> Message | None:
    """A message as it came; None where it is not one, or not one of a version known here."""
    if len(raw) > MAX_MESSAGE_BYTES:
        return None
    try:
        line = _decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return Message(ref=ChunkRef(line.job, line.chunk), failures=line.failures)


def encode_letter(letter: DeadLetter) -> bytes:
    """A dead letter as it is sent."""
    ref = letter.ref
    return msgspec.json.encode(
        _Letter(
            reason=letter.reason,
            job=None if ref is None else ref.job,
            chunk=None if ref is None else ref.index,
            raw=letter.raw[:MAX_RAW_BYTES],
            raw_bytes=len(letter.raw),
            source=letter.source,
            story=letter.story,
        )
    )


def key(ref: ChunkRef) -> bytes:
    """What the partition is chosen by: a job's chunks spread over all of them."""
    return f"{ref.job}/{ref.index}".encode()
