from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network

import pytest

from headrace.compose.siting import Siting
from headrace.domain.catalog import Endpoint, Protocol
from headrace.domain.errors import InvalidRequest
from headrace.ports.upstream import Sited
from headrace.registry.networks import Address

_AT = datetime(2026, 1, 1, tzinfo=UTC)


async def sited(
    url: str,
    *answers: str,
    protocol: Protocol = "oip-rest",
    grpc_url: str = "",
    allowed: Sequence[str] = ("0.0.0.0/0",),
) -> tuple[Sited, list[tuple[str, int]]]:
    """Where an endpoint is whose name has these addresses, and which names were looked up."""
    asked: list[tuple[str, int]] = []

    async def resolve(host: str, port: int) -> Sequence[Address]:
        asked.append((host, port))
        return [ip_address(answer) for answer in answers]

    siting = Siting(allowed=[ip_network(each) for each in allowed], resolve=resolve)
    endpoint = Endpoint(
        tenant="t", name="e", url=url, protocol=protocol, grpc_url=grpc_url, created_at=_AT,
        updated_at=_AT,
    )  # fmt: skip
    return await siting(endpoint), asked


def addresses(found: Sited) -> list[str]:
    return [str(site.address) for site in found.sites]


async def test_an_address_is_not_looked_up_and_never_changes() -> None:
    found, asked = await sited("https://10.1.2.3/triton/")
    (site,) = found.sites
    assert (site.host, site.port, str(site.address)) == ("10.1.2.3", 443, "10.1.2.3")
    assert (site.path, site.secure) == ("/triton", True)
    assert found.fixed
    assert asked == []


async def test_an_endpoint_is_where_it_speaks_grpc() -> None:
    found, _ = await sited("https://10.1.2.3/triton/", grpc_url="grpcs://10.1.2.4:8001")
    (site,) = found.sites
    assert (str(site.address), site.port, site.path, site.secure) == ("10.1.2.4", 8001, "", True)


async def test_each_address_of_a_name_is_a_site_that_is_called_by_the_name() -> None:
    found, asked = await sited("grpc://triton:9000", "10.0.0.1", "10.0.0.2", protocol="oip-grpc")
    assert addresses(found) == ["10.0.0.1", "10.0.0.2"]
    assert {(site.host, site.port, site.secure) for site in found.sites} == {
        ("triton", 9000, False)
    }
    assert not found.fixed
    assert asked == [("triton", 9000)]


async def test_addresses_outside_the_allowed_networks_are_told_and_not_connected_to() -> None:
    found, _ = await sited(
        "http://triton", "10.0.0.1", "169.254.169.254", "fd00::1", allowed=["10.0.0.0/8"]
    )
    assert addresses(found) == ["10.0.0.1"]
    assert found.refused == ("169.254.169.254", "fd00::1")


async def test_an_address_that_was_allowed_once_is_checked_again() -> None:
    found, _ = await sited("http://192.0.2.1", allowed=["10.0.0.0/8"])
    assert (found.sites, found.refused, found.fixed) == ((), ("192.0.2.1",), True)


async def test_ipv6_is_allowed_by_its_own_networks() -> None:
    found, _ = await sited("http://[fd00::1]:8000", allowed=["fd00::/8"])
    assert addresses(found) == ["fd00::1"]
    found, _ = await sited("http://[fd00::1]:8000")
    assert addresses(found) == []


async def test_an_ipv4_address_in_ipv6_dress_is_what_it_stands_for() -> None:
    found, _ = await sited("http://triton", "::ffff:10.0.0.1", "10.0.0.1", allowed=["10.0.0.0/8"])
    assert addresses(found) == ["10.0.0.1"], "and not a second endpoint"
    found, _ = await sited("http://[::ffff:169.254.169.254]", allowed=["::/0", "10.0.0.0/8"])
    assert (found.sites, found.refused) == ((), ("169.254.169.254",))


async def test_a_url_that_no_endpoint_may_have_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="credentials"):
        await sited("http://me:secret@triton")
