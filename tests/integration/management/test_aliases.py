from __future__ import annotations

from typing import Any

import httpx
import pytest

from headrace.domain.models import Signature, TensorSpec
from tests.integration.management.conftest import Platform

MODEL = "/api/v1/models/bert"
ALIAS = f"{MODEL}/aliases/champion"
ANY = {"If-Match": "*"}


@pytest.fixture
async def api(platform: Platform, api: httpx.AsyncClient) -> httpx.AsyncClient:
    """A model with versions 1 and 2 alike, 3 with another input, and 4 without an artifact."""
    platform.inspector.signatures[b"3"] = Signature(
        (TensorSpec("z", "INT64", (-1,)),), (TensorSpec("y", "FP32", (-1, 2)),)
    )
    await api.post("/api/v1/models", json={"name": "bert"})
    for number in ("1", "2", "3"):
        await api.post(f"{MODEL}/versions", json={})
        await api.put(
            f"{MODEL}/versions/{number}/artifact",
            content=number.encode(),
            headers={"Content-Type": "application/onnx", **ANY},
        )
    await api.post(f"{MODEL}/versions", json={})
    return api


async def put(api: httpx.AsyncClient, version: str, **headers: str) -> httpx.Response:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return await api.put(ALIAS, json={"version": version}, headers=sent)


async def promote(api: httpx.AsyncClient, version: str, **more: Any) -> httpx.Response:
    body = {"version": version, "alias": "champion", **more}
    return await api.post(f"{MODEL}/promote", json=body)


async def test_an_alias_is_set_moved_and_removed(api: httpx.AsyncClient) -> None:
    made = await put(api, "1")
    assert (made.status_code, made.headers["location"]) == (201, ALIAS)
    assert (made.json()["version"], made.json()["previous"]) == ("1", "")
    moved = await put(api, "2", If_Match=made.headers["etag"])
    assert moved.status_code == 200
    assert (moved.json()["version"], moved.json()["previous"]) == ("2", "1")
    assert moved.json()["updated_by"] == "ann"
    read = await api.get(ALIAS)
    assert (read.json(), read.headers["etag"]) == (moved.json(), moved.headers["etag"])
    listed = await api.get(f"{MODEL}/aliases", params={"name": "CHAMP"})
    assert listed.json() == {"items": [moved.json()], "next_cursor": None}
    assert (await api.delete(ALIAS)).status_code == 428
    stale = {"If-Match": made.headers["etag"]}
    assert (await api.delete(ALIAS, headers=stale)).status_code == 412
    assert (await api.delete(ALIAS, headers=ANY)).status_code == 204
    assert (await api.get(ALIAS)).status_code == 404


async def test_moving_an_alias_needs_the_state_that_it_is_in(api: httpx.AsyncClient) -> None:
    assert (await put(api, "1", If_Match="*")).status_code == 412  # there is none
    made = await put(api, "1", If_None_Match="*")
    assert made.status_code == 201
    assert (await put(api, "2")).status_code == 428
    assert (await put(api, "2", If_None_Match="*")).status_code == 412
    assert (await put(api, "2", If_Match='"1"')).status_code == 412
    same = await put(api, "1", If_Match=made.headers["etag"])
    assert (same.status_code, same.headers["etag"]) == (200, made.headers["etag"])


async def test_an_alias_points_at_what_can_be_served(api: httpx.AsyncClient) -> None:
    for version in ("4", "9"):
        assert (await put(api, version)).status_code == 409
    for alias in ("latest", "9lives", "a b"):
        answer = await api.put(f"{MODEL}/aliases/{alias}", json={"version": "1"})
        assert answer.status_code == 400
    unknown = await api.put("/api/v1/models/gpt/aliases/a", json={"version": "1"})
    assert unknown.status_code == 404


async def test_a_rollback_goes_back_and_forward_again(api: httpx.AsyncClient) -> None:
    made = await put(api, "1")
    nowhere = await api.post(f"{ALIAS}/rollback", headers={"If-Match": made.headers["etag"]})
    assert nowhere.status_code == 409
    moved = await put(api, "2", If_Match=made.headers["etag"])
    assert (await api.post(f"{ALIAS}/rollback")).status_code == 428
    assert (await api.post(f"{ALIAS}/rollback", headers={"If-Match": '"1"'})).status_code == 412
    back = await api.post(f"{ALIAS}/rollback", headers={"If-Match": moved.headers["etag"]})
    assert (back.json()["version"], back.json()["previous"]) == ("1", "2")
    forth = await api.post(f"{ALIAS}/rollback", headers={"If-Match": back.headers["etag"]})
    assert (forth.json()["version"], forth.json()["previous"]) == ("2", "1")
    # not to what can no longer be served
    await api.delete(f"{MODEL}/versions/1", headers=ANY)
    gone = await api.post(f"{ALIAS}/rollback", headers=ANY)
    assert (gone.status_code, (await api.get(ALIAS)).json()["version"]) == (409, "2")
    trail = await api.get("/api/v1/audit", params={"action": "alias"})
    assert [(e["action"], e["principal"]) for e in trail.json()["items"]] == [
        ("alias.rollback", "ann"),
        ("alias.rollback", "ann"),
        ("alias.move", "ann"),
        ("alias.create", "ann"),
    ]


