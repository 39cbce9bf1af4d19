from __future__ import annotations

import httpx
import pytest

ENDPOINTS = "/api/v1/endpoints"
ANY = {"If-Match": "*"}


async def test_an_endpoint_is_registered_changed_and_removed(api: httpx.AsyncClient) -> None:
    sent = {
        "name": "triton-1",
        "url": "https://models.internal:8443/prefix",
        "models": ["b", "a"],
        "weight": 2,
        "labels": {"zone": "x"},
    }
    made = await api.post(ENDPOINTS, json=sent)
    assert made.status_code == 201, made.text
    assert made.headers["location"] == f"{ENDPOINTS}/triton-1"
    endpoint = made.json()
    assert endpoint["url"] == sent["url"]
    assert (endpoint["protocol"], endpoint["enabled"]) == ("oip-rest", True)
    assert endpoint["models"] == ["a", "b"]
    assert (await api.post(ENDPOINTS, json=sent)).status_code == 409
    url = f"{ENDPOINTS}/triton-1"
    assert (await api.patch(url, json={"weight": 1})).status_code == 428
    patch = {"weight": 0, "enabled": False, "labels": {"zone": None, "rack": "7"}}
    changed = await api.patch(url, json=patch, headers={"If-Match": made.headers["etag"]})
    assert changed.status_code == 200, changed.text
    assert changed.json()["labels"] == {"rack": "7"}
    assert changed.json()["url"] == sent["url"]
    same = await api.patch(url, json=patch, headers={"If-Match": changed.headers["etag"]})
    assert same.headers["etag"] == changed.headers["etag"]
    stale = await api.patch(url, json={}, headers={"If-Match": made.headers["etag"]})
    assert stale.status_code == 412
    read = await api.get(url, headers={"If-None-Match": changed.headers["etag"]})
    assert read.status_code == 304
    assert [e["name"] for e in (await api.get(ENDPOINTS)).json()["items"]] == ["triton-1"]
    assert (await api.delete(url)).status_code == 428
    assert (await api.delete(url, headers=ANY)).status_code == 204
    assert (await api.get(url)).status_code == 404
    assert (await api.delete(url, headers=ANY)).status_code == 404


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://127.1:8000",
        "http://2130706433",
        "http://0x7f.0.0.1",
        "http://[::ffff:127.0.0.1]:8000",
        "http://[::1]",
        "http://8.8.8.8",
        "http://loop.example",
        "http://rebound.example",  # one of its addresses is allowed, the other is not
        "http://unknown.example",
        "file:///etc/passwd",
        "ftp://10.0.0.1",
        "grpc://10.0.0.1",  # of oip-grpc
        "http://user:secret@10.0.0.1",
        "http://10.0.0.1/?a=b",
        "http://10.0.0.1:0",
        "http://10.0.0.1:99999",
        "10.0.0.1:8000",
        "http://",
        "",
    ],
)
async def test_an_address_that_is_not_allowed_is_refused(api: httpx.AsyncClient, url: str) -> None:
    answer = await api.post(ENDPOINTS, json={"name": "e", "url": url})
    assert answer.status_code == 400, answer.text
    assert answer.json()["errors"][0]["pointer"] == "#/url"
    assert "secret" not in answer.text
    good = await api.post(ENDPOINTS, json={"name": "e", "url": "http://[2001:db8::7]:80"})
    assert good.status_code == 201
    moved = await api.patch(f"{ENDPOINTS}/e", json={"url": url}, headers=ANY)
    assert moved.status_code == 400
    assert (await api.get(f"{ENDPOINTS}/e")).json()["url"] == "http://[2001:db8::7]:80"


async def test_a_url_is_not_cleared(api: httpx.AsyncClient) -> None:
    await api.post(ENDPOINTS, json={"name": "e", "url": "http://10.0.0.1"})
    assert (await api.patch(f"{ENDPOINTS}/e", json={"url": None}, headers=ANY)).status_code == 400


async def test_another_protocol_needs_another_scheme(api: httpx.AsyncClient) -> None:
    await api.post(ENDPOINTS, json={"name": "e", "url": "http://10.0.0.1"})
    only = await api.patch(f"{ENDPOINTS}/e", json={"protocol": "oip-grpc"}, headers=ANY)
    assert only.status_code == 400
    both = {"protocol": "oip-grpc", "url": "grpc://10.0.0.1:8001"}
    assert (await api.patch(f"{ENDPOINTS}/e", json=both, headers=ANY)).status_code == 200


