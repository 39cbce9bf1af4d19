from __future__ import annotations

from typing import Any

import httpx
import pytest

ROUTES = "/api/v1/routes"
ANY = {"If-Match": "*"}


@pytest.fixture
async def api(api: httpx.AsyncClient) -> httpx.AsyncClient:
    await api.post("/api/v1/models", json={"name": "bert"})
    await api.post("/api/v1/models/bert/versions", json={})
    return api


async def post(api: httpx.AsyncClient, *targets: Any, name: str = "r") -> httpx.Response:
    return await api.post(ROUTES, json={"name": name, "targets": list(targets)})


async def test_a_route_is_registered_changed_and_removed(api: httpx.AsyncClient) -> None:
    made = await post(api, {"model": "bert", "version": "1", "weight": 9}, {"model": "bert"})
    assert made.status_code == 201, made.text
    assert made.json()["targets"] == [
        {"model": "bert", "version": "1", "weight": 9.0},
        {"model": "bert", "version": "", "weight": 1.0},
    ]
    assert (await post(api, {"model": "bert"})).status_code == 409
    url = f"{ROUTES}/r"
    assert (await api.patch(url, json={"description": "d"})).status_code == 428
    tag = {"If-Match": made.headers["etag"]}
    changed = await api.patch(url, json={"description": "d"}, headers=tag)
    assert changed.json()["targets"] == made.json()["targets"]
    assert (await api.patch(url, json={}, headers=tag)).status_code == 412
    moved = await api.patch(url, json={"targets": [{"model": "bert"}]}, headers=ANY)
    assert len(moved.json()["targets"]) == 1
    read = await api.get(url, headers={"If-None-Match": moved.headers["etag"]})
    assert read.status_code == 304
    assert (await api.get(ROUTES)).json()["items"] == [moved.json()]
    assert (await api.delete(url)).status_code == 428
    assert (await api.delete(url, headers=ANY)).status_code == 204
    assert (await api.get(url)).status_code == 404


@pytest.mark.parametrize(
    ("targets", "pointer"),
    [
        ([], "#/targets"),
        ([{"model": "bert", "weight": 0}], "#/targets"),
        ([{"model": "bert", "weight": -1}], "#/targets/0/weight"),
        ([{"model": "bert"}, {"model": "bert", "weight": "1"}], "#/targets/1/weight"),
        ([{"model": "bert", "weight": 1e10}], "#/targets/0/weight"),
        ([{"weight": 1}], "#/targets/0/model"),
        ([{"model": "bert", "version": "a b"}], "#/targets/0/version"),
        ([{"model": "bert", "route": "r"}], "#/targets/0/route"),
    ],
)
async def test_targets_that_can_never_be_are_refused(
    api: httpx.AsyncClient, targets: list[Any], pointer: str
) -> None:
    answer = await post(api, *targets)
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["pointer"] == pointer


async def test_targets_have_to_be_there(api: httpx.AsyncClient) -> None:
    assert (await post(api, {"model": "bert"})).status_code == 201
    for target in (
        {"model": "none"},
        {"model": "bert", "version": "2"},
        {"model": "bert", "version": "champion"},
        {"model": "r"},
    ):
        answer = await post(api, {"model": "bert"}, target, name="other")
        assert answer.status_code == 409
        assert answer.json()["detail"].startswith("targets.1")
        patched = await api.patch(f"{ROUTES}/r", json={"targets": [target]}, headers=ANY)
        assert patched.status_code == 409
    circle = await post(api, {"model": "r"}, name="other")
    assert "route targets models" in circle.json()["detail"]
    # a route may have the name of a model, which its targets then mean
    assert (await post(api, {"model": "bert"}, name="bert")).status_code == 201
    assert (await post(api, {"model": "bert"}, name="third")).status_code == 201
