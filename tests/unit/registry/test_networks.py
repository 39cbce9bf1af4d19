from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from headrace.domain.errors import InvalidRequest
from headrace.registry.networks import locate, require_allowed

PRIVATE = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("127.0.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("0X7F.1", "127.0.0.1"),
        ("0177.0.0.01", "127.0.0.1"),
        ("017700000001", "127.0.0.1"),
        ("127.0.0.1.", "127.0.0.1"),
        ("0", "0.0.0.0"),  # noqa: S104
        ("[::1]", "::1"),
        ("[::ffff:127.0.0.1]", "::ffff:127.0.0.1"),
        ("[fd00::7]", "fd00::7"),
    ],
)
def test_an_address_is_read_in_every_form_that_resolvers_read(host: str, address: str) -> None:
    assert locate(f"http://{host}:8000/", "oip-rest").address == ip_address(address)


def test_a_name_and_the_schemes_port_are_told() -> None:
    location = locate("https://models.internal/prefix", "oip-rest")
    assert (location.host, location.port, location.address) == ("models.internal", 443, None)
    assert locate("grpc://models.internal:8001", "oip-grpc").port == 8001


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("http://10.0.0.1", ""),
        ("http://10.0.0.1/", ""),
        ("http://10.0.0.1/serving/bert/", "/serving/bert"),
        ("http://10.0.0.1/v2/bert", "/v2/bert"),
    ],
)
def test_a_path_is_what_stands_before_the_wires_own(url: str, path: str) -> None:
    assert locate(url, "oip-rest").path == path


def test_a_scheme_tells_whether_there_is_tls() -> None:
    assert [locate(f"{s}://a", "oip-rest").secure for s in ("http", "https")] == [False, True]
    assert [locate(f"{s}://a", "oip-grpc").secure for s in ("grpc", "grpcs")] == [False, True]


def test_a_url_of_grpc_has_no_path() -> None:
    assert locate("grpc://10.0.0.1/", "oip-grpc").path == ""
    with pytest.raises(InvalidRequest, match="without one"):
        locate("grpc://10.0.0.1/prefix", "oip-grpc")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://10.0.0.1/v2",
        "http://",
        "http:///x",
        "//10.0.0.1",
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "gopher://10.0.0.1",
        "grpc://10.0.0.1",
        "http://user@10.0.0.1",
        "http://user:secret@10.0.0.1",
        "http://10.0.0.1@169.254.169.254",
        "http://10.0.0.1\\@169.254.169.254",
        "http://10.0.0.1?x",
        "http://10.0.0.1/#x",
        "http://10.0.0.1/?",
        "http://10.0.0.1:0",
        "http://10.0.0.1:65536",
        "http://10.0.0.1:x",
        "http://10.0.0.256",
        "http://10.0.0.0.1",
        "http://10.16777216",
        "http://4294967296",
        "http://09.0.0.1",
        "http://[::1",
        "http://[fe80::1%25eth0]",
        "http://[v1.x]",
        "http://[127.0.0.1]",
        "http://10.0.0.1[::1]",
        "http://[::1]10.0.0.1",
        "http://a..b",
        "http://-a",
        "http://a b",
        "http://a\nb",
        "http://münchen.example",
        "http://" + "a" * 64,
        "http://" + "a" * 2048,
    ],
)
def test_a_url_that_no_endpoint_may_have_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        locate(url, "oip-rest")
    assert "secret" not in raised.value.message


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3", "fd12::1"])
def test_what_lies_in_an_allowed_network_is_allowed(address: str) -> None:
    require_allowed([ip_address(address)], PRIVATE)


@pytest.mark.parametrize(
    "address",
    ["169.254.169.254", "127.0.0.1", "::ffff:169.254.169.254", "::1", "::10.1.2.3", "8.8.8.8"],
)
def test_what_lies_elsewhere_is_refused_even_beside_what_is_allowed(address: str) -> None:
    with pytest.raises(InvalidRequest, match="lies in no network"):
        require_allowed([ip_address("10.0.0.1"), ip_address(address)], PRIVATE)
    with pytest.raises(InvalidRequest):
        require_allowed([ip_address(address)], [])
