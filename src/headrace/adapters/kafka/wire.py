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
    attempt: _Count = 0


class _Letter(msgspec.Struct, frozen=True, kw_only=True):
    v: Literal[1] = 1
    reason: str
    job: str | None
    chunk: int | None
    raw: bytes  # base64 in JSON
    raw_bytes: int  # how many it had, where it is cut
    source: str
    story: tuple[str, ...]


class Unreadable(ValueError):
    """What came is no message, or none of a version known here; the sentence says why."""


_decoder: Final = msgspec.json.Decoder(_Line)


def encode(message: Message) -> bytes:
    """A message as it is sent."""
    ref = message.ref
    line = _Line(job=ref.job, chunk=ref.index, failures=message.failures, attempt=message.attempt)
    return msgspec.json.encode(line)


def decode(raw: bytes) -> Message:
    """A message as it came. Raises Unreadable, which tells nothing of what stands in it."""
    if len(raw) > MAX_MESSAGE_BYTES:
        raise Unreadable(f"it has {len(raw)} bytes, over {MAX_MESSAGE_BYTES}")
    if not raw:
        raise Unreadable("it is empty")
    try:
        line = _decoder.decode(raw)
    except UnicodeDecodeError:
        raise Unreadable("it is not UTF-8") from None
    except RecursionError:
        raise Unreadable("it is nested too deeply") from None
    except msgspec.MsgspecError as error:
        raise Unreadable(str(error)) from None
    ref = ChunkRef(line.job, line.chunk)
    return Message(ref=ref, failures=line.failures, attempt=line.attempt)


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


def key(ref: ChunkRef, attempt: int = 0) -> bytes:
    """What the partition is chosen by: a job's chunks spread over all of them.

    A chunk that was handed back comes to another, and so to another process most likely: that
    which had it may not have the model. Nothing needs an order.
    """
    place = f"{ref.job}/{ref.index}"
    return (f"{place}/{attempt}" if attempt else place).encode()
