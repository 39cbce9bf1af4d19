from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from headrace.domain.catalog import Endpoint, Route
from headrace.registry.configured import Configured
from tests.integration.management.conftest import Platform
from tests.support.registry_store import MemoryRegistryStore

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
    rest = {"name": "", "endpoints": {}}
    assert made.json()["targets"] == [
        {"model": "bert", "version": "1", "weight": 9.0, **rest},
        {"model": "bert", "version": "", "weight": 1.0, **rest},
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


WHOLE = {
    "targets": [
        {"model": "bert", "weight": 95, "name": "usual", "endpoints": {}, "version": ""},
        {"model": "bert", "weight": 5, "name": "new", "endpoints": {"gpu": "h"}, "version": "1"},
    ],
    "rules": [
        {
            "match": {"headers": {"x-beta": "yes"}, "tenants": ["acme"], "principals": ["ann"]},
            "targets": [
                {"model": "bert", "weight": 1, "name": "new", "endpoints": {"gpu": "h"},
                 "version": "1"},
            ],
        }
    ],
    "fallbacks": [{"model": "bert", "weight": 1, "name": "", "endpoints": {}, "version": "1"}],
    "shadows": [
        {"share": 0.1,
         "target": {"model": "bert", "weight": 1, "name": "s", "endpoints": {}, "version": "1"}}
    ],
    "sticky": {"by": "header", "header": "x-user"},
    "force_header": "x-target",
    "policy": {"balancer": "consistent-hash", "hash_header": "x-session", "timeout_s": 5.0,
               "try_timeout_s": 1.5, "max_attempts": 2, "hedge_percentile": 95.0},
    "description": "all of it",
}  # fmt: skip


def as_sent() -> dict[str, Any]:
    """The whole route, with the names of headers as people write them."""
    route: dict[str, Any] = copy.deepcopy(WHOLE)
    route["rules"][0]["match"]["headers"] = {"X-Beta": "yes"}
    route["sticky"]["header"] = "X-User"
    route["force_header"] = "X-Target"
    route["policy"]["hash_header"] = "X-Session"
    return route


async def test_all_of_a_route_comes_back_with_headers_in_lower_case(api: httpx.AsyncClient) -> None:
    made = await api.post(ROUTES, json={"name": "r", **as_sent()})
    assert made.status_code == 201, made.text
    read = (await api.get(f"{ROUTES}/r")).json()
    assert {name: read[name] for name in WHOLE} == WHOLE
    again = await api.patch(f"{ROUTES}/r", json=as_sent(), headers=ANY)
    assert again.headers["etag"] == made.headers["etag"]


async def test_a_patch_merges_objects_and_replaces_lists(api: httpx.AsyncClient) -> None:
    await api.post(ROUTES, json={"name": "r", **WHOLE})
    patch: dict[str, Any] = {
        "rules": None,
        "shadows": [],
        "fallbacks": [{"model": "bert"}],
        "sticky": {"header": "X-Other"},
        "force_header": None,
        "policy": {"timeout_s": None, "max_attempts": 1},
    }
    changed = await api.patch(f"{ROUTES}/r", json=patch, headers=ANY)
    assert changed.status_code == 200, changed.text
    route = changed.json()
    assert (route["rules"], route["shadows"], route["force_header"]) == ([], [], "")
    assert route["targets"] == WHOLE["targets"]
    assert [target["version"] for target in route["fallbacks"]] == [""]
    assert route["sticky"] == {"by": "header", "header": "x-other"}
    expected = {**WHOLE["policy"], "timeout_s": None, "max_attempts": 1}  # type: ignore[dict-item]
    assert route["policy"] == expected
    cleared = await api.patch(f"{ROUTES}/r", json={"sticky": None, "policy": None}, headers=ANY)
    assert cleared.json()["sticky"] is None
    assert set(cleared.json()["policy"].values()) == {None}
    by_caller = {"sticky": {"by": "principal"}}
    made = await api.patch(f"{ROUTES}/r", json=by_caller, headers=ANY)
    assert made.json()["sticky"] == {"by": "principal", "header": ""}


BERT = {"model": "bert"}


@pytest.fixture(scope="module")
def shared() -> Platform:
    """Of all that is refused: none of it changes anything."""
    return Platform(MemoryRegistryStore())


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"targets": [BERT] * 65}, "#/targets"),
        ({"rules": [{"match": {}, "targets": [BERT]}] * 17}, "#/rules"),
        ({"fallbacks": [BERT] * 9}, "#/fallbacks"),
        ({"shadows": [{"target": BERT}] * 5}, "#/shadows"),
        ({"shadows": [{"target": BERT, "share": 1.1}]}, "#/shadows/0/share"),
        ({"shadows": [{"target": {"model": "a b"}}]}, "#/shadows/0/target/model"),
        ({"rules": [{"match": {}, "targets": []}]}, "#/rules/0/targets"),
        ({"rules": [{"match": {}, "targets": [{**BERT, "weight": 0}]}]}, "#/rules/0/targets"),
        ({"rules": [{"targets": [BERT]}]}, "#/rules/0/match"),
        (
            {"rules": [{"match": {"headers": {"a b": "x"}}, "targets": [BERT]}]},
            "#/rules/0/match/headers/a b",
        ),
        (
            {"rules": [{"match": {"headers": {"Cookie": "x"}}, "targets": [BERT]}]},
            "#/rules/0/match/headers/Cookie",
        ),
        (
            {"rules": [{"match": {"headers": {"x~A": "1", "x~a": "2"}}, "targets": [BERT]}]},
            "#/rules/0/match/headers/x~0a",
        ),
        (
            {"rules": [{"match": {"headers": {"x-a": " 1"}}, "targets": [BERT]}]},
            "#/rules/0/match/headers/x-a",
        ),
        ({"sticky": {"by": "header"}}, "#/sticky/header"),
        ({"sticky": {"header": "x-a"}}, "#/sticky/header"),
        ({"sticky": {"by": "header", "header": "Authorization"}}, "#/sticky/header"),
        ({"sticky": {"by": "cookie"}}, "#/sticky/by"),
        ({"force_header": "X-API-Key"}, "#/force_header"),
        ({"force_header": "Transfer-Encoding"}, "#/force_header"),
        ({"force_header": "a:b"}, "#/force_header"),
        ({"policy": {"hash_header": "proxy-authorization"}}, "#/policy/hash_header"),
        ({"policy": {"hash_header": ""}}, "#/policy/hash_header"),
        ({"policy": {"balancer": "best"}}, "#/policy/balancer"),
        ({"policy": {"timeout_s": 0}}, "#/policy/timeout_s"),
        ({"policy": {"try_timeout_s": -1}}, "#/policy/try_timeout_s"),
        ({"policy": {"max_attempts": 0}}, "#/policy/max_attempts"),
        ({"policy": {"max_attempts": 11}}, "#/policy/max_attempts"),
        ({"policy": {"hedge_percentile": 49.9}}, "#/policy/hedge_percentile"),
        ({"policy": {"hedge_percentile": 100}}, "#/policy/hedge_percentile"),
        ({"policy": {"retries": 1}}, "#/policy/retries"),
        ({"targets": [{**BERT, "name": "a b"}]}, "#/targets/0/name"),
        ({"targets": [BERT, BERT]}, "#/targets/1/name"),
        ({"targets": [BERT, {**BERT, "version": "1", "name": "bert"}]}, "#/targets/1/name"),
        ({"fallbacks": [{**BERT, "endpoints": {"gpu": "h"}}]}, "#/fallbacks/0/name"),
        (
            {"shadows": [{"target": {**BERT, "version": "1", "name": "bert"}}]},
            "#/shadows/0/target/name",
        ),
    ],
)
async def test_a_route_that_can_never_be_is_refused_by_the_field(
    shared: Platform, fields: dict[str, Any], pointer: str
) -> None:
    async with shared.client() as api:
        await api.post("/api/v1/models", json={"name": "bert"})
        answer = await api.post(ROUTES, json={"name": "new", "targets": [BERT], **fields})
        assert answer.status_code == 400, answer.text
        errors = answer.json()["errors"]
        assert [error["pointer"] for error in errors] == [pointer]
        await post(api, BERT, name="r")
        assert (await api.patch(f"{ROUTES}/r", json=fields, headers=ANY)).status_code == 400


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"rules": [{"match": {}, "targets": [{"model": "no"}]}]}, "rules.0.targets.0.model"),
        ({"fallbacks": [{"model": "bert", "version": "2"}]}, "fallbacks.0.version"),
        ({"shadows": [{"target": {"model": "no"}}]}, "shadows.0.target.model"),
    ],
)
async def test_targets_of_every_set_have_to_be_there(
    shared: Platform, fields: dict[str, Any], where: str
) -> None:
    async with shared.client() as api:
        await api.post("/api/v1/models", json={"name": "bert"})
        answer = await api.post(ROUTES, json={"name": "new", "targets": [BERT], **fields})
        assert answer.status_code == 409, answer.text
        assert answer.json()["detail"].startswith(where)
        assert answer.json()["errors"][0]["pointer"] == "#/" + where.replace(".", "/")
        await post(api, BERT, name="r")
        assert (await api.patch(f"{ROUTES}/r", json=fields, headers=ANY)).status_code == 409


