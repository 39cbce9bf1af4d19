"""A registry of many models: filled, served, listed, asked by name, and routed by.

The database is written directly, as publishing 30,000 files one by one would take an hour; all
versions share one artifact, so that every one of them can really be served.
"""

from __future__ import annotations

import asyncio
import http.client
import statistics
import timeit
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from bench import models
from bench.failure import BenchFailure
from bench.server import Server
from headrace.adapters.artifacts.settings import LocalArtifacts
from headrace.adapters.artifacts.store import Artifacts
from headrace.adapters.sql.opening import open_store
from headrace.adapters.sql.settings import SqliteSettings
from headrace.domain.catalog import Alias, Artifact, Model, Version
from headrace.ports.catalogue import Entry, Name
from headrace.router.resolution import resolve

SIZES: Final = (10, 10_000)
VERSIONS: Final = 3
_AT: Final = datetime(2026, 1, 1, tzinfo=UTC)
_TENANT: Final = "default"
_PER_TRANSACTION: Final = 500
_ASKED: Final = 200
_PAGES: Final = (
    "models?limit=50",
    "models?limit=50&sort=created_at&order=desc",
    "models?limit=50&tag=even",
    "models/{name}/versions?limit=50",
)


def name_of(index: int) -> str:
    return f"model-{index:05}"


def fill(data_dir: Path, count: int) -> None:
    """Make a registry of `count` models with their versions and aliases, on SQLite."""
    asyncio.run(_fill(data_dir, count))


async def _fill(data_dir: Path, count: int) -> None:
    artifacts = Artifacts(LocalArtifacts(), data_dir=data_dir)
    file = models.tiny(data_dir.with_suffix(".model"))
    artifact = await artifacts.take(_chunk(file.read_bytes()), format="onnx")
    store = await open_store(SqliteSettings(), data_dir=data_dir, now=lambda: _AT)
    try:
        for start in range(0, count, _PER_TRANSACTION):
            async with store.transaction() as transaction:
                for index in range(start, min(start + _PER_TRANSACTION, count)):
                    for entity in _entities(index, artifact):
                        await transaction.put(entity)  # type: ignore[type-var]
    finally:
        await store.close()


async def _chunk(content: bytes) -> AsyncIterator[bytes]:
    yield content


def _entities(index: int, artifact: Artifact) -> Iterator[Model | Version | Alias]:
    name = name_of(index)
    times: dict[str, Any] = {"created_at": _AT, "updated_at": _AT}
    tag = "even" if index % 2 == 0 else "odd"
    yield Model(tenant=_TENANT, id=f"mdl_{index:026}", name=name, tags=(tag,), **times)
    for number in range(1, VERSIONS + 1):
        yield Version(
            tenant=_TENANT,
            id=f"ver_{index:022}{number:04}",
            model=name,
            version=str(number),
            status="ready",
            artifact=artifact,
            **times,
        )
    yield Alias(tenant=_TENANT, model=name, alias="champion", version="2", **times)


def ask(server: Server, count: int) -> dict[str, float]:
    """Latencies of the management API over one connection, in milliseconds."""
    step = max(1, count // _ASKED)
    names = [name_of(index) for index in range(0, count, step)]
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        _timed(connection, "models?limit=1")  # the application is made when it is first asked
        first = [_timed(connection, f"models/{name}") for name in names]
        again = [_timed(connection, f"models/{name}") for name in names]
        pages = {
            page: [_timed(connection, page.format(name=name)) for name in names[:50]]
            for page in _PAGES
        }
    finally:
        connection.close()
    slowest = max(statistics.median(times) for times in pages.values())
    return {
        "get_store_ms": statistics.median(first),
        "get_cache_ms": statistics.median(again),
        "list_ms": slowest,
    }


def _timed(connection: http.client.HTTPConnection, path: str) -> float:
    begun = perf_counter()
    connection.request("GET", f"/api/v1/{path}")
    answer = connection.getresponse()
    body = answer.read()
    took = perf_counter() - begun
    if answer.status != http.HTTPStatus.OK:
        raise BenchFailure(f"GET /api/v1/{path} was answered {answer.status}: {body[:300]!r}")
    return took * 1000


def look_up_us(count: int) -> float:
    """Microseconds that choosing a version takes where nothing was chosen before."""
    artifact = Artifact(digest="0" * 64, size_bytes=1, format="onnx")
    entries: dict[Name, Entry] = {}
    for index in range(count):
        versions: dict[str, Version] = {}
        aliases: dict[str, str] = {}
        for entity in _entities(index, artifact):
            if isinstance(entity, Version):
                versions[entity.version] = entity
            elif isinstance(entity, Alias):
                aliases[entity.alias] = entity.version
        entries[_TENANT, name_of(index)] = Entry(versions=versions, aliases=aliases)
    names = [name_of(index) for index in range(0, count, max(1, count // _ASKED))]

    def all_names() -> None:
        for name in names:
            resolve(entries[_TENANT, name], name, "", default_alias="champion")

    return min(timeit.repeat(all_names, number=20, repeat=20)) / 20 / len(names) * 1e6
