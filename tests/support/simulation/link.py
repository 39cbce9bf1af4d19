"""How a simulated process reaches servers: with delay, and not always.

A request takes effect at its server on its own: whoever made it may be dead, paused, or told that
the server is not there by then, as it is with real networks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, Final, Protocol, TypeVar

from headrace.domain.errors import EndpointFailed, HeadraceError, StoreUnavailable
from headrace.domain.idempotency import IdempotencyKey
from tests.support.simulation.scenario import POLLED, Server, Strike
from tests.support.simulation.world import World, listed, settle

T = TypeVar("T")
_HANGS_S: Final = 5.0
_PAGE: Final = 2
#: So many answers come as quickly as they were given.
_AT_ONCE: Final = 0.7


class Killed(BaseException):
    """The process is gone: nothing that it does has an effect any more."""


class Mortal(Protocol):
    """A process that can be killed and paused."""

    name: str

    @property
    def is_dead(self) -> bool: ...

    def kill(self) -> None: ...

    def pause(self, seconds: float) -> None: ...


class Link:
    """One process's way to all servers."""

    def __init__(self, world: World, process: Mortal) -> None:
        self.world = world
        self.process = process

    async def ask(
        self,
        server: Server,
        operation: str,
        act: Callable[[], T],
        *,
        takes_s: float = 0.0,
        args: tuple[Any, ...] = (),
    ) -> T:
        """Have a server act, and wait for its answer. Raises StoreUnavailable, Killed."""
        world, process = self.world, self.process
        if process.is_dead:
            raise Killed
        strike = world.strike(operation)
        request = _Request(link=self, server=server, operation=operation, act=act, args=args)
        if strike is not None and strike.when != "after":
            await self._struck(strike, request)
        request.strike = strike
        world.later(world.latency_s() + takes_s, request.serve)
        return await request.reply  # type: ignore[no-any-return]

    async def _struck(self, strike: Strike, request: _Request) -> None:
        """Be struck before a request is sent, or while it is under way for long."""
        world, process = self.world, self.process
        if strike.when == "late":
            world.later(strike.seconds, request.serve)
            world.disturb(world.loop.time() + strike.seconds)
        if strike.deed == "kill":
            process.kill()
            raise Killed
        if strike.deed == "refuse":
            raise failure(request.server, sent=strike.when == "late")
        process.pause(strike.seconds)
        await asyncio.sleep(0)  # which lasts as long as the pause
        if strike.when == "late":
            raise failure(request.server, sent=True)


class _Request:
    """One request under way."""

    __slots__ = ("act", "args", "link", "operation", "reply", "server", "strike")

    def __init__(
        self,
        *,
        link: Link,
        server: Server,
        operation: str,
        act: Callable[[], Any],
        args: tuple[Any, ...],
    ) -> None:
        self.link = link
        self.server = server
        self.operation = operation
        self.act = act
        self.args = args
        self.reply: asyncio.Future[Any] = link.world.loop.create_future()
        self.strike: Strike | None = None

    def serve(self) -> None:
        """What the server does with it, and what becomes of the answer."""
        world, process = self.link.world, self.link.process
        if world.is_down(self.server) and not world.acts(self.server):
            world.note(process.name, self.operation, "refused")
            self._answer(None, failure(self.server, sent=False), hangs=True)
            return
        answer, error = None, None
        try:
            answer = self.act()
        except HeadraceError as raised:
            error = raised
        if error is not None:
            world.note(process.name, self.operation, self.args, error)
        elif answer or self.operation not in POLLED:  # idle looks would fill the trace
            world.note(process.name, self.operation, self.args, answer)
        if error is None and world.watch is not None:
            world.watch(self.operation, self.args, answer, process.name)
        strike = self.strike
        if strike is not None and strike.when == "after" and not process.is_dead:
            if strike.deed == "kill":
                process.kill()
                return
            if strike.deed == "refuse":
                error = failure(self.server, sent=True)
            else:
                process.pause(strike.seconds)
        if world.is_down(self.server):
            self._answer(None, failure(self.server, sent=True), hangs=True)
        else:
            self._answer(answer, error)

    def _answer(self, answer: Any, error: HeadraceError | None, *, hangs: bool = False) -> None:
        world = self.link.world
        if hangs:
            delay_s = world.chance.choice((0.0, 0.1, _HANGS_S))
            world.disturb(world.loop.time() + delay_s)
        elif world.chance.random() < _AT_ONCE:
            self._deliver(answer, error)
            return
        else:
            delay_s = world.latency_s()
        world.later(delay_s, self._deliver, answer, error)

    def _deliver(self, answer: Any, error: HeadraceError | None) -> None:
        if self.reply.done() or self.link.process.is_dead:
            return  # nobody waits any more
        if error is not None:
            self.reply.set_exception(error)
        else:
            self.reply.set_result(answer)