@pytest.mark.parametrize(
    "fields",
    [
        {"rules": [{"match": {}, "targets": [{"model": "new", "version": "live"}]}]},
        {"fallbacks": [{"model": "new", "version": "live"}]},
        {"shadows": [{"target": {"model": "new", "version": "live"}}]},
    ],
)
async def test_what_any_set_of_a_route_names_is_not_deleted_unless_forced(
    api: httpx.AsyncClient, fields: dict[str, Any]
) -> None:
    new = "/api/v1/models/new"
    await api.post("/api/v1/models", json={"name": "new"})
    await api.post(f"{new}/versions", json={})
    uploaded = await api.put(
        f"{new}/versions/1/artifact",
        content=b"onnx",
        headers={"Content-Type": "application/onnx", **ANY},
    )
    assert uploaded.status_code == 200, uploaded.text
    moved = await api.put(f"{new}/aliases/live", json={"version": "1"})
    assert moved.status_code == 201, moved.text
    made = await api.post(ROUTES, json={"name": "r", "targets": [BERT], **fields})
    assert made.status_code == 201, made.text
    for path in (new, f"{new}/aliases/live"):
        refused = await api.delete(path, headers=ANY)
        assert refused.json()["needed_by"] == ["routes/r"]
    assert (await api.delete(f"{new}?force=true", headers=ANY)).status_code == 204


