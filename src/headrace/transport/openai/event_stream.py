"""Server-sent events, as servers of OpenAI's API stream their answers.

Source: WHATWG, HTML, "Server-sent events".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from headrace.transport.http.client.exchange import broken

#: What the last event holds.
DONE: Final = b"[DONE]"
_DATA: Final = b"data"


class EventReader:
    """Takes what comes of a stream, and tells the data of events that are whole."""

    def __init__(self, *, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._left = b""  # of a line that has not ended
        self._data: list[bytes] = []  # of the event that has not ended
        self._held_bytes = 0

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The events that end in `piece`. Raises EndpointFailed where one is too large."""
        *lines, self._left = (self._left + piece).split(b"\n")
        for line in lines:
            text = line.removesuffix(b"\r")
            if text:
                self._take(text)
            elif self._data:
                data, self._data, self._held_bytes = b"\n".join(self._data), [], 0
                yield data
        if self._held_bytes + len(self._left) > self._limit_bytes:
            raise broken(f"an event of the endpoint's is over {self._limit_bytes} bytes")

    def _take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == _DATA:  # not a comment, by which servers show that they are there
            self._data.append(value.removeprefix(b" "))
            self._held_bytes += len(value)


def event(data: bytes) -> bytes:
    """The event that holds `data`."""
    return b"data: %b\n\n" % data.replace(b"\n", b"\ndata: ")
