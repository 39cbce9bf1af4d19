from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from headrace.domain.errors import CacheUnavailable
from headrace.registry.registry import Registry
from headrace.transport.management.application import management_app
from tests.integration.management.conftest import Platform, edge
from tests.support.idempotency import MemoryIdempotencyStore
from tests.support.registry_store import MemoryRegistryStore
from tests.unit.registry.fakes import FakeArtifacts, FakeInspector

HEALTH = "/api/v1/health"


def client(store: MemoryRegistryStore, ping: Any) -> httpx.AsyncClient:
    artifacts = FakeArtifacts()
    registry = Registry(
        store=store,
        reader=store,
        artifacts=artifacts,
        inspector=FakeInspector(artifacts),
        allowed=(),
        idempotency=MemoryIdempotencyStore(),
        ping_cache=ping,
    )
    app = edge(management_app(registry, version="1.2.3"))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://api")


async def test_health_tells_of_the_store(api: httpx.AsyncClient, platform: Platform) -> None:
    before = (await api.get(HEALTH)).json()
    assert before == {"status": "ok", "store": "ok", "cache": "none", "revision": 0}
    await api.post("/api/v1/models", json={"name": "bert"})
    assert (await api.get(HEALTH)).json()["revision"] == await platform.store.revision()


async def test_health_without_the_cache_is_degraded() -> None:
    async def gone() -> None:
        raise CacheUnavailable("the cache does not answer")

    async with client(MemoryRegistryStore(), gone) as api:
        answer = await api.get(HEALTH)
    assert answer.status_code == 200
    assert answer.json() == {"status": "degraded", "store": "ok", "cache": "unavailable",
                             "revision": 0}  # fmt: skip


async def test_health_without_the_store_is_503_and_so_is_all_else() -> None:
    async def here() -> None:
        pass

    store = MemoryRegistryStore()
    async with client(store, here) as api:
        store.fail = "down"
        answer = await api.get(HEALTH)
        assert answer.status_code == 503
        assert answer.json() == {"status": "unavailable", "store": "unavailable", "cache": "ok",
                                 "revision": None}  # fmt: skip
        for request in (
            api.get("/api/v1/models"),
            api.get("/api/v1/models/bert"),
            api.post("/api/v1/models", json={"name": "bert"}),
        ):
            refused = await request
            assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
        store.fail = ""
        assert (await api.post("/api/v1/models", json={"name": "bert"})).status_code == 201


async def test_the_docs_need_nothing_from_elsewhere(api: httpx.AsyncClient) -> None:
    page = await api.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert "'unsafe-eval'" not in page.headers["content-security-policy"]
    document = await api.get("/api/v1/openapi.json")
    assert document.json()["info"]["version"] == "1.2.3"
    assert document.json()["openapi"].startswith("3.1")
    assert (await api.post("/docs")).status_code == 405


def test_nothing_else_loads_fastapi() -> None:
    source = Path(__file__).parents[3] / "src" / "headrace"
    for file in source.rglob("*.py"):
        if "management" not in file.parts:
            text = file.read_text("utf-8")
            assert "from fastapi" not in text, file
            assert "import fastapi" not in text, file
