"""Bodies that a route reads whole, and holds until its requests are answered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from starlette.requests import Request

from headrace.domain.errors import Overloaded, PayloadTooLarge

_RETRY_AFTER_S: Final = 1.0


class HeldBodies:
    """Bodies of all requests under way hold `max_buffered_bytes` at most."""

    def __init__(self, *, max_body_bytes: int, max_buffered_bytes: int) -> None:
        self._max_body_bytes = max_body_bytes
        self._max_buffered_bytes = max_buffered_bytes
        self._buffered_bytes = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The body, which counts among those held until the block ends.

        Raises:
            PayloadTooLarge, Overloaded.
        """
        pieces: list[bytes] = []
        held_bytes = 0
        try:
            async for piece in request.stream():
                held_bytes += len(piece)
                self._buffered_bytes += len(piece)
                if held_bytes > self._max_body_bytes:
                    msg = f"request body is over the limit of {self._max_body_bytes} bytes"
                    raise PayloadTooLarge(msg)
                if self._buffered_bytes > self._max_buffered_bytes:
                    limit = self._max_buffered_bytes
                    msg = f"the bodies of all requests under way are at the limit of {limit} bytes"
                    raise Overloaded(msg, retry_after_s=_RETRY_AFTER_S)
                pieces.append(piece)
            pieces[:] = [b"".join(pieces)]
            yield pieces.pop()  # which nobody but its taker holds then
        finally:
            self._buffered_bytes -= held_bytes
