from __future__ import annotations

from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any

import msgspec
import pytest

from headrace.domain.calls import OPERATOR
from headrace.domain.catalog import Route, Target
from headrace.domain.errors import InvalidSettings
from headrace.registry.configured import configured_endpoints, configured_routes
from headrace.registry.endpoint_content import EndpointContent
from headrace.registry.networks import Network
from headrace.registry.route_content import RouteContent

AT = datetime(2026, 1, 1, tzinfo=UTC)
ALLOWED = [ip_network("10.0.0.0/8")]


def endpoints(tree: dict[str, Any], allowed: list[Network] = ALLOWED) -> Any:
    contents = msgspec.convert(tree, dict[str, EndpointContent])
    return configured_endpoints(contents, allowed=allowed, at=AT)


def routes(tree: dict[str, Any]) -> tuple[Route, ...]:
    return configured_routes(msgspec.convert(tree, dict[str, RouteContent]), at=AT)


def test_endpoints_of_the_settings_are_the_operators_and_come_by_name() -> None:
    found = endpoints(
        {
            "b": {"url": "http://models.internal:8000/prefix", "models": ["z", "a"]},
            "a": {"protocol": "in-process", "weight": 0.5},
        }
    )
    assert [(e.tenant, e.name, e.url) for e in found] == [
        (OPERATOR, "a", ""),
        (OPERATOR, "b", "http://models.internal:8000/prefix"),
    ]
    assert (found[1].models, found[0].weight, found[0].created_at) == (("a", "z"), 0.5, AT)


def test_models_of_openai_are_named_as_their_servers_name_them() -> None:
    names = ["BAAI/bge-small-en-v1.5", "llama3:8b"]
    content = {"url": "https://10.0.0.1/v1", "protocol": "openai", "models": names}
    (found,) = endpoints({"llm": content})
    assert (found.models, found.reached) == (tuple(names), ("openai", "https://10.0.0.1/v1"))


@pytest.mark.parametrize(
    ("name", "content", "refusal"),
    [
        ("triton-a", {}, "endpoints.triton-a.url: an endpoint of oip-rest needs one"),
        ("triton-a", {"url": "grpc://10.0.0.1"}, "endpoints.triton-a.url: "),
        ("triton-a", {"url": "http://10.0.0.1/v2/"}, "endpoints.triton-a.url: "),
        (
            "triton-a",
            {"url": "http://10.0.0.1", "protocol": "in-process"},
            "endpoints.triton-a.url: an endpoint of in-process has no URL",
        ),
        ("e", {"url": "http://10.0.0.1", "models": ["a", "b c"]}, "endpoints.e.models.1: "),
        ("e", {"url": "http://10.0.0.1", "models": ["org/m"]}, "endpoints.e.models.0: "),
        ("e", {"url": "grpc://10.0.0.1", "protocol": "openai"}, "endpoints.e.url: "),
        (
            "e",
            {"url": "http://10.0.0.1", "protocol": "openai", "models": ["../m"]},
            "endpoints.e.models.0: ",
        ),
        (
            "e",
            {"url": "http://10.0.0.1", "protocol": "openai", "grpc_url": "grpc://10.0.0.1"},
            "endpoints.e.grpc_url: OpenAI's API is not spoken by gRPC",
        ),
        ("e", {"url": "http://10.0.0.1", "tls": "mesh"}, "endpoints.e.tls: "),
        ("e", {"url": "https://10.0.0.1", "tls": "a b"}, "endpoints.e.tls: "),
        (
            "e",
            {"url": "http://10.0.0.1", "grpc_url": "grpc://8.8.8.8"},
            "endpoints.e.grpc_url: 8.8.8.8 lies in no network",
        ),
        (
            "e",
            {"url": "grpc://10.0.0.1", "grpc_url": "grpc://10.0.0.1", "protocol": "oip-grpc"},
            "endpoints.e.grpc_url: an endpoint of oip-grpc has its address in url",
        ),
        ("a b", {"url": "http://10.0.0.1"}, "endpoints.a b: a name must be "),
    ],
)
def test_an_endpoint_that_cannot_be_is_refused_by_its_key(
    name: str, content: dict[str, Any], refusal: str
) -> None:
    with pytest.raises(InvalidSettings) as raised:
        endpoints({name: content})
    assert raised.value.message.startswith(refusal)


@pytest.mark.parametrize("host", ["8.8.8.8", "2130706433", "[::ffff:127.0.0.1]"])
def test_an_address_outside_the_networks_is_refused_by_both_settings(host: str) -> None:
    with pytest.raises(InvalidSettings) as raised:
        endpoints({"e": {"url": f"http://{host}:8000"}})
    assert raised.value.message.startswith("endpoints.e.url: ")
    assert "registry.endpoint_networks (10.0.0.0/8)" in raised.value.message


def test_routes_of_the_settings_are_the_operators_and_come_by_name() -> None:
    found = routes(
        {
            "z": {"targets": [{"model": "a"}]},
            "b": {"targets": [{"model": "a"}], "force_header": "X-Target"},
        }
    )
    assert [(route.tenant, route.name) for route in found] == [(OPERATOR, "b"), (OPERATOR, "z")]
    assert (found[0].force_header, found[0].targets) == ("x-target", (Target(model="a"),))


@pytest.mark.parametrize(
    ("name", "content", "refusal"),
    [
        ("r", {"targets": [{"model": "a b"}]}, "routes.r.targets.0.model: "),
        ("r", {"targets": [{"model": "a", "version": "/"}]}, "routes.r.targets.0.version: "),
        ("r", {"targets": [{"model": "a", "weight": 0}]}, "routes.r.targets: all weights are 0"),
        (
            "r",
            {"targets": [{"model": "a"}], "force_header": "Cookie"},
            "routes.r.force_header: cookie holds credentials",
        ),
        (
            "r",
            {"targets": [{"model": "a"}], "fallbacks": [{"model": "b", "name": "a"}]},
            "routes.r.fallbacks.0.name: 'a' is what targets.0 is called",
        ),
        ("a b", {"targets": [{"model": "a"}]}, "routes.a b: a name must be "),
    ],
)
def test_a_route_that_cannot_be_is_refused_by_its_key(
    name: str, content: dict[str, Any], refusal: str
) -> None:
    with pytest.raises(InvalidSettings) as raised:
        routes({name: content})
    assert raised.value.message.startswith(refusal)
