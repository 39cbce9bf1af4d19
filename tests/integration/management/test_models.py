from __future__ import annotations

import asyncio

import httpx

from tests.integration.management.conftest import Platform

MODELS = "/api/v1/models"


async def create(api: httpx.AsyncClient, name: str, **fields: object) -> httpx.Response:
    answer = await api.post(MODELS, json={"name": name, **fields})
    assert answer.status_code == 201, answer.text
    return answer


async def test_a_new_model_is_answered_with_its_place_and_its_tag(api: httpx.AsyncClient) -> None:
    answer = await create(api, "bert", description="reads", tags=["b", "a", "b"], owner="ann")
    assert answer.headers["location"] == f"{MODELS}/bert"
    model = answer.json()
    assert answer.headers["etag"] == f'"{model["revision"]}"'
    assert model["tags"] == ["a", "b"]
    assert model["id"].startswith("mdl_")
    assert len(model["id"]) == 30
    assert "tenant" not in model
    read = await api.get(f"{MODELS}/bert")
    assert (read.status_code, read.json()) == (200, model)
    assert read.headers["etag"] == answer.headers["etag"]


async def test_create_race(platform: Platform) -> None:
    async with platform.client() as api:
        answers = await asyncio.gather(*(api.post(MODELS, json={"name": "bert"}) for _ in range(8)))
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [201] + [409] * 7
    refused = next(a for a in answers if a.status_code == 409)
    assert refused.json()["code"] == "already_exists"


async def test_partial_update_touches_only_what_is_named(api: httpx.AsyncClient) -> None:
    made = await create(
        api, "bert", description="d", owner="o", tags=["t"], metadata={"a": {"b": 1, "c": 2}}
    )
    answer = await api.patch(
        f"{MODELS}/bert",
        json={"owner": None, "metadata": {"a": {"b": None, "d": 3}}},
        headers={
            "If-Match": made.headers["etag"],
            "Content-Type": "application/merge-patch+json",
        },
    )
    assert answer.status_code == 200, answer.text
    model = answer.json()
    assert (model["description"], model["owner"], model["tags"]) == ("d", "", ["t"])
    assert model["metadata"] == {"a": {"c": 2, "d": 3}}
    assert model["updated_at"] > model["created_at"]
    assert answer.headers["etag"] != made.headers["etag"]


async def test_a_patch_that_changes_nothing_leaves_the_state(platform: Platform) -> None:
    async with platform.client() as api:
        made = await create(api, "bert", owner="o")
        answer = await api.patch(
            f"{MODELS}/bert", json={"owner": "o"}, headers={"If-Match": made.headers["etag"]}
        )
        assert answer.headers["etag"] == made.headers["etag"]
        trail = await api.get("/api/v1/audit")
    assert [event["action"] for event in trail.json()["items"]] == ["model.create"]


async def test_a_write_must_name_the_state_that_it_changes(api: httpx.AsyncClient) -> None:
    made = await create(api, "bert")
    for request in (api.patch(f"{MODELS}/bert", json={}), api.delete(f"{MODELS}/bert")):
        answer = await request
        assert (answer.status_code, answer.json()["code"]) == (428, "precondition_required")
    changed = await api.patch(
        f"{MODELS}/bert", json={"owner": "x"}, headers={"If-Match": made.headers["etag"]}
    )
    stale = {"If-Match": made.headers["etag"]}
    for request in (
        api.patch(f"{MODELS}/bert", json={}, headers=stale),
        api.delete(f"{MODELS}/bert", headers=stale),
        # a weak tag does not name one state
        api.delete(f"{MODELS}/bert", headers={"If-Match": "W/" + changed.headers["etag"]}),
    ):
        answer = await request
        assert (answer.status_code, answer.json()["code"]) == (412, "precondition_failed")
    several = {"If-Match": f"{made.headers['etag']}, {changed.headers['etag']}"}
    assert (await api.delete(f"{MODELS}/bert", headers=several)).status_code == 204
    assert (await api.get(f"{MODELS}/bert")).status_code == 404


async def test_a_known_state_is_not_sent_again(api: httpx.AsyncClient) -> None:
    made = await create(api, "bert")
    tag = made.headers["etag"]
    for known in (tag, f"W/{tag}", f'"0", {tag}', "*"):
        answer = await api.get(f"{MODELS}/bert", headers={"If-None-Match": known})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == tag
    answer = await api.get(f"{MODELS}/bert", headers={"If-None-Match": '"0"'})
    assert answer.status_code == 200