ENDPOINTS = "/api/v1/endpoints"
AT = datetime(2026, 1, 1, tzinfo=UTC)


async def test_a_target_may_be_what_an_endpoint_serves(api: httpx.AsyncClient) -> None:
    llm = {"model": "llm", "version": "7"}
    refused = await post(api, llm)
    assert (refused.status_code, "no endpoint serves it" in refused.text) == (409, True)
    sent = {"name": "e", "url": "http://10.0.0.1", "models": ["llm", "bert"]}
    await api.post(ENDPOINTS, json=sent)
    assert (await post(api, llm)).status_code == 201
    # what both have may have versions there that the registry does not know
    assert (await post(api, {"model": "bert", "version": "9"}, name="s")).status_code == 201
    assert (await post(api, {"model": "other"}, name="t")).status_code == 409


async def test_an_endpoint_without_models_serves_what_nothing_else_does(
    api: httpx.AsyncClient,
) -> None:
    await api.post(ENDPOINTS, json={"name": "self", "protocol": "in-process"})
    # this process has what is known already, whatever its endpoint says
    assert (await post(api, {"model": "llm"}, name="llm")).status_code == 409
    await api.post(ENDPOINTS, json={"name": "e", "url": "http://10.0.0.1"})
    assert (await post(api, {"model": "llm"}, name="llm")).status_code == 201
    # its own name stands for the model behind it, as often as it is changed
    moved = {"targets": [{"model": "llm"}, {"model": "llm", "version": "2"}]}
    assert (await api.patch(f"{ROUTES}/llm", json=moved, headers=ANY)).status_code == 200
    circle = await post(api, {"model": "llm"}, name="other")
    assert "route targets models" in circle.json()["detail"]
    # the registry has bert, so that the endpoint does not
    assert (await post(api, {"model": "bert", "version": "9"}, name="s")).status_code == 409


async def test_a_target_may_be_what_the_platform_knows_of() -> None:
    platform = Platform(
        MemoryRegistryStore(),
        known=lambda tenant, model: (tenant, model) == ("default", "of-the-folder"),
        configured=Configured(
            endpoints=(
                Endpoint(tenant="default", name="e", url="http://10.0.0.1", models=("llm",),
                         created_at=AT, updated_at=AT),
            ),
            routes=(
                Route(tenant="default", name="fixed", targets=(), created_at=AT, updated_at=AT),
            ),
        ),
    )  # fmt: skip
    async with platform.client() as api:
        assert (await post(api, {"model": "of-the-folder"}, {"model": "llm"})).status_code == 201
        circle = await post(api, {"model": "fixed"}, name="s")
        assert "route targets models" in circle.json()["detail"]
        taken = await post(api, {"model": "llm"}, name="fixed")
        assert (taken.status_code, "settings file" in taken.text) == (409, True)
    async with platform.client(tenant="other") as api:
        assert (await post(api, {"model": "of-the-folder"})).status_code == 409
        assert (await post(api, {"model": "llm"})).status_code == 409
