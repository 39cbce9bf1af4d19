from __future__ import annotations

import httpx

from tests.integration.management.conftest import Platform

AUDIT = "/api/v1/audit"


async def actions(api: httpx.AsyncClient, **query: str) -> list[str]:
    answer = await api.get(AUDIT, params=query)
    assert answer.status_code == 200, answer.text
    return [event["action"] for event in answer.json()["items"]]


async def test_every_change_is_told_with_before_and_after(platform: Platform) -> None:
    async with platform.client("ann") as ann, platform.client("bob") as bob:
        await ann.post("/api/v1/models", json={"name": "bert", "owner": "x"})
        await bob.patch("/api/v1/models/bert", json={"owner": "y"}, headers={"If-Match": "*"})
        await ann.post("/api/v1/models", json={"name": "bert2"})
        await ann.post("/api/v1/models/bert/versions", json={})
        await ann.delete("/api/v1/models/bert", headers={"If-Match": "*"})
        events = (await ann.get(AUDIT)).json()["items"]
        assert [(e["action"], e["subject"], e["principal"]) for e in reversed(events)] == [
            ("model.create", "models/bert", "ann"),
            ("model.update", "models/bert", "bob"),
            ("model.create", "models/bert2", "ann"),
            ("version.create", "models/bert/versions/1", "ann"),
            ("model.delete", "models/bert", "ann"),
        ]
        update = events[3]
        assert (update["before"]["owner"], update["after"]["owner"]) == ("x", "y")
        assert update["request_id"] == "req-1"
        assert (events[-1]["before"], events[0]["after"]) == (None, None)
        assert events[0]["before"]["owner"] == "y"

        assert await actions(ann, action="version") == ["version.create"]
        assert await actions(ann, action="model.update") == ["model.update"]
        assert await actions(ann, principal="bob") == ["model.update"]
        assert await actions(ann, subject="models/bert2") == ["model.create"]
        assert len(await actions(ann, subject="models/bert")) == 4
        at = events[2]["at"]
        assert await actions(ann, since=at) == ["model.delete", "version.create", "model.create"]
        assert await actions(ann, until=at) == ["model.update", "model.create"]


async def test_the_trail_is_read_page_by_page(api: httpx.AsyncClient) -> None:
    for number in range(5):
        await api.post("/api/v1/models", json={"name": f"m{number}"})
    seen = []
    query: dict[str, str] = {"limit": "2"}
    while True:
        page = (await api.get(AUDIT, params=query)).json()
        seen += [event["subject"] for event in page["items"]]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert seen == [f"models/m{number}" for number in (4, 3, 2, 1, 0)]
    models = await api.get("/api/v1/models", params={"limit": 1})
    other = models.json()["next_cursor"]
    assert (await api.get(AUDIT, params={"cursor": other})).status_code == 400


async def test_a_time_needs_its_offset(api: httpx.AsyncClient) -> None:
    for edge in ("9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59"):
        assert (await api.get(AUDIT, params={"since": edge, "until": edge})).status_code == 200
    for since in ("2026-01-01", "2026-01-01T00:00:00", "0.5", "now"):
        answer = await api.get(AUDIT, params={"since": since})
        assert answer.status_code == 400
        assert answer.json()["errors"][0]["parameter"] == "since"


async def test_nobody_changes_the_trail(api: httpx.AsyncClient) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert (await api.request(method, AUDIT)).status_code == 405
