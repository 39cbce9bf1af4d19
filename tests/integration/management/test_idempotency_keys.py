"""A change that is sent again with its key, on both databases."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from headrace.adapters.sql.idempotency import SqlIdempotencyStore
from headrace.adapters.sql.opening import open_store
from headrace.adapters.sql.settings import SqliteSettings, StoreSettings
from headrace.domain.calls import Call
from headrace.domain.errors import StoreUnavailable
from headrace.domain.idempotency import Once
from headrace.ports.registry_store import AuditQuery
from tests.integration.management.conftest import Platform, now

MODELS = "/api/v1/models"
KEYS = "/api/v1/keys"
ONCE = {"Idempotency-Key": "once"}
REPLAYED = "Idempotent-Replayed"


async def test_a_repeat_has_the_first_answer_and_changes_nothing(
    api: httpx.AsyncClient, platform: Platform
) -> None:
    first = await api.post(MODELS, json={"name": "bert", "description": "é"}, headers=ONCE)
    assert first.status_code == 201
    assert REPLAYED not in first.headers
    again = await api.post(MODELS, json={"name": "bert", "description": "é"}, headers=ONCE)
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers[REPLAYED] == "true"
    for name in ("ETag", "Location", "Content-Type"):
        assert again.headers[name] == first.headers[name]
    assert len((await platform.store.audit_trail(AuditQuery(tenant="default"))).items) == 1


async def test_every_method_of_a_change_takes_a_key(api: httpx.AsyncClient) -> None:
    made = await api.post(MODELS, json={"name": "bert"})
    await api.post(f"{MODELS}/bert/versions", json={})
    url = f"{MODELS}/bert"
    etag = {"If-Match": made.headers["ETag"]}
    changes: list[tuple[str, str, dict[str, Any]]] = [
        ("PATCH", url, {"json": {"owner": "ann"}, "headers": etag}),
        ("DELETE", url, {"headers": {"If-Match": "*"}}),
        ("POST", f"{KEYS}/key_{'0' * 26}/revoke", {}),
        ("PUT", f"{url}/aliases/live", {"json": {"version": "1"}, "headers": {"If-Match": "*"}}),
    ]
    for n, (method, path, sent) in enumerate(changes):
        headers = {**sent.pop("headers", {}), "Idempotency-Key": f"k{n}"}
        first = await api.request(method, path, headers=headers, **sent)
        again = await api.request(method, path, headers=headers, **sent)
        assert REPLAYED not in first.headers, (method, path)
        assert again.headers[REPLAYED] == "true", (method, path)
        assert (again.status_code, again.content) == (first.status_code, first.content)


async def test_a_read_passes_the_header_over(api: httpx.AsyncClient) -> None:
    for name in ("a", "b"):
        await api.post(MODELS, json={"name": name})
    for name in ("a", "b"):
        read = await api.get(f"{MODELS}/{name}", headers=ONCE)
        assert read.json()["name"] == name
    assert (await api.get(MODELS, headers={"Idempotency-Key": ""})).status_code == 200


async def test_an_upload_passes_the_header_over(api: httpx.AsyncClient) -> None:
    await api.post(MODELS, json={"name": "bert"})
    for number in ("1", "2"):
        made = await api.post(f"{MODELS}/bert/versions", json={})
        uploaded = await api.put(
            f"{MODELS}/bert/versions/{number}/artifact",
            content=f"onnx {number}".encode(),
            headers={
                **ONCE,
                "If-Match": made.headers["ETag"],
                "Content-Type": "application/onnx",
            },
        )
        assert uploaded.status_code == 200, uploaded.text
        assert uploaded.json()["version"] == number


@pytest.mark.parametrize("what", ["method", "path", "query", "if_match", "type", "body"])
async def test_another_request_with_the_same_key_is_refused(
    api: httpx.AsyncClient, what: str
) -> None:
    await api.post(MODELS, json={"name": "bert"})
    sent: dict[str, Any] = {
        "method": "PATCH",
        "url": f"{MODELS}/bert",
        "content": b'{"owner": "ann"}',
        "headers": {**ONCE, "If-Match": "*", "Content-Type": "application/json"},
    }
    if what == "query":  # of which a PATCH of models has none
        sent |= {"method": "DELETE", "url": f"{MODELS}/bert?force=false", "content": b""}
    assert (await api.request(**sent)).status_code < 300
    match what:
        case "method":
            sent["method"] = "DELETE"
        case "path":
            sent["url"] = f"{MODELS}/other"
        case "query":
            sent["url"] = f"{MODELS}/bert?force=true"
        case "if_match":
            sent["headers"]["If-Match"] = '"1"'
        case "type":
            sent["headers"]["Content-Type"] = "application/merge-patch+json"
        case _:
            sent["content"] = b'{"owner":  "ann"}'
    refused = await api.request(**sent)
    assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_mismatch")


async def test_only_new_is_part_of_the_request(api: httpx.AsyncClient) -> None:
    await api.post(MODELS, json={"name": "bert"})
    await api.post(f"{MODELS}/bert/versions", json={})
    url = f"{MODELS}/bert/aliases/live"
    put = {"json": {"version": "1"}, "headers": {**ONCE, "If-None-Match": "*"}}
    await api.put(url, **put)  # type: ignore[arg-type]
    other = await api.put(url, json={"version": "1"}, headers=ONCE)
    assert other.status_code == 422


async def test_callers_do_not_share_their_keys(platform: Platform) -> None:
    answers = []
    for name, tenant in (("ann", "default"), ("bob", "default"), ("ann", "other")):
        async with platform.client(name, tenant) as api:
            answers.append(await api.post(KEYS, json={"name": "ci"}, headers=ONCE))
    assert [answer.status_code for answer in answers] == [201] * 3
    assert not any(REPLAYED in answer.headers for answer in answers)
    assert len({answer.json()["id"] for answer in answers}) == 3


async def test_a_key_with_and_without_quotes_is_the_same(api: httpx.AsyncClient) -> None:
    for sent, replayed in (
        ("a-b", False), ('"a-b"', True), (r'"a\"b"', False), (r'"a\\b"', False),
        ("a b", False), ('"a b"', True), (r"a\b", True), ('a"b', True),
    ):  # fmt: skip
        answer = await api.post(KEYS, json={"name": "ci"}, headers={"Idempotency-Key": sent})
        assert answer.status_code == 201, sent
        assert (REPLAYED in answer.headers) == replayed, sent


@pytest.mark.parametrize(
    "header",
    ["", " ", '"', '""', '"a', '"a"b', r'"a\b"', "a" * 256, f'"{"a" * 256}"',
     '"a";p=1', b"\xc3\xa9", b'"\xe9"', b'"a\tb"', b"a\tb", b"a\x7f"],
)  # fmt: skip
async def test_what_is_no_key_is_refused(
    api: httpx.AsyncClient, platform: Platform, header: str | bytes
) -> None:
    sent = header if isinstance(header, bytes) else header.encode()
    refused = await api.post(MODELS, json={"name": "bert"}, headers=[(b"Idempotency-Key", sent)])
    assert refused.status_code == 400
    assert refused.json()["errors"][0]["parameter"] == "Idempotency-Key"
    assert await platform.store.revision() == 0


async def test_two_keys_are_refused(api: httpx.AsyncClient) -> None:
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "a")]
    assert (await api.post(MODELS, json={"name": "bert"}, headers=headers)).status_code == 400


@pytest.mark.parametrize(
    "header",
    ["a" * 255, f'"{"a" * 255}"', "0:1/2", '"a b,~"', "a b c", "a,b", 'a"', "a\\b", "(a; b=[c])"],
)
async def test_long_and_odd_keys_are_taken(api: httpx.AsyncClient, header: str) -> None:
    for replayed in (False, True):
        answer = await api.post(MODELS, json={"name": "bert"}, headers={"Idempotency-Key": header})
        assert (answer.status_code, REPLAYED in answer.headers) == (201, replayed)


async def test_a_refusal_is_given_again_after_the_reason_went(api: httpx.AsyncClient) -> None:
    first = await api.post(f"{MODELS}/bert/versions", json={}, headers=ONCE)
    assert first.status_code == 404
    await api.post(MODELS, json={"name": "bert"})
    again = await api.post(f"{MODELS}/bert/versions", json={}, headers=ONCE)
    assert (again.status_code, again.content) == (404, first.content)
    for name in ("Content-Type", "X-Error-Code"):
        assert again.headers[name] == first.headers[name]
    assert again.headers[REPLAYED] == "true"


async def test_a_request_that_is_refused_anyway_leaves_nothing(platform: Platform) -> None:
    async with platform.client() as api:
        refused = await api.post(MODELS, json={"name": "no name"}, headers=ONCE)
        assert refused.status_code == 400
        made = await api.post(MODELS, json={"name": "name"}, headers=ONCE)
    assert (made.status_code, REPLAYED in made.headers) == (201, False)


@pytest.mark.parametrize("error", [StoreUnavailable("gone since"), ZeroDivisionError()])
async def test_a_change_whose_answer_failed_is_not_made_again(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    create = platform.registry.keys.create

    async def badly(*arguments: Any) -> Any:
        await create(*arguments)
        raise error

    monkeypatch.setattr(platform.registry.keys, "create", badly)
    async with platform.client() as api:
        with contextlib.suppress(ZeroDivisionError):
            await api.post(KEYS, json={"name": "ci"}, headers=ONCE)
        monkeypatch.setattr(platform.registry.keys, "create", create)
        again = await api.post(KEYS, json={"name": "ci"}, headers=ONCE)
        listed = (await api.get(KEYS)).json()["items"]
    assert (again.status_code, again.json()["code"]) == (409, "idempotency_answer_lost")
    assert "Retry-After" not in again.headers
    assert len(listed) == 1


async def test_a_change_that_was_taken_over_is_not_made_twice(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = platform.registry.keys.create

    async def late(call: Call, *arguments: Any) -> Any:
        assert call.once is not None
        paused = Once(call.once.key, "paused since long ago")
        return await create(msgspec.structs.replace(call, once=paused), *arguments)

    monkeypatch.setattr(platform.registry.keys, "create", late)
    async with platform.client() as api:
        refused = await api.post(KEYS, json={"name": "ci"}, headers=ONCE)
        listed = (await api.get(KEYS)).json()["items"]
    assert (refused.status_code, refused.json()["code"]) == (409, "idempotency_in_flight")
    assert listed == []


async def test_of_requests_at_once_one_runs(platform: Platform) -> None:
    async with platform.client() as api:
        answers = await asyncio.gather(
            *(api.post(KEYS, json={"name": "ci"}, headers=ONCE) for _ in range(16))
        )
        listed = (await api.get(KEYS)).json()["items"]
    assert len(listed) == 1
    ran = [each for each in answers if each.status_code == 201 and REPLAYED not in each.headers]
    assert len(ran) == 1
    for answer in answers:
        if answer.status_code == 409:
            assert answer.json()["code"] == "idempotency_in_flight"
            assert answer.headers["Retry-After"] == "1"
        else:
            assert (answer.status_code, answer.json()["id"]) == (201, listed[0]["id"])


async def test_a_request_in_flight_is_told_and_then_answered(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, leave = asyncio.Event(), asyncio.Event()
    create = platform.registry.models.create

    async def slowly(*arguments: Any) -> Any:
        entered.set()
        await leave.wait()
        return await create(*arguments)

    monkeypatch.setattr(platform.registry.models, "create", slowly)
    async with platform.client() as api, asyncio.TaskGroup() as tasks:
        first = tasks.create_task(api.post(MODELS, json={"name": "bert"}, headers=ONCE))
        await entered.wait()
        early = await api.post(MODELS, json={"name": "bert"}, headers=ONCE)
        assert (early.status_code, early.headers["Retry-After"]) == (409, "1")
        assert early.json()["code"] == "idempotency_in_flight"
        leave.set()
        await first
        again = await api.post(MODELS, json={"name": "bert"}, headers=ONCE)
    assert (again.status_code, again.headers[REPLAYED]) == (201, "true")


async def test_what_failed_is_run_again(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = platform.registry.models.create
    failures: list[Exception] = [StoreUnavailable("down", retry_after_s=1.0), ZeroDivisionError()]

    async def badly(*arguments: Any) -> Any:
        if failures:
            raise failures.pop(0)
        return await create(*arguments)

    monkeypatch.setattr(platform.registry.models, "create", badly)
    async with platform.client() as api:
        down = await api.post(MODELS, json={"name": "bert"}, headers=ONCE)
        assert (down.status_code, down.json()["code"]) == (503, "store_unavailable")
        with pytest.raises(ZeroDivisionError):
            await api.post(MODELS, json={"name": "bert"}, headers=ONCE)
        made = await api.post(MODELS, json={"name": "bert"}, headers=ONCE)
    assert made.status_code == 201
    assert REPLAYED not in made.headers


async def test_what_was_cancelled_is_run_again(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered = asyncio.Event()
    create = platform.registry.models.create

    async def never(*_: Any) -> Any:
        entered.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(platform.registry.models, "create", never)
    async with platform.client() as api:
        first = asyncio.ensure_future(api.post(MODELS, json={"name": "bert"}, headers=ONCE))
        await entered.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        monkeypatch.setattr(platform.registry.models, "create", create)
        made = await api.post(MODELS, json={"name": "bert"}, headers=ONCE)
    assert made.status_code == 201


async def test_an_answer_is_given_again_by_another_process_and_after_a_restart(
    platform: Platform, store_settings: StoreSettings, tmp_path: Path
) -> None:
    async with platform.client() as api:
        first = await api.post(MODELS, json={"name": "bert"}, headers=ONCE)
    store = await open_store(store_settings, data_dir=tmp_path, now=now)
    other = Platform(store, idempotency=SqlIdempotencyStore(store.database))
    async with other.client() as api:
        again = await api.post(MODELS, json={"name": "bert"}, headers=ONCE)
    await store.close()
    assert (again.headers[REPLAYED], again.content) == ("true", first.content)


async def test_the_secret_of_a_key_is_never_kept(tmp_path: Path) -> None:
    store = await open_store(SqliteSettings(), data_dir=tmp_path, now=now)
    platform = Platform(store, idempotency=SqlIdempotencyStore(store.database))
    async with platform.client() as api:
        first = await api.post(KEYS, json={"name": "ci"}, headers=ONCE)
        again = await api.post(KEYS, json={"name": "ci"}, headers=ONCE)
    secret = first.json()["secret"]
    assert again.json() == {**first.json(), "secret": None}
    assert again.headers["Cache-Control"] == "no-store"
    assert again.headers[REPLAYED] == "true"
    seen = _bytes_of(tmp_path)
    await store.close()
    seen += _bytes_of(tmp_path)
    assert first.json()["id"].encode() in seen
    assert b'"secret' in seen
    assert secret.encode() not in seen
    assert secret.removeprefix("hr_").encode() not in seen


def _bytes_of(folder: Path) -> bytes:
    """The database, and the log of what is still to come into it."""
    return b"".join(file.read_bytes() for file in sorted(folder.glob("registry.db*")))