def failure(server: Server, *, sent: bool) -> HeadraceError:
    """What whoever asks a server is told that does not answer."""
    if server == "model":
        failed = EndpointFailed("the model's server does not answer")
        failed.sent = sent
        return failed
    return StoreUnavailable(f"the {server} does not answer")


class RemoteStore:
    """The port `JobStore` over a link."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        """Any of its operations."""
        effect = getattr(self._link.world.store, name)

        async def ask(*args: Any, **kwargs: Any) -> Any:
            return await self._link.ask(
                "store",
                name,
                lambda: settle(effect(*args, **kwargs)),
                args=(*args, *kwargs.values()),
            )

        self.__dict__[name] = ask
        return ask

    async def database(self) -> str:
        """The same in every run."""
        return await self._link.ask("store", "database", lambda: "simulated")

    async def chunks(self, job: str) -> AsyncIterator[Any]:
        """Some chunks at a time."""
        store, seen = self._link.world.store, 0
        while True:
            found = await self._link.ask(
                "store", "chunks", lambda: settle(listed(store.chunks(job))), args=(job, seen)
            )
            for chunk in found[seen : seen + _PAGE]:
                yield chunk
            seen += _PAGE
            if seen >= len(found):
                return


class RemoteKeys:
    """The port `IdempotencyStore` over a link."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        """Any of its operations, which are others than those of jobs."""
        effect = getattr(self._link.world.keys, name)

        async def ask(key: IdempotencyKey, *args: Any, **kwargs: Any) -> Any:
            return await self._link.ask(
                "store", f"{name}_key", lambda: settle(effect(key, *args, **kwargs)), args=(key,)
            )

        self.__dict__[name] = ask
        return ask


class RemoteObjects:
    """The port `ObjectStore` over a link."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._server = link.world.objects

    async def put(self, key: str, data: bytes) -> None:
        await self._ask("put", key, lambda: self._server.put(key, data))

    async def upload(self, key: str, pieces: AsyncIterator[bytes], *, limit_bytes: int) -> int:
        data = await listed(pieces)

        async def again() -> AsyncIterator[bytes]:
            for piece in data:
                yield piece

        return await self._ask(
            "upload", key, lambda: self._server.upload(key, again(), limit_bytes=limit_bytes)
        )

    async def join(self, key: str, parts: list[str]) -> int:
        return await self._ask("join", key, lambda: self._server.join(key, parts))

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        pieces = await self._ask("read", key, lambda: listed(self._server.read(key, start, end)))
        for at, piece in enumerate(pieces):
            if at and at % _PAGE == 0:
                await self._ask("read", key, lambda: self._server.size(key))
            yield piece

    async def keys(
        self, prefix: str, *, older_than_s: float
    ) -> AsyncGenerator[Sequence[str], None]:
        pages = await self._ask(
            "keys", prefix, lambda: listed(self._server.keys(prefix, older_than_s=older_than_s))
        )
        for page in pages:
            yield page

    async def remove(self, key: str) -> None:
        await self._ask("remove", key, lambda: self._server.remove(key))

    async def _ask(self, operation: str, key: str, act: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return await self._link.ask("objects", operation, lambda: settle(act()), args=(key,))
