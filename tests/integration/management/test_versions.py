from __future__ import annotations

import asyncio
import base64
import hashlib
from datetime import UTC, datetime

import httpx
import pytest

from headrace.domain.usage import Usage, bucket
from tests.integration.management.conftest import Platform

MODEL = "/api/v1/models/bert"
VERSIONS = f"{MODEL}/versions"
ONNX = {"Content-Type": "application/onnx"}


@pytest.fixture
async def api(api: httpx.AsyncClient) -> httpx.AsyncClient:
    assert (await api.post("/api/v1/models", json={"name": "bert"})).status_code == 201
    return api


async def publish(api: httpx.AsyncClient, data: bytes = b"model", **fields: object) -> str:
    made = await api.post(VERSIONS, json=fields)
    assert made.status_code == 201, made.text
    number: str = made.json()["version"]
    put = await api.put(
        f"{VERSIONS}/{number}/artifact",
        content=data,
        headers={**ONNX, "If-Match": made.headers["etag"]},
    )
    assert put.status_code == 200, put.text
    return number


def digest_of(data: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


async def test_a_version_is_ready_when_its_artifact_was_looked_at(api: httpx.AsyncClient) -> None:
    made = await api.post(VERSIONS, json={"metrics": {"f1": 0.5}, "tags": ["t"]})
    assert made.headers["location"] == f"{VERSIONS}/1"
    version = made.json()
    assert (version["version"], version["status"], version["artifact"]) == ("1", "pending", None)
    assert version["created_by"] == "ann"
    put = await api.put(
        f"{VERSIONS}/1/artifact",
        content=b"model",
        headers={**ONNX, "If-Match": made.headers["etag"], "Content-Digest": digest_of(b"model")},
    )
    assert put.status_code == 200, put.text
    version = put.json()
    assert version["status"] == "ready"
    assert version["artifact"] == {
        "digest": hashlib.sha256(b"model").hexdigest(),
        "size_bytes": 5,
        "format": "onnx",
        "source": "",
    }
    assert version["signature"]["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [-1, 4], "optional": False, "labels": []}
    ]
    read = await api.get(f"{VERSIONS}/1")
    assert (read.json(), read.headers["etag"]) == (version, put.headers["etag"])


async def test_an_artifact_comes_back_as_it_was_sent(api: httpx.AsyncClient) -> None:
    data = bytes(range(256)) * 20
    await publish(api, data)
    answer = await api.get(f"{VERSIONS}/1/artifact")
    assert (answer.status_code, answer.content) == (200, data)
    assert answer.headers["content-length"] == str(len(data))
    assert answer.headers["repr-digest"] == digest_of(data)
    assert answer.headers["etag"] == f'"{hashlib.sha256(data).hexdigest()}"'
    assert answer.headers["content-disposition"] == 'attachment; filename="bert-1.onnx"'
    known = {"If-None-Match": answer.headers["etag"]}
    assert (await api.get(f"{VERSIONS}/1/artifact", headers=known)).status_code == 304


async def test_a_version_without_artifact_has_nothing_to_download(api: httpx.AsyncClient) -> None:
    await api.post(VERSIONS, json={})
    assert (await api.get(f"{VERSIONS}/1/artifact")).status_code == 404


async def test_an_artifact_is_set_once(api: httpx.AsyncClient) -> None:
    await publish(api)
    tag = (await api.get(f"{VERSIONS}/1")).headers["etag"]
    again = await api.put(
        f"{VERSIONS}/1/artifact", content=b"other", headers={**ONNX, "If-Match": tag}
    )
    assert (again.status_code, again.json()["code"]) == (409, "conflict")
    assert (await api.get(f"{VERSIONS}/1/artifact")).content == b"model"


@pytest.mark.parametrize("data", [b"BAD model", b"SLIP.zip"])
async def test_what_cannot_be_served_fails_for_good(api: httpx.AsyncClient, data: bytes) -> None:
    made = await api.post(VERSIONS, json={})
    put = await api.put(
        f"{VERSIONS}/1/artifact", content=data, headers={**ONNX, "If-Match": made.headers["etag"]}
    )
    assert put.status_code == 400
    version = await api.get(f"{VERSIONS}/1")
    assert version.json()["status"] == "failed"
    assert version.json()["reason"] == put.json()["detail"]
    assert version.json()["artifact"] is None
    tag = {"If-Match": version.headers["etag"]}
    again = await api.put(f"{VERSIONS}/1/artifact", content=b"good", headers={**ONNX, **tag})
    assert again.status_code == 409
    archived = await api.patch(f"{VERSIONS}/1", json={"status": "archived"}, headers=tag)
    assert archived.json()["status"] == "archived"


async def test_what_was_changed_on_its_way_is_refused_and_may_be_sent_again(
    platform: Platform, api: httpx.AsyncClient
) -> None:
    made = await api.post(VERSIONS, json={})
    tag = {"If-Match": made.headers["etag"]}
    for digest, header in (
        (digest_of(b"other"), "Repr-Digest"),
        ("sha-256=:AAAA:", "Content-Digest"),
        ("sha-256=AAAA", "Content-Digest"),
    ):
        put = await api.put(
            f"{VERSIONS}/1/artifact", content=b"model", headers={**ONNX, **tag, header: digest}
        )
        assert put.status_code == 400
    assert platform.artifacts.kept == {}
    both = {"Content-Digest": digest_of(b"model"), "Repr-Digest": digest_of(b"other")}
    put = await api.put(f"{VERSIONS}/1/artifact", content=b"model", headers={**ONNX, **tag, **both})
    assert put.status_code == 400
    other = {"Content-Digest": f"sha-512=:AAAA:, {digest_of(b'model')}"}
    put = await api.put(
        f"{VERSIONS}/1/artifact", content=b"model", headers={**ONNX, **tag, **other}
    )
    assert put.status_code == 200


async def test_uploads_are_bounded_and_say_what_they_are(api: httpx.AsyncClient) -> None:
    made = await api.post(VERSIONS, json={})
    tag = {"If-Match": made.headers["etag"]}
    url = f"{VERSIONS}/1/artifact"
    large = await api.put(url, content=b"x" * 1_000_001, headers={**ONNX, **tag})
    assert (large.status_code, large.json()["code"]) == (413, "payload_too_large")
    assert (await api.put(url, content=b"x", headers=tag)).status_code == 415
    json = {"Content-Type": "application/json"}
    assert (await api.put(url, content=b"{}", headers={**tag, **json})).status_code == 415
    gzip = {"Content-Encoding": "gzip"}
    assert (await api.put(url, content=b"x", headers={**tag, **ONNX, **gzip})).status_code == 415
    assert (await api.put(url, content=b"x", headers=ONNX)).status_code == 428
    assert (
        await api.put(url, content=b"x", headers={**ONNX, "If-Match": '"0"'})
    ).status_code == 412
    zipped = {"Content-Type": "application/zip"}
    put = await api.put(url, content=b"PK", headers={**tag, **zipped})
    assert put.json()["artifact"]["format"] == "zip"


async def test_of_two_uploads_at_once_one_is_taken(api: httpx.AsyncClient) -> None:
    made = await api.post(VERSIONS, json={})
    headers = {**ONNX, "If-Match": made.headers["etag"]}
    answers = await asyncio.gather(
        *(api.put(f"{VERSIONS}/1/artifact", content=b"%d" % n, headers=headers) for n in range(4))
    )
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses[0] == 200
    assert set(statuses[1:]) <= {409, 412}
    taken = next(index for index, answer in enumerate(answers) if answer.status_code == 200)
    assert (await api.get(f"{VERSIONS}/1/artifact")).content == b"%d" % taken


async def test_an_artifact_of_the_object_store_is_copied(
    platform: Platform, api: httpx.AsyncClient
) -> None:
    platform.artifacts.uris = {"s3://b/m.zip": b"zipped", "s3://b/bad.onnx": b"BAD"}
    made = await api.post(VERSIONS, json={"artifact": {"uri": "s3://b/m.zip"}})
    assert made.status_code == 201, made.text
    version = made.json()
    assert (version["status"], version["artifact"]["format"]) == ("ready", "zip")
    assert version["artifact"]["source"] == "s3://b/m.zip"
    # what cannot be served is not published, and takes no number
    for artifact in (
        {"uri": "s3://b/bad.onnx"},
        {"uri": "s3://b/none"},
        {"uri": "s3://b/m.zip", "digest": "0" * 64},
    ):
        assert (await api.post(VERSIONS, json={"artifact": artifact})).status_code == 400
    assert (await api.post(VERSIONS, json={})).json()["version"] == "2"


async def test_a_number_is_never_given_twice(api: httpx.AsyncClient) -> None:
    async def post(**fields: str) -> httpx.Response:
        return await api.post(VERSIONS, json=fields)

    any_state = {"If-Match": "*"}
    assert (await post()).json()["version"] == "1"
    assert (await post(version="7")).json()["version"] == "7"
    assert (await post(version="7")).status_code == 409
    assert (await api.delete(f"{VERSIONS}/7", headers=any_state)).status_code == 204
    gone = await post(version="7")
    assert gone.status_code == 409
    assert "was deleted" in gone.json()["detail"]
    assert (await post(version="5")).json()["version"] == "5"
    assert (await post()).json()["version"] == "6"
    assert (await post()).json()["version"] == "8"
    # not even by a model that comes after
    assert (await api.delete(MODEL, headers=any_state)).status_code == 204
    await api.post("/api/v1/models", json={"name": "bert"})
    assert (await post()).json()["version"] == "9"
    assert (await post(version="1")).status_code == 409


async def test_numbers_go_up_though_many_publish_at_once(api: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(api.post(VERSIONS, json={}) for _ in range(6)))
    assert sorted(answer.json()["version"] for answer in answers) == list("123456")


async def test_versions_are_listed_by_number_and_filtered(api: httpx.AsyncClient) -> None:
    for number in ("10", "9", "2"):
        await publish(api, number.encode(), version=number, tags=[f"t{number}"])
    await api.post(VERSIONS, json={"version": "11"})

    async def numbers(**query: str) -> list[str]:
        answer = await api.get(VERSIONS, params=query)
        assert answer.status_code == 200, answer.text
        return [version["version"] for version in answer.json()["items"]]

    assert await numbers() == ["2", "9", "10", "11"]
    assert await numbers(order="desc", status="ready") == ["10", "9", "2"]
    assert await numbers(status="pending", framework="onnx") == ["11"]
    assert await numbers(tag="t9") == ["9"]
    page = await api.get(VERSIONS, params={"limit": 3})
    rest = await api.get(VERSIONS, params={"limit": 3, "cursor": page.json()["next_cursor"]})
    assert [version["version"] for version in rest.json()["items"]] == ["11"]


async def test_a_status_goes_only_where_it_may(api: httpx.AsyncClient) -> None:
    await publish(api)
    await api.post(VERSIONS, json={})
    any_state = {"If-Match": "*"}

    async def move(version: str, status: str | None) -> int:
        answer = await api.patch(
            f"{VERSIONS}/{version}", json={"status": status}, headers=any_state
        )
        return answer.status_code

    assert await move("2", "ready") == 409  # pending: its artifact decides
    assert await move("2", "archived") == 409
    assert await move("1", "pending") == 409
    assert await move("1", None) == 400
    assert await move("1", "deprecated") == 200
    assert await move("1", "ready") == 200
    assert await move("1", "archived") == 200
    assert await move("1", "ready") == 409


async def test_what_a_version_computes_is_not_to_be_changed(api: httpx.AsyncClient) -> None:
    await publish(api)
    for field in ("artifact", "signature", "version", "framework", "id", "tenant", "revision"):
        answer = await api.patch(f"{VERSIONS}/1", json={field: None}, headers={"If-Match": "*"})
        assert answer.status_code == 400
        assert answer.json()["errors"][0]["pointer"] == f"#/{field}"
    said = {"description": "d", "metrics": {"f1": 1}, "metadata": {"a": 1}, "tags": ["x"]}
    answer = await api.patch(f"{VERSIONS}/1", json=said, headers={"If-Match": "*"})
    assert {field: answer.json()[field] for field in said} == said
    answer = await api.patch(
        f"{VERSIONS}/1", json={"metrics": {"f1": None}}, headers={"If-Match": "*"}
    )
    assert answer.json()["metrics"] == {}


async def test_a_write_must_name_the_state_that_it_changes(api: httpx.AsyncClient) -> None:
    await publish(api)
    url, stale = f"{VERSIONS}/1", {"If-Match": '"0"'}
    assert (await api.patch(url, json={"description": "d"})).status_code == 428
    assert (await api.patch(url, json={"description": "d"}, headers=stale)).status_code == 412
    assert (await api.delete(url)).status_code == 428
    assert (await api.delete(url, headers=stale)).status_code == 412


async def test_a_version_that_is_needed_is_deleted_by_force_only(api: httpx.AsyncClient) -> None:
    await publish(api)
    await api.put(f"{MODEL}/aliases/champion", json={"version": "1"})
    targets = [{"model": "bert", "version": "1"}]
    await api.post("/api/v1/routes", json={"name": "r", "targets": targets})
    any_state = {"If-Match": "*"}
    for request in (
        api.delete(f"{VERSIONS}/1", headers=any_state),
        api.patch(f"{VERSIONS}/1", json={"status": "archived"}, headers=any_state),
    ):
        answer = await request
        assert answer.status_code == 409
        assert answer.json()["needed_by"] == ["models/bert/aliases/champion", "routes/r"]
    archived = await api.patch(
        f"{VERSIONS}/1?force=true", json={"status": "archived"}, headers=any_state
    )
    assert archived.status_code == 200
    gone = await api.delete(f"{VERSIONS}/1?force=true", headers=any_state)
    assert gone.status_code == 204
    assert (await api.get(f"{MODEL}/aliases/champion")).status_code == 404


async def test_statistics_add_up_what_was_written(
    platform: Platform, api: httpx.AsyncClient
) -> None:
    await publish(api)
    empty = (await api.get(f"{VERSIONS}/1/statistics")).json()
    assert empty == {
        "requests": 0,
        "errors": 0,
        "latency_s": {"mean": None, "p50": None, "p90": None, "p99": None},
        "last_used_at": None,
    }
    counts = [0] * len(Usage().buckets)
    counts[bucket(0.01)] = 10
    at = datetime(2026, 1, 2, tzinfo=UTC)
    usage = Usage(requests=10, errors=1, latency_s=0.1, buckets=tuple(counts), last_used_at=at)
    await platform.store.add_usage([(("default", "bert", "1"), usage)])
    told = (await api.get(f"{VERSIONS}/1/statistics")).json()
    assert (told["requests"], told["errors"]) == (10, 1)
    assert told["last_used_at"] == "2026-01-02T00:00:00Z"
    assert told["latency_s"]["mean"] == pytest.approx(0.01)
    assert 0.006 < told["latency_s"]["p50"] < told["latency_s"]["p99"] <= 0.01
    assert (await api.get(f"{VERSIONS}/2/statistics")).status_code == 404
