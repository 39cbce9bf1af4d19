from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime

import httpx

from headrace.domain.catalog import ApiKey
from headrace.domain.scopes import RULE
from tests.integration.management.conftest import Platform

KEYS = "/api/v1/keys"


async def test_a_secret_is_shown_once_and_kept_as_its_hash(platform: Platform) -> None:
    async with platform.client() as api:
        made = await api.post(
            KEYS,
            json={
                "name": "ci",
                "scopes": ["infer", "models:read", "infer"],
                "expires_at": "2999-01-01T02:00:00+02:00",
            },
        )
        assert made.status_code == 201, made.text
        key = made.json()
        secret = key.pop("secret")
        assert re.fullmatch(r"hr_[A-Za-z0-9_-]{43}", secret)
        assert made.headers["cache-control"] == "no-store"
        assert key["scopes"] == ["infer", "models:read"]
        assert key["expires_at"] == "2999-01-01T00:00:00Z"
        read = await api.get(f"{KEYS}/{key['id']}")
        assert read.json() == key
        seen = [
            read.text,
            (await api.get(KEYS)).text,
            (await api.get("/api/v1/audit")).text,
        ]
    digest = hashlib.sha256(secret.encode()).hexdigest()
    for text in seen:
        assert secret not in text
        assert digest not in text
    kept = await platform.store.get(ApiKey, ("default", key["id"]))
    assert kept is not None
    assert kept.digest == digest


async def test_a_revoked_key_stays_revoked(api: httpx.AsyncClient) -> None:
    made = await api.post(KEYS, json={"name": "ci"})
    url = f"{KEYS}/{made.json()['id']}"
    stale = await api.post(f"{url}/revoke", headers={"If-Match": '"0"'})
    assert stale.status_code == 412
    revoked = await api.post(f"{url}/revoke")
    assert revoked.status_code == 200
    assert revoked.json()["revoked_at"]
    again = await api.post(f"{url}/revoke")
    assert again.json() == revoked.json()
    assert (await api.get(url)).json() == revoked.json()
    assert (await api.get(KEYS)).json()["items"] == [revoked.json()]
    unknown = await api.post(f"{KEYS}/key_{'0' * 26}/revoke")
    assert unknown.status_code == 404


async def test_a_key_that_cannot_be_is_refused(api: httpx.AsyncClient) -> None:
    for field, value in (
        ("expires_at", "2001-01-01T00:00:00Z"),
        ("expires_at", "2999-01-01T00:00:00"),
        ("expires_at", "2999-13-01T00:00:00Z"),
        ("expires_at", "9999-12-31T23:59:59-23:59"),
        ("expires_at", "0001-01-01T00:00:00+23:59"),
        ("expires_at", "32503680000"),
        ("expires_at", 32503680000),
        ("scopes", ["A"]),
        ("scopes", ["infer", "inference"]),
        ("digest", "0" * 64),
        ("secret", "hr_mine"),
        ("revoked_at", None),
    ):
        answer = await api.post(KEYS, json={"name": "ci", field: value})
        assert answer.status_code == 400, (field, value)
        assert answer.json()["errors"][0]["pointer"].startswith(f"#/{field}")


async def test_a_scope_that_grants_nothing_is_refused_with_the_rule(api: httpx.AsyncClient) -> None:
    answer = await api.post(KEYS, json={"name": "ci", "scopes": ["infer:fraud-*", "models:*"]})
    assert answer.status_code == 400
    expected = [{"pointer": "#/scopes/1", "detail": f"expected {RULE}"}]
    assert answer.json()["errors"] == expected


async def test_the_last_use_of_a_key_is_shown_and_changes_nothing(platform: Platform) -> None:
    async with platform.client() as api:
        made = await api.post(KEYS, json={"name": "used"})
        unused = (await api.post(KEYS, json={"name": "unused"})).json()
        assert made.json()["last_used_at"] is None
        url = f"{KEYS}/{made.json()['id']}"
        before = await api.get(url)
        assert before.json()["last_used_at"] is None
        revision = await platform.store.revision()
        at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        await platform.store.add_key_usage({("default", made.json()["id"]): at})
        read = await api.get(url)
        assert read.json() == {**before.json(), "last_used_at": "2026-01-02T03:04:05Z"}
        assert read.headers["ETag"] == before.headers["ETag"]
        assert await platform.store.revision() == revision
        listed = {each["name"]: each for each in (await api.get(KEYS)).json()["items"]}
        assert listed["used"] == read.json()
        assert listed["unused"]["last_used_at"] is None
        assert listed["unused"]["id"] == unused["id"]
        revoked = await api.post(f"{url}/revoke", headers={"If-Match": read.headers["ETag"]})
        assert revoked.status_code == 200
        assert revoked.json()["last_used_at"] == "2026-01-02T03:04:05Z"
