from __future__ import annotations

from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

import msgspec
import pytest

from headrace.compose.upstreams import Upstreams
from headrace.domain.calls import OPERATOR
from headrace.domain.catalog import Endpoint, Protocol
from headrace.domain.errors import InvalidSettings
from headrace.ports.upstream import Site, Upstream
from headrace.registry.endpoint_content import EndpointContent
from headrace.router.in_process import InProcess
from headrace.settings import Settings
from headrace.transport.http.tls import TlsProfile
from headrace.transport.oip_grpc.upstream import GrpcUpstream
from headrace.transport.oip_rest.upstream import RestUpstream
from headrace.transport.openai.settings import EndpointKey
from headrace.transport.openai.upstream import OpenAiUpstream
from tests.support.router_fakes import NoLocalModels
from tests.support.tls_front import authority

_AT = datetime(2026, 1, 1, tzinfo=UTC)
PLAIN = Site("h", 80, ip_address("10.0.0.1"))
SECURE = Site("h", 443, ip_address("10.0.0.1"), secure=True)


def endpoint(protocol: Protocol = "oip-rest", tls: str = "") -> Endpoint:
    return Endpoint(
        tenant="blue", name="e", url="", protocol=protocol, tls=tls, created_at=_AT, updated_at=_AT
    )


def in_process(endpoint: Endpoint) -> Upstream:
    return InProcess(NoLocalModels(), endpoint.tenant)


def upstreams(**tls: TlsProfile) -> Upstreams:
    return Upstreams(Settings(tls=tls), in_process=in_process)


async def test_each_protocol_has_its_upstream() -> None:
    connect = upstreams()
    assert isinstance(connect(endpoint("in-process"), None), InProcess)
    assert isinstance(connect(endpoint(), PLAIN), RestUpstream)
    assert isinstance(connect(endpoint("oip-grpc"), PLAIN), GrpcUpstream)
    assert isinstance(connect(endpoint("openai"), PLAIN), OpenAiUpstream)


async def test_where_both_are_given_grpc_is_what_is_asked() -> None:
    both = msgspec.structs.replace(endpoint(), grpc_url="grpc://h:8001")
    assert isinstance(upstreams()(both, PLAIN), GrpcUpstream)


@pytest.mark.parametrize("protocol", ["oip-rest", "oip-grpc"])
async def test_where_no_profile_is_named_the_usual_one_secures(protocol: Protocol) -> None:
    connect = upstreams()
    connect(endpoint(protocol), SECURE)
    connect(endpoint(protocol, "default"), SECURE)


@pytest.mark.parametrize("protocol", ["oip-rest", "oip-grpc"])
async def test_a_profile_that_is_not_there_secures_nothing(protocol: Protocol) -> None:
    connect = upstreams(other=TlsProfile())
    for _ in range(2):
        with pytest.raises(InvalidSettings, match="there is no such profile"):
            connect(endpoint(protocol, "gone"), SECURE)
    connect(endpoint(protocol, "other"), SECURE)
    connect(endpoint(protocol, "gone"), PLAIN)


@pytest.mark.parametrize("protocol", ["oip-rest", "oip-grpc"])
async def test_a_profile_may_be_of_files_of_ones_own(tmp_path: Path, protocol: Protocol) -> None:
    files = authority(tmp_path)
    profile = TlsProfile(ca_file=str(files.ca_file), certificate_file=str(files.client_file))
    upstreams(own=profile)(endpoint(protocol, "own"), SECURE)


def test_a_profile_that_cannot_be_used_is_told_before_any_endpoint_needs_it() -> None:
    with pytest.raises(InvalidSettings, match=r"^tls\.odd: ca_file 'nowhere\.pem'"):
        upstreams(odd=TlsProfile(ca_file="nowhere.pem"))


async def test_the_key_of_an_endpoint_of_the_settings_is_shown_to_no_other_of_its_name() -> None:
    settings = Settings(
        endpoints={"e": EndpointContent(url="http://h", protocol="openai")},
        endpoint_keys={"e": EndpointKey(secret="sk-1")},
    )
    connect = Upstreams(settings, in_process=in_process)
    own = msgspec.structs.replace(endpoint("openai"), tenant=OPERATOR, url="http://h")
    assert connect.secret_of(own) == "sk-1"
    for other in ({"tenant": "blue"}, {"url": "http://elsewhere"}, {"name": "f"}):
        assert not connect.secret_of(msgspec.structs.replace(own, **other))
