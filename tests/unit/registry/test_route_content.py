from __future__ import annotations

from typing import Any

import msgspec
import pytest

from headrace.domain.catalog import Endpoint, Route
from headrace.domain.errors import InvalidRequest
from headrace.registry.header_names import header_name
from headrace.registry.route_content import RouteContent, route_fields


def fields(**content: Any) -> dict[str, Any]:
    whole = {"targets": [{"model": "a", "weight": 9}, {"model": "a", "version": "2"}], **content}
    return route_fields(msgspec.convert(whole, RouteContent))


def test_one_target_may_have_another_share_in_another_set() -> None:
    again = {"model": "a", "version": "2", "weight": 100}
    found = fields(
        rules=[{"match": {}, "targets": [again]}], fallbacks=[again], shadows=[{"target": again}]
    )
    assert found["rules"][0].targets[0].label == "a:2"
    assert found["shadows"][0].target.weight == 100


@pytest.mark.parametrize(
    "other",
    [
        {"model": "b", "name": "a"},
        {"model": "a", "endpoints": {"gpu": "h"}},
        {"model": "a", "version": "1", "name": "a"},
    ],
)
def test_one_label_does_not_stand_for_two_targets(other: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=r"^fallbacks\.0\.name: 'a' is what targets\.0"):
        fields(fallbacks=[other])


def test_a_target_is_there_once_in_a_set() -> None:
    with pytest.raises(InvalidRequest, match=r"^fallbacks\.1\.name: 'b' is what fallbacks\.0"):
        fields(fallbacks=[{"model": "b"}, {"model": "b", "weight": 2}])


@pytest.mark.parametrize("name", ["", "a b", "a:b", "é", "a\n", "x" * 129])
def test_what_is_no_token_is_no_headers_name(name: str) -> None:
    with pytest.raises(InvalidRequest):
        header_name("/x", name)


@pytest.mark.parametrize(
    "name", ["Connection", "TE", "keep-alive", "Authorization", "COOKIE", "X-Api-Key"]
)
def test_a_header_of_one_connection_or_with_credentials_is_not_looked_at(name: str) -> None:
    with pytest.raises(InvalidRequest, match=name.lower()):
        header_name("/x", name)


@pytest.mark.parametrize(
    "name",
    [
        "Accept-Encoding",
        "Content-Encoding",
        "Content-Length",
        "Content-Type",
        "Expect",
        "Host",
        "Inference-Header-Content-Length",
    ],
)
def test_a_header_of_one_messages_form_is_not_looked_at(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{name.lower()} is about one message's form"):
        header_name("/x", name)


def test_what_was_stored_before_routes_had_rules_is_read_as_it_was_meant() -> None:
    times = {"created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z"}
    target = {"model": "a", "version": "1", "weight": 2.0}
    old = {"tenant": "t", "name": "r", "targets": [target], "description": "", **times}
    route = msgspec.convert(old, Route)
    assert (route.rules, route.sticky, route.targets[0].label) == ((), None, "a:1")
    url = "http://10.0.0.1"
    endpoint = msgspec.convert({"tenant": "t", "name": "e", "url": url, **times}, Endpoint)
    assert (endpoint.max_in_flight, endpoint.tls) == (0, "")
