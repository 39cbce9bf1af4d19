"""One request to an endpoint and what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from headrace.domain.errors import EndpointFailed, HeadraceError

if TYPE_CHECKING:
    from headrace.transport.http.client.connection import ClientConnection

NO_ANSWER: Final = "the endpoint closed the connection without an answer"


class Answer(msgspec.Struct, gc=False):
    """A whole answer. Header names are lower case; repeated headers are joined by ", "."""

    status: int
    headers: dict[bytes, bytes]
    body: list[bytes | memoryview]  # the parts as they were received


#: An error is a result as an answer is: a future whose exception nobody takes, because its
#: request was cancelled in the same turn of the loop, would complain in the log.
Outcome: TypeAlias = Answer | HeadraceError


class Exchange(msgspec.Struct, eq=False):
    """A request under way: in the queue, waiting for a connection, or on one."""

    head: bytes  # whole, with the empty line at its end
    body: Sequence[bytes | memoryview]
    deadline: float  # on the loop's clock
    outcome: asyncio.Future[Outcome]
    #: Whether it may go out a second time, the first having been lost; None: it may.
    may_repeat: Callable[[], bool] | None = None
    connection: ClientConnection | None = None  # that it is on
    coded: bool = False  # whether the answer may have a Content-Encoding, which is not undone here
    max_body_bytes: int | None = None  # of the answer; None: as for the connection

    def end(self, outcome: Outcome) -> None:
        """Wake whoever waits for it."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)


def never() -> bool:
    """Say that a request may not go out a second time."""
    return False


def broken(message: str, reason: str = "") -> EndpointFailed:
    """Say that the endpoint is at fault: `message` to clients, `reason` to operators."""
    error = EndpointFailed(message)
    error.reason = reason or message
    return error
