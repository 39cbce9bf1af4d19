from __future__ import annotations

import msgspec
import pytest

from headrace.compose.checks import check_exposure
from headrace.domain.errors import InvalidSettings
from headrace.domain.hosts import is_loopback
from headrace.gateway.authentication import AuthenticationSettings
from headrace.gateway.static_tokens import StaticToken
from headrace.registry.settings import RegistrySettings
from headrace.settings import ServerSettings, Settings

LOOPBACK = ["127.0.0.1", "127.8.9.10", "::1", "localhost"]
OPEN = ["0.0.0.0", "::", "", "192.168.1.7", "10.0.0.1", "2001:db8::1", "fe80::1", "myhost", "*"]  # noqa: S104


def _settings(host: str, **tokens: str | StaticToken) -> Settings:
    return Settings(
        server=ServerSettings(host=host), authentication=AuthenticationSettings(tokens=tokens)
    )


@pytest.mark.parametrize("host", LOOPBACK)
def test_on_loopback_nobody_has_to_show_a_token(host: str) -> None:
    assert is_loopback(host)
    check_exposure(_settings(host))


@pytest.mark.parametrize("host", OPEN)
def test_an_open_address_without_tokens_does_not_start(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(InvalidSettings) as caught:
        check_exposure(_settings(host))
    assert caught.value.message.startswith(f"server.host is {host}, which other machines can reach")
    assert "set authentication.tokens" in caught.value.message


@pytest.mark.parametrize("host", [*LOOPBACK, *OPEN])
def test_with_a_token_configured_every_address_is_allowed(host: str) -> None:
    check_exposure(_settings(host, alice="0" * 64))


def test_a_name_that_only_looks_like_loopback_is_open() -> None:
    for host in ("localhost.example.org", "127.0.0.1.example.org", "127.1", "0177.0.0.1"):
        assert not is_loopback(host)


def test_the_defaults_start() -> None:
    check_exposure(Settings())


@pytest.mark.parametrize("host", OPEN)
def test_development_mode_is_for_this_machine_only(host: str) -> None:
    settings = Settings(mode="development", server=ServerSettings(host=host))
    with pytest.raises(InvalidSettings, match="mode is development"):
        check_exposure(settings)


def test_keys_that_are_asked_for_let_others_in() -> None:
    settings = Settings(
        server=ServerSettings(host="0.0.0.0"),  # noqa: S104 - what is tested
        authentication=AuthenticationSettings(required=True),
    )
    check_exposure(settings)
    without = msgspec.structs.replace(settings, registry=RegistrySettings(enabled=False))
    with pytest.raises(InvalidSettings, match=r"registry\.enabled is false"):
        check_exposure(without)
