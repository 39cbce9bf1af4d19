from __future__ import annotations

import pytest

from headrace.domain.errors import Forbidden
from headrace.gateway.visitors import Visitors

VISITORS = Visitors(lambda origin: origin == b"https://app.example")


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "localhost:8080", "LOCALHOST", "localhost.", "app.localhost:1", "127.0.0.1:80",
        "127.8.9.10", "[::1]:8080", "[::1]",
    ],
)  # fmt: skip
def test_whoever_asks_for_this_machine_comes_in(host: str) -> None:
    VISITORS.check({b"host": host.encode(), b"accept-language": b"en"})
    VISITORS.check({b"host": host.encode(), b"origin": f"http://{host}".encode()})


@pytest.mark.parametrize(
    "host",
    [
        "rebind.evil.example", "rebind.evil.example:8080", "localhost.evil.example", "10.0.0.1",
        "127.0.0.1.evil.example", "[2001:db8::1]:80", "notlocalhost", "", "127.0.0.1@evil.example",
        "evil.example/localhost", "127.0.0.1\x00", "0.0.0.0",  # noqa: S104 - a name, as a page has it
    ],
)  # fmt: skip
def test_a_browser_that_asks_for_another_name_does_not(host: str) -> None:
    with pytest.raises(Forbidden, match="browsers may only ask localhost"):
        VISITORS.check({b"host": host.encode(), b"accept-language": b"en"})
    VISITORS.check({b"host": host.encode()})  # who is no browser has no page that misleads it


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "file://", "http://localhost.evil.example"]
)
def test_a_page_of_elsewhere_may_not_call(origin: str) -> None:
    with pytest.raises(Forbidden, match=r"cors\.origins"):
        VISITORS.check({b"host": b"localhost", b"origin": origin.encode()})


def test_a_page_of_an_origin_that_may_call_does() -> None:
    VISITORS.check({b"host": b"localhost", b"origin": b"https://app.example"})


def test_what_browsers_do_not_send_is_not_asked_for() -> None:
    VISITORS.check({})


def test_names_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.gateway.visitors._KEPT", 3)
    for n in range(10):
        VISITORS.check({b"host": b"localhost:%d" % n, b"accept-language": b"en"})
    assert len(VISITORS._local) <= 3  # noqa: SLF001 - memory is what is bounded
