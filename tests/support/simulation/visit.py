"""One request of a client at a simulated process: the real wire, over links that may fail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any, Final, Protocol, TypeAlias, TypeVar, cast

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from headrace.batch.failed_rows import FailedRows
from headrace.batch.files import Files
from headrace.batch.jobs import Jobs
from headrace.batch.settings import BatchSettings
from headrace.batch.spare_hands import Spare
from headrace.batch.storage import Storage
from headrace.domain.calls import Principal
from headrace.domain.errors import HeadraceError, StoreUnavailable
from headrace.domain.scopes import EVERYTHING
from headrace.ports.idempotency import IdempotencyStore
from headrace.ports.job_store import JobStore
from headrace.ports.object_store import ObjectStore
from headrace.transport.idempotent import HEADER
from headrace.transport.oip_rest.rows import OipRows
from headrace.transport.openai.batches import BatchesWire
from headrace.transport.openai.errors import OPENAI
from headrace.transport.openai.files import FilesWire
from headrace.transport.status import http_status
from tests.support.simulation.link import (
    Killed,
    Link,
    Mortal,
    RemoteKeys,
    RemoteObjects,
    RemoteStore,
)
from tests.support.simulation.scenario import Server
from tests.support.simulation.world import World

T = TypeVar("T")


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asks for."""

    what: str  # an operation of the wire, as in "batches.create"
    tenant: str
    body: bytes = b""
    media_type: str = "application/json"
    id: str = ""  # of a file or a batch
    key: str = ""  # for idempotency; "": none


#: The status and the body.
Answer: TypeAlias = tuple[int, Any]


class Serving(Mortal, Protocol):
    """A process that answers requests."""

    def wall(self) -> float:
        """Seconds since 1970 by its own clock."""
        ...

    def changed(self) -> None: ...

    def offer(self) -> AbstractContextManager[Spare | None]: ...


class _Passing(Link):
    """The way to all servers while a request is answered."""

    def __init__(self, world: World, visit: Visit) -> None:
        super().__init__(world, visit)
        self.has_failed = False

    async def ask(
        self,
        server: Server,
        operation: str,
        act: Callable[[], T],
        *,
        takes_s: float = 0.0,
        args: tuple[Any, ...] = (),
    ) -> T:
        """See Link. It is known of which request something was not answered."""
        try:
            return await super().ask(server, operation, act, takes_s=takes_s, args=args)
        except (StoreUnavailable, asyncio.CancelledError, Killed):
            self.has_failed = True
            raise


class Visit:
    """One request, and as far as servers know a process of its own: they are told its name."""

    def __init__(
        self, world: World, process: Serving, number: int, settings: BatchSettings
    ) -> None:
        self.name = f"{process.name}#{number}"
        self._world = world
        self._process = process
        self._link = link = _Passing(world, self)
        store = cast("JobStore", RemoteStore(link))
        objects = cast("ObjectStore", RemoteObjects(link))
        codec = OipRows()
        storage = Storage(store=store, settings=settings)
        files = Files(
            store=store,
            objects=objects,
            storage=storage,
            settings=settings,
            clock=process.wall,
            new_id=world.new_id,
        )
        jobs = Jobs(
            store=store,
            objects=objects,
            failed_rows=FailedRows(store=store, objects=objects, codec=codec, settings=settings),
            storage=storage,
            settings=settings,
            clock=process.wall,
            monotonic=world.loop.time,
            new_id=world.new_id,
            changed=process.changed,
            offer=process.offer,
        )
        keys = cast("IdempotencyStore", RemoteKeys(link))
        self._wires: Final = {
            "files": FilesWire(files),
            "batches": BatchesWire(jobs, idempotency=keys),
        }

    @property
    def is_dead(self) -> bool:
        return self._process.is_dead

    def kill(self) -> None:
        self._process.kill()

    def pause(self, seconds: float) -> None:
        self._process.pause(seconds)

    async def answer(self, asked: Asked) -> Answer:
        """Carry a request out."""
        wire, _, operation = asked.what.partition(".")
        handle = getattr(self._wires[wire], operation)
        response = await _told(_request(asked), handle)
        if not self._link.has_failed:
            self._world.whole.add(self.name)
        return response.status_code, msgspec.json.decode(response.body)


async def _told(request: Request, handle: Callable[[Request], Awaitable[Response]]) -> Response:
    try:
        return await handle(request)
    except HeadraceError as error:
        return await _refusal(request, error)


async def _refusal(_: Request, error: HeadraceError) -> Response:
    return Response(OPENAI.body(error, ""), http_status(error))


#: What the wire needs of the application that it is a part of.
_APPLICATION: Final = SimpleNamespace(exception_handlers={HeadraceError: _refusal})


def _request(asked: Asked) -> Request:
    """A request as the server would hand it to the wire."""
    headers = [(b"content-type", asked.media_type.encode())]
    if asked.key:
        headers.append((HEADER.lower().encode(), asked.key.encode()))
    pieces = [{"type": "http.request", "body": asked.body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        return pieces.pop()

    path = f"/v1/{asked.what.replace('.', '/')}/{asked.id}"
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
        "path_params": {"id": asked.id},
        "server": ("simulated", 80),
        "app": _APPLICATION,
        "headrace.principal": Principal("ann", asked.tenant, EVERYTHING),
    }
    return Request(scope, receive)