async def test_a_promotion_tells_each_check(platform: Platform, api: httpx.AsyncClient) -> None:
    made = await promote(api, "1", smoke_inputs=[{"x": [[1, 2, 3, 4]]}])
    assert made.status_code == 200, made.text
    told = made.json()
    assert told["alias"]["version"] == "1"
    assert {check["name"]: check["outcome"] for check in told["checks"]} == {
        "status": "passed",
        "signature": "skipped",  # nothing is there to compare with
        "warm_up": "passed",
        "smoke_inputs": "passed",
    }
    assert told["outputs"] == [{"y": [[0.25, 0.75]]}]
    assert platform.inspector.smoked[-1] == [{"x": [[1, 2, 3, 4]]}]
    second = await promote(api, "2")
    assert second.json()["alias"]["previous"] == "1"
    outcomes = {check["name"]: check["outcome"] for check in second.json()["checks"]}
    assert outcomes["signature"] == "passed"
    assert outcomes["smoke_inputs"] == "skipped"
    trail = await api.get("/api/v1/audit", params={"action": "alias.promote"})
    assert [event["after"]["version"] for event in trail.json()["items"]] == ["2", "1"]


async def test_a_promotion_that_fails_a_check_moves_nothing(api: httpx.AsyncClient) -> None:
    await promote(api, "1")
    pending = await promote(api, "4")
    assert pending.status_code == 409
    failed = [c["name"] for c in pending.json()["checks"] if c["outcome"] == "failed"]
    assert failed == ["status"]
    other = await promote(api, "3")
    assert other.status_code == 409
    assert [c["name"] for c in other.json()["checks"] if c["outcome"] == "failed"] == ["signature"]
    assert "input 'x' is no longer taken" in other.json()["detail"]
    smoke = await promote(api, "2", smoke_inputs=[{"no": 1}])
    assert smoke.status_code == 409
    outcomes = {c["name"]: c["outcome"] for c in smoke.json()["checks"]}
    assert (outcomes["warm_up"], outcomes["smoke_inputs"]) == ("passed", "failed")
    assert (await api.get(ALIAS)).json()["version"] == "1"
    # only the signature is forced
    assert (await promote(api, "4", force=True)).status_code == 409
    forced = await promote(api, "3", force=True)
    assert forced.status_code == 200
    outcomes = {c["name"]: c["outcome"] for c in forced.json()["checks"]}
    assert outcomes["signature"] == "forced"


async def test_a_model_that_no_longer_loads_is_not_promoted(
    platform: Platform, api: httpx.AsyncClient
) -> None:
    digest = (await api.get(f"{MODEL}/versions/2")).json()["artifact"]["digest"]
    platform.artifacts.kept[digest] = b"BAD"
    answer = await promote(api, "2")
    assert answer.status_code == 409
    failed = [c for c in answer.json()["checks"] if c["outcome"] == "failed"]
    assert [(c["name"], c["detail"]) for c in failed] == [("warm_up", "it is not an ONNX model")]
    assert (await api.get(ALIAS)).status_code == 404


async def test_an_alias_that_moves_under_a_promotion_stays_where_it_went(
    platform: Platform, api: httpx.AsyncClient
) -> None:
    made = await put(api, "1")
    inspect = platform.inspector.inspect

    async def slow(*arguments: Any, **more: Any) -> Any:
        await put(api, "3", If_Match=made.headers["etag"])
        return await inspect(*arguments, **more)

    platform.inspector.inspect = slow  # type: ignore[method-assign]
    answer = await promote(api, "2")
    assert answer.status_code == 412
    assert (await api.get(ALIAS)).json()["version"] == "3"


async def test_a_promotion_may_name_the_aliases_state(api: httpx.AsyncClient) -> None:
    body = {"version": "1", "alias": "champion"}
    none = await api.post(f"{MODEL}/promote", json=body, headers=ANY)
    assert none.status_code == 412
    made = await promote(api, "1")
    stale = await api.post(f"{MODEL}/promote", json=body, headers={"If-Match": '"1"'})
    assert stale.status_code == 412
    tag = {"If-Match": made.headers["etag"]}
    assert (await api.post(f"{MODEL}/promote", json=body, headers=tag)).status_code == 200


async def test_an_alias_that_a_route_needs_is_deleted_by_force_only(
    api: httpx.AsyncClient,
) -> None:
    await put(api, "1")
    targets = [{"model": "bert", "version": "champion"}]
    await api.post("/api/v1/routes", json={"name": "r", "targets": targets})
    refused = await api.delete(ALIAS, headers=ANY)
    assert (refused.status_code, refused.json()["needed_by"]) == (409, ["routes/r"])
    assert (await api.delete(f"{ALIAS}?force=true", headers=ANY)).status_code == 204
