"""The port `ObjectStore` in memory, with gates for simulations and for tests of its users."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, TypeAlias

from headrace.domain.errors import AlreadyExists, NotFound, PayloadTooLarge

Gate: TypeAlias = Callable[[str], Awaitable[None]]

_LISTED: Final = 3  # keys of a page


class MemoryObjects:
    """Objects that live as long as this one; `objects` is what is there.

    `gate`, where there is one, is awaited by every call with its name before the call looks at
    anything, and `after_gate` once it has taken effect: what they raise is a store that failed
    before or after. A read passes both once for its opening, and `gate` again for every piece;
    a listing both for every page. `written` is when, by `now`; what a test lays down is old.
    """

    def __init__(self, *, piece_bytes: int = 1024**2, now: Callable[[], float] = time.time) -> None:
        self.objects: dict[str, bytes] = {}
        self.written: dict[str, float] = {}
        self._now = now
        self.gate: Gate | None = None
        self.after_gate: Gate | None = None
        self._piece_bytes = piece_bytes

    async def put(self, key: str, data: bytes) -> None:
        await self._before("put")
        if key not in self.objects:
            self._write(key, data)
        elif self.objects[key] != data:
            raise AlreadyExists(f"there is an object {key!a} in the store")
        await self._after("put")

    async def upload(self, key: str, pieces: AsyncIterator[bytes], *, limit_bytes: int) -> int:
        await self._before("upload")
        data = bytearray()
        async for piece in pieces:
            data += piece
            if len(data) > limit_bytes:
                raise PayloadTooLarge(f"the file has more than {limit_bytes} bytes")
        self._write(key, bytes(data))
        await self._after("upload")
        return len(data)

    async def join(self, key: str, parts: Sequence[str]) -> int:
        await self._before("join")
        joined = b"".join([self._found(part) for part in parts])
        self._write(key, joined)
        await self._after("join")
        return len(joined)

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        await self._before("read")
        wanted = memoryview(self._found(key))[start:end]
        await self._after("read")
        for at in range(0, len(wanted), self._piece_bytes):
            await self._before("read")
            yield bytes(wanted[at : at + self._piece_bytes])

    async def size(self, key: str) -> int:
        await self._before("size")
        size = len(self._found(key))
        await self._after("size")
        return size

    async def keys(
        self, prefix: str, *, older_than_s: float
    ) -> AsyncGenerator[Sequence[str], None]:
        latest, after = self._now() - older_than_s, ""
        while True:
            await self._before("keys")
            page = sorted(
                key
                for key in self.objects
                if key.startswith(prefix) and key > after and self.written.get(key, 0.0) <= latest
            )[:_LISTED]
            await self._after("keys")
            if not page:
                return
            yield page
            after = page[-1]

    async def remove(self, key: str) -> None:
        await self._before("remove")
        below = key.endswith("/")
        for found in [k for k in self.objects if k == key or (below and k.startswith(key))]:
            del self.objects[found]
            self.written.pop(found, None)
        await self._after("remove")

    async def presigned(self, key: str, expires_s: int) -> str | None:  # noqa: ARG002 - the port's
        return None

    async def close(self) -> None:
        pass

    async def _before(self, name: str) -> None:
        if self.gate is not None:
            await self.gate(name)

    async def _after(self, name: str) -> None:
        if self.after_gate is not None:
            await self.after_gate(name)

    def _write(self, key: str, data: bytes) -> None:
        self.objects[key], self.written[key] = data, self._now()

    def _found(self, key: str) -> bytes:
        if key not in self.objects:
            raise NotFound(f"there is no object {key!a} in the store")
        return self.objects[key]
