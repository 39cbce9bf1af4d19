"""What a stub server can be told to do wrong (or oddly), one struct each.

They are tagged, so that a stub in another process can be told as JSON.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

#: An answer's head (status line and headers) or its body.
Part: TypeAlias = Literal["head", "body"]


class Ok(msgspec.Struct, frozen=True, tag=True):
    """Nothing is wrong."""


class Delay(msgspec.Struct, frozen=True, tag=True):
    """Answers later, and rightly."""

    seconds: float


class Status(msgspec.Struct, frozen=True, tag=True):
    """Answers with this status at once."""

    code: int
    retry_after: str = ""  # seconds or an HTTP date; "": no such header
    body: bytes = b'{"error":"the stub was told to say so"}'


class Garbage(msgspec.Struct, frozen=True, tag=True):
    """Answers with bytes that are no HTTP, and leaves the connection open."""

    data: bytes = b"\x16\x03\x01\x02\x00 this is no HTTP\r\n\r\n"


class GarbageJson(msgspec.Struct, frozen=True, tag=True):
    """Answers 200 with a body that is no inference response, nor JSON."""

    body: bytes = b'{"outputs": [nonsense'


class WrongLength(msgspec.Struct, frozen=True, tag=True):
    """Content-Length is `by` larger than the body, or where negative smaller."""

    by: int
    then_close: bool = True  # False: whoever believes the length waits for the rest for ever


class Truncate(msgspec.Struct, frozen=True, tag=True):
    """Closes in an orderly way (FIN) after so many bytes of the head or the body."""

    after_bytes: int
    part: Part = "body"


class Reset(msgspec.Struct, frozen=True, tag=True):
    """Resets the connection (RST) before any byte of the answer."""

    during_upload: bool = False  # as soon as the request's headers are there


class ResetMidBody(msgspec.Struct, frozen=True, tag=True):
    """Resets the connection (RST) after so many bytes of the body."""

    after_bytes: int = 1


class Drip(msgspec.Struct, frozen=True, tag=True):
    """Answers rightly and slowly: the body only, or everything from the head on."""

    bytes_per_s: float
    part: Part = "body"


class Hang(msgspec.Struct, frozen=True, tag=True):
    """Never answers. Without `read_upload` it does not take the request's body either.

    What it does not read it does not see end: a client that gives up is then not noticed.
    """

    read_upload: bool = True


class CloseAfterAnswer(msgspec.Struct, frozen=True, tag=True):
    """Answers rightly and closes; `announced` with `Connection: close`."""

    announced: bool = False


class AnswerEarly(msgspec.Struct, frozen=True, tag=True):
    """Answers when it has the headers, then goes on reading the body and keeps the connection."""

    code: int = 200


class NotReady(msgspec.Struct, frozen=True, tag=True):
    """Probes are answered 503; inference is answered."""


class Extra(msgspec.Struct, frozen=True, tag=True):
    """Answers rightly, with bytes behind that nobody asked for: here a whole second answer."""

    data: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nleak"


class Chunked(msgspec.Struct, frozen=True, tag=True):
    """Answers rightly, in chunks of so many bytes."""

    chunk_bytes: int = 16


class UntilClose(msgspec.Struct, frozen=True, tag=True):
    """Answers rightly with no length: the body ends where the connection does."""


class Flaky(msgspec.Struct, frozen=True, tag=True):
    """A share of requests, from 0 to 1, meets `fault`; which ones the stub's `random` says."""

    share: float
    fault: Fault = Status(503)


Fault: TypeAlias = (
    Ok
    | Delay
    | Status
    | Garbage
    | GarbageJson
    | WrongLength
    | Truncate
    | Reset
    | ResetMidBody
    | Drip
    | Hang
    | CloseAfterAnswer
    | AnswerEarly
    | NotReady
    | Extra
    | Chunked
    | UntilClose
    | Flaky
)
