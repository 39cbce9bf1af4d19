"""Several stub servers at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from random import Random
from types import TracebackType
from typing import Self

from tests.support.stub_faults import Fault
from tests.support.stub_server import StubServer


class StubFleet:
    """`async with StubFleet(3) as fleet`: stubs called stub-0, stub-1 …, each on a port."""

    def __init__(self, size: int, *, models: frozenset[str] | None = None, seed: int = 0) -> None:
        self.stubs = [
            StubServer(f"stub-{i}", models=models, random=Random(seed + i)) for i in range(size)
        ]
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            for stub in self.stubs:
                await self._stack.enter_async_context(stub)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    def __getitem__(self, i: int) -> StubServer:
        return self.stubs[i]

    def __iter__(self) -> Iterator[StubServer]:
        return iter(self.stubs)

    def __len__(self) -> int:
        return len(self.stubs)

    @property
    def urls(self) -> list[str]:
        return [stub.url for stub in self.stubs]

    @property
    def infers(self) -> int:
        """Inference requests at all of them: the attempts, seen from the other side."""
        return sum(stub.infers for stub in self.stubs)

    @property
    def in_flight(self) -> int:
        return sum(stub.in_flight for stub in self.stubs)

    @property
    def aborted(self) -> int:
        return sum(stub.aborted for stub in self.stubs)

    def shares(self) -> Counter[str]:
        """Inference requests by the stub's name."""
        return Counter({stub.name: stub.infers for stub in self.stubs})

    def fail(self, fault: Fault) -> None:
        """Set the same fault at all of them."""
        for stub in self.stubs:
            stub.fault = fault
