"""Parts of a job's files, as a worker writes them."""

from __future__ import annotations

from typing import Final

from headrace.domain.chunks import Part
from headrace.domain.errors import AlreadyExists, BatchInconsistent
from headrace.ports.object_store import ObjectStore

#: Answers may be far longer than their rows: more than this of a part is not held in memory.
_HELD_BYTES: Final = 16 * 1024 * 1024
#: What readers other than those of JSON Lines may take for the end of a line, as `str.splitlines`
#: does, and how JSON writes it else. In JSON it stands nowhere but in texts.
_BREAKS: Final = (
    (b"\xe2\x80\xa8", b"\\u2028"),
    (b"\xe2\x80\xa9", b"\\u2029"),
    (b"\xc2\x85", b"\\u0085"),
)


class PartWriter:
    """Writes the lines of one part under `key`, in bounded memory.

    Most parts are small, and put as one object. A larger one is put in pieces, which are joined.
    """

    def __init__(self, objects: ObjectStore, key: str, *, held_bytes: int = _HELD_BYTES) -> None:
        self._objects = objects
        self._key = key
        self._most = held_bytes
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._pieces: list[str] = []
        self._size = 0

    async def write(self, lines: bytes) -> None:
        """Append lines.

        Raises:
            BatchInconsistent: something else was written there.
            StoreUnavailable, StorageFull.
        """
        if not lines:
            return
        lines = _unbroken(lines)
        if self._held and self._held_bytes + len(lines) > self._most:
            await self._put_piece()  # one long line goes alone, and is not copied
        self._held.append(lines)
        self._held_bytes += len(lines)
        self._size += len(lines)
        if self._held_bytes >= self._most:
            await self._put_piece()

    async def end(self) -> Part:
        """The part, written. Raises as `write`."""
        if not self._size:
            return Part()
        if not self._pieces:
            await self._put(self._key, b"".join(self._held))
            return Part(self._key, self._size)
        if self._held:
            await self._put_piece()
        written = await self._objects.join(self._key, self._pieces)
        if written != self._size:
            raise BatchInconsistent(f"{self._key} has {written} bytes, and not {self._size}")
        return Part(self._key, self._size)

    async def _put_piece(self) -> None:
        key = f"{self._key}.{len(self._pieces):04}"
        self._pieces.append(key)
        data = b"".join(self._held)
        self._held.clear()
        self._held_bytes = 0
        await self._put(key, data)

    async def _put(self, key: str, data: bytes) -> None:
        try:
            await self._objects.put(key, data)
        except AlreadyExists as error:  # an attempt has one holder: nobody else writes here
            raise BatchInconsistent(f"{key} is there already") from error


def _unbroken(lines: bytes) -> bytes:
    """Lines of JSON, none of which is broken by a separator in one of its texts."""
    if lines.isascii():  # numbers mostly: that is known in no time
        return lines
    for separator, escaped in _BREAKS:
        if separator in lines:
            lines = lines.replace(separator, escaped)
    return lines