async def test_another_tenants_model_is_not_found(platform: Platform) -> None:
    async with platform.client() as ann, platform.client("bob", tenant="other") as bob:
        made = await create(ann, "bert")
        any_state = {"If-Match": "*"}
        assert (await bob.get(f"{MODELS}/bert")).status_code == 404
        assert (await bob.get(f"/api/v1/by-id/{made.json()['id']}")).status_code == 404
        patched = await bob.patch(f"{MODELS}/bert", json={"owner": "bob"}, headers=any_state)
        assert patched.status_code == 404
        assert (await bob.delete(f"{MODELS}/bert", headers=any_state)).status_code == 404
        assert (await bob.post(f"{MODELS}/bert/versions", json={})).status_code == 404
        assert (await bob.get(MODELS)).json()["items"] == []
        assert (await bob.get("/api/v1/audit")).json()["items"] == []
        # and a name is free where another tenant has it
        await create(bob, "bert")
        assert (await ann.get(f"{MODELS}/bert")).json() == made.json()


async def test_lists_are_filtered_sorted_and_continued(api: httpx.AsyncClient) -> None:
    for name, tags in (("Bert", ["x"]), ("albert", ["x", "y"]), ("gpt", ["y"])):
        await create(api, name, tags=tags)

    async def names(**query: str | int) -> list[str]:
        answer = await api.get(MODELS, params=query)
        assert answer.status_code == 200, answer.text
        return [model["name"] for model in answer.json()["items"]]

    assert await names() == ["Bert", "albert", "gpt"]
    assert await names(name="BERT") == ["Bert", "albert"]
    assert await names(tag="y") == ["albert", "gpt"]
    assert await names(tag="y", name="bert") == ["albert"]
    assert await names(sort="created_at", order="desc") == ["gpt", "albert", "Bert"]
    for query in ({"sort": "name"}, {"sort": "updated_at", "order": "desc"}):
        whole = await names(**query)
        seen: list[str] = []
        page = {"next_cursor": None}
        while not seen or page["next_cursor"]:
            more = {"cursor": page["next_cursor"]} if seen else {}
            page = (await api.get(MODELS, params={**query, **more, "limit": 1})).json()
            seen += [model["name"] for model in page["items"]]
        assert seen == whole


async def test_a_cursor_is_good_for_its_own_list_only(api: httpx.AsyncClient) -> None:
    for name in ("a", "b", "c"):
        await create(api, name)
    page = await api.get(MODELS, params={"limit": 1})
    cursor = page.json()["next_cursor"]
    for query in (
        {"cursor": cursor, "order": "desc"},
        {"cursor": cursor, "sort": "created_at"},
        {"cursor": cursor[:-2]},
        {"cursor": "bm9uZQ"},
        {"cursor": "%00"},
        {"cursor": ""},
    ):
        answer = await api.get(MODELS, params=query)
        assert answer.status_code == 400, query
        assert answer.json()["errors"][0]["parameter"] == "cursor"


async def test_a_model_that_a_route_needs_is_deleted_by_force_only(api: httpx.AsyncClient) -> None:
    made = await create(api, "bert")
    route = await api.post("/api/v1/routes", json={"name": "r", "targets": [{"model": "bert"}]})
    assert route.status_code == 201
    tag = {"If-Match": made.headers["etag"]}
    answer = await api.delete(f"{MODELS}/bert", headers=tag)
    assert answer.status_code == 409
    assert answer.json()["needed_by"] == ["routes/r"]
    assert (await api.delete(f"{MODELS}/bert?force=false", headers=tag)).status_code == 409
    assert (await api.delete(f"{MODELS}/bert?force=true", headers=tag)).status_code == 204


async def test_what_depends_on_a_model_goes_with_it(platform: Platform) -> None:
    async with platform.client() as api:
        made = await create(api, "bert")
        await api.post(f"{MODELS}/bert/versions", json={})
        platform.told.clear()
        gone = await api.delete(f"{MODELS}/bert", headers={"If-Match": made.headers["etag"]})
        assert gone.status_code == 204
        assert (await api.get(f"{MODELS}/bert/versions/1")).status_code == 404
        assert (await api.get(f"{MODELS}/bert/versions")).status_code == 404
    told = {(change.kind, change.key[1:]) for change in platform.told}
    assert told == {("model", ("bert",)), ("version", ("bert", "1"))}


async def test_models_and_versions_are_found_by_id(api: httpx.AsyncClient) -> None:
    model = (await create(api, "bert")).json()
    version = (await api.post(f"{MODELS}/bert/versions", json={})).json()
    answer = await api.get(f"/api/v1/by-id/{model['id']}")
    assert (answer.json(), answer.headers["content-location"]) == (model, f"{MODELS}/bert")
    answer = await api.get(f"/api/v1/by-id/{version['id']}")
    assert answer.json() == version
    assert answer.headers["content-location"] == f"{MODELS}/bert/versions/1"
    unknown = "mdl_" + "0" * 26
    assert (await api.get(f"/api/v1/by-id/{unknown}")).status_code == 404
    assert (await api.get("/api/v1/by-id/key_" + "0" * 26)).status_code == 400