async def test_an_endpoint_of_this_process_has_no_url(api: httpx.AsyncClient) -> None:
    sent = {"name": "self", "protocol": "in-process", "models": ["bert"], "max_in_flight": 8}
    made = await api.post(ENDPOINTS, json=sent)
    assert made.status_code == 201, made.text
    assert (made.json()["url"], made.json()["max_in_flight"]) == ("", 8)
    for patch in ({"url": "http://10.0.0.1"}, {"protocol": "oip-rest"}):
        refused = await api.patch(f"{ENDPOINTS}/self", json=patch, headers=ANY)
        assert refused.json()["errors"][0]["pointer"] == "#/url"
    moved = {"protocol": "oip-rest", "url": "http://10.0.0.1"}
    assert (await api.patch(f"{ENDPOINTS}/self", json=moved, headers=ANY)).status_code == 200


async def test_a_tls_profile_needs_a_url_with_tls(api: httpx.AsyncClient) -> None:
    sent = {"name": "e", "url": "http://10.0.0.1", "tls": "mesh"}
    refused = await api.post(ENDPOINTS, json=sent)
    assert refused.json()["errors"][0]["pointer"] == "#/tls"
    made = await api.post(ENDPOINTS, json={**sent, "url": "https://10.0.0.1"})
    assert made.json()["tls"] == "mesh"
    plain = await api.patch(f"{ENDPOINTS}/e", json={"url": "http://10.0.0.1"}, headers=ANY)
    assert plain.status_code == 400
    both = {"url": "http://10.0.0.1", "tls": None}
    assert (await api.patch(f"{ENDPOINTS}/e", json=both, headers=ANY)).status_code == 200


async def test_an_endpoint_may_be_reached_by_grpc_as_well(api: httpx.AsyncClient) -> None:
    sent = {"name": "e", "url": "http://10.0.0.1:8000", "grpc_url": "grpc://10.0.0.1:8001"}
    made = await api.post(ENDPOINTS, json=sent)
    assert made.status_code == 201, made.text
    assert (made.json()["url"], made.json()["grpc_url"]) == (sent["url"], sent["grpc_url"])
    url = f"{ENDPOINTS}/e"
    for protocol, its_url in (("oip-grpc", "grpc://10.0.0.1"), ("in-process", "")):
        other = {"protocol": protocol, "url": its_url}
        refused = await api.patch(url, json=other, headers=ANY)
        assert refused.json()["errors"][0]["pointer"] == "#/grpc_url"
    cleared = await api.patch(url, json={"grpc_url": None}, headers=ANY)
    assert (cleared.status_code, cleared.json()["grpc_url"]) == (200, "")


@pytest.mark.parametrize(
    "grpc_url",
    [
        "grpc://169.254.169.254",
        "grpc://8.8.8.8:8001",
        "grpc://[::ffff:127.0.0.1]:8001",
        "grpc://loop.example",
        "grpc://rebound.example",
        "grpc://unknown.example",
        "http://10.0.0.1",
        "grpc://10.0.0.1/path",
        "10.0.0.1:8001",
    ],
)
async def test_its_grpc_address_must_be_allowed_too(api: httpx.AsyncClient, grpc_url: str) -> None:
    sent = {"name": "e", "url": "http://10.0.0.1"}
    answer = await api.post(ENDPOINTS, json={**sent, "grpc_url": grpc_url})
    assert answer.status_code == 400, answer.text
    assert answer.json()["errors"][0]["pointer"] == "#/grpc_url"
    assert (await api.post(ENDPOINTS, json=sent)).status_code == 201
    moved = await api.patch(f"{ENDPOINTS}/e", json={"grpc_url": grpc_url}, headers=ANY)
    assert moved.status_code == 400


async def test_what_is_secure_by_http_is_secure_by_grpc(api: httpx.AsyncClient) -> None:
    sent = {"name": "e", "url": "https://10.0.0.1", "tls": "mesh"}
    plain = await api.post(ENDPOINTS, json={**sent, "grpc_url": "grpc://10.0.0.1"})
    assert plain.json()["errors"][0]["pointer"] == "#/grpc_url"
    both = await api.post(ENDPOINTS, json={**sent, "grpc_url": "grpcs://10.0.0.1"})
    assert both.status_code == 201, both.text
    # the profile is of the connection that is made
    unused = {"url": "http://10.0.0.1", "grpc_url": "grpc://10.0.0.1"}
    refused = await api.patch(f"{ENDPOINTS}/e", json=unused, headers=ANY)
    assert refused.json()["errors"][0]["pointer"] == "#/tls"


@pytest.mark.parametrize("value", [-1, 1_000_001, 1.5])
async def test_requests_under_way_are_counted_in_whole_numbers(
    api: httpx.AsyncClient, value: float
) -> None:
    sent = {"name": "e", "url": "http://10.0.0.1", "max_in_flight": value}
    answer = await api.post(ENDPOINTS, json=sent)
    assert answer.json()["errors"][0]["pointer"] == "#/max_in_flight"
