from __future__ import annotations

import pytest

from headrace.domain.errors import InvalidSettings
from headrace.transport.client_address import ClientAddress

TRUSTED = ["10.0.0.0/8", "::1/128"]


def _of(forwarded: str | None, peer: str, trusted: list[str] = TRUSTED) -> str:
    headers = {} if forwarded is None else {b"x-forwarded-for": forwarded.encode()}
    return ClientAddress(trusted).of(headers, peer)


def test_without_trusted_proxies_the_header_says_nothing() -> None:
    assert _of("1.2.3.4", "10.0.0.1", []) == "10.0.0.1"


def test_anybody_else_may_write_what_it_likes() -> None:
    assert _of("1.2.3.4", "192.0.2.9") == "192.0.2.9"


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("1.2.3.4, 203.0.113.7", "203.0.113.7"),  # the first is what the client itself wrote
        ("203.0.113.7, 10.1.1.1, 10.2.2.2", "203.0.113.7"),
        ("10.9.9.9, 10.1.1.1", "10.9.9.9"),  # nobody else has been seen
        ("2001:db8::1", "2001:db8::1"),
        (" 203.0.113.7 ", "203.0.113.7"),
        ("203.0.113.7:1234", "203.0.113.7"),
        ("[2001:db8::1]:99", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("203.0.113.7, ::ffff:10.1.1.1", "203.0.113.7"),
        ("fe80::1%any-text", "fe80::1"),
        ("203.0.113.7, not an address", "10.0.0.1"),
        ("203.0.113.7, not an address, 10.1.1.1", "10.1.1.1"),
        ("", "10.0.0.1"),
        (",,,", "10.0.0.1"),
        (None, "10.0.0.1"),
    ],
)
def test_behind_a_trusted_proxy_the_client_is_the_last_that_is_none(
    forwarded: str | None, client: str
) -> None:
    assert _of(forwarded, "10.0.0.1") == client


def test_a_unix_socket_is_of_this_machine() -> None:
    assert _of("203.0.113.7", "") == "203.0.113.7"
    assert _of("203.0.113.7", "::1") == "203.0.113.7"


def test_no_list_is_read_without_end() -> None:
    assert _of(", ".join(["203.0.113.7"] + ["10.0.0.2"] * 100_000), "10.0.0.1") == "10.0.0.2"


def test_a_network_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidSettings, match=r"http\.trusted_proxies"):
        ClientAddress(["10.0.0.1/8"])
