"""A stream of bytes in pieces of the size that whoever takes them is best at."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator

from headrace.domain.errors import PayloadTooLarge


async def gathered(
    pieces: AsyncIterator[bytes],
    *,
    piece_bytes: int,
    limit_bytes: float = math.inf,
    subject: str = "stream",
) -> AsyncGenerator[bytes, None]:
    """Join pieces to ones of at least `piece_bytes`, but for the last. None is empty.

    Raises:
        PayloadTooLarge: there are more than `limit_bytes`; `subject` is what the error calls it.
    """
    size = 0
    waiting: list[bytes] = []
    waiting_bytes = 0
    async for piece in pieces:
        size += len(piece)
        if size > limit_bytes:
            msg = f"the {subject} has more than {limit_bytes} bytes, the limit of this platform"
            raise PayloadTooLarge(msg)
        waiting.append(piece)
        waiting_bytes += len(piece)
        if waiting_bytes >= piece_bytes:
            yield b"".join(waiting)
            waiting, waiting_bytes = [], 0
    if waiting_bytes:
        yield b"".join(waiting)
