"""A body as it came: the reads that brought it."""

from __future__ import annotations

from typing import Final

_MAX_PIECES: Final = 1024  # before they become one: small ones cost many times what they hold


class Pieces:
    """Gathers a body without copying it, unless it comes in very many parts."""

    __slots__ = ("_packed", "parts")

    def __init__(self) -> None:
        self.parts: list[bytes | memoryview] = []
        self._packed = 0  # parts that are many joined

    def add(self, data: bytes | memoryview) -> None:
        """Take the next part."""
        parts = self.parts
        parts.append(data)
        if len(parts) - self._packed > _MAX_PIECES:
            parts[self._packed :] = [b"".join(parts[self._packed :])]
            self._packed += 1
