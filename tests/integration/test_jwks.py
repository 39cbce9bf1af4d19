"""Keys over HTTP: from a server that rotates them, and from one that fails in every way."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from headrace.adapters.jwt.settings import JwtSettings
from headrace.adapters.jwt.sources import Unfetched, UrlSource
from headrace.adapters.jwt.verifier import JwtVerifier
from headrace.domain.errors import KeysUnavailable
from tests.support.issuer import (
    AUDIENCE,
    ISSUER,
    NOW,
    Clock,
    Fault,
    JwksServer,
    Signer,
    jwks_server,
    key_set,
)
from tests.support.ports import free_port
from tests.support.waiting import until

OLD: Final = Signer("RS256", "old")
NEW: Final = Signer("ES256", "new")
TIMEOUT_S: Final = 0.5
#: What a busy machine may add to a timeout.
SLACK_S: Final = 2.0


@pytest.fixture
def jwks() -> Iterator[JwksServer]:
    with jwks_server([OLD]) as server:
        yield server


class Platform:
    """A verifier whose seconds between fetches go on when they are told to."""

    def __init__(self, **settings: Any) -> None:
        self.monotonic = Clock()
        whole = {"issuer": ISSUER, "audience": [AUDIENCE], "fetch_timeout_s": TIMEOUT_S, **settings}
        self.verifier = JwtVerifier(
            JwtSettings(**whole), clock=Clock(NOW), monotonic=self.monotonic
        )
        self.changes = 0
        self.verifier.on_change(self._changed)

    def _changed(self) -> None:
        self.changes += 1

    def accepts(self, signer: Signer) -> bool:
        return self.verifier.verify(signer.token()) is not None

    async def fetched(self) -> None:
        """Time enough passes; an unknown key is named; what is fetched for it is there."""
        self.monotonic.now += 31
        assert not self.accepts(Signer("ES256", "unknown"))
        await until(self.is_idle)

    def is_idle(self) -> bool:
        """Whether the last fetch that was due is done."""
        ring = self.verifier._ring  # noqa: SLF001
        assert ring is not None
        return ring._schedule.wait_s(self.monotonic()) > 0  # noqa: SLF001


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[Platform]:
    platform = Platform(**settings)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(platform.verifier.run())
        await platform.verifier.first_keys(TIMEOUT_S)
        yield platform
        task.cancel()


async def test_keys_are_fetched_from_the_url_as_it_is_written(jwks: JwksServer) -> None:
    async with running(jwks_url=jwks.url) as platform:
        assert platform.accepts(OLD)
    assert jwks.requests == ["/keys?tenant=7"]


async def test_a_new_key_is_accepted_after_one_fetch_and_the_old_one_through_the_overlap(
    jwks: JwksServer,
) -> None:
    async with running(jwks_url=jwks.url) as platform:
        jwks.publish(OLD, NEW)
        platform.monotonic.now += 31
        assert not platform.accepts(NEW)
        await until(lambda: platform.accepts(NEW))
        assert platform.accepts(OLD)
        assert len(jwks.requests) == platform.verifier.fetches == 2
        jwks.publish(NEW)
        await platform.fetched()
        assert platform.accepts(NEW)
        assert not platform.accepts(OLD)
        assert platform.changes == 3


async def test_a_flood_of_unknown_keys_causes_one_fetch_in_30_s(jwks: JwksServer) -> None:
    flood = [Signer("ES256", f"k{number}").token() for number in range(1000)]
    async with running(jwks_url=jwks.url) as platform:
        for fetches in (1, 2, 3):
            for token in flood:
                assert platform.verifier.verify(token) is None
                await asyncio.sleep(0)
            await until(platform.is_idle)
            assert len(jwks.requests) == platform.verifier.fetches == fetches
            platform.monotonic.now += 31


async def test_no_fetch_follows_what_a_token_says(jwks: JwksServer) -> None:
    forger = Signer("RS256", "forged", number=2)
    with jwks_server([forger]) as theirs:
        lure: dict[str, Any] = {"jku": theirs.url, "x5u": theirs.url, "jwk": forger.jwk()}
        async with running(jwks_url=jwks.url) as platform:
            for kid in ("forged", "old", theirs.url, None):
                assert platform.verifier.verify(forger.token(kid=kid, **lure)) is None
            await platform.fetched()
        assert theirs.requests == []


@pytest.mark.parametrize(
    "fault", ["500", "hang", "drip_body", "drip_head", "garbage", "redirect", "endless", "cut"]
)
async def test_the_last_good_keys_stay_while_the_server_fails(
    jwks: JwksServer, fault: Fault
) -> None:
    async with running(jwks_url=jwks.url) as platform:
        jwks.fault = fault
        jwks.publish(NEW)
        await platform.fetched()
        assert platform.verifier.failures == 1
        assert platform.accepts(OLD)
        assert "/elsewhere" not in jwks.requests
        jwks.fault = None

        async def recovered() -> bool:  # what failed may take a moment to let go
            await platform.fetched()
            return platform.accepts(NEW)

        await until(recovered)


async def test_until_a_server_that_is_down_comes_up_tokens_are_told_to_wait() -> None:
    url = f"http://127.0.0.1:{free_port()}/keys"
    async with running(jwks_url=url) as platform:
        with pytest.raises(KeysUnavailable):
            platform.accepts(OLD)
        assert platform.verifier.failures == 1


@pytest.mark.parametrize("fault", ["hang", "drip_body", "drip_head"])
async def test_a_fetch_is_cut_off_at_its_deadline(jwks: JwksServer, fault: Fault) -> None:
    jwks.fault = fault
    jwks.content = key_set(*[OLD.jwk(kid=f"k{number}") for number in range(20)])
    source = UrlSource(jwks.url, TIMEOUT_S)
    for _ in range(2):  # the second shows that nothing of the first is left
        begun = time.monotonic()
        with pytest.raises(Unfetched):
            await source.fetch()
        assert time.monotonic() - begun < TIMEOUT_S + SLACK_S
        await until(lambda: source._thread is None or source._thread.done())  # noqa: SLF001


async def test_an_answer_that_is_too_large_is_read_no_further(jwks: JwksServer) -> None:
    jwks.content = key_set(NEW) + b" " * 3_000_000
    assert len(await UrlSource(jwks.url, 10).fetch()) == 1024 * 1024 + 1
    async with running(jwks_url=jwks.url) as platform:
        await until(lambda: platform.verifier.failures)
        assert platform.verifier.keys == 0


async def test_a_certificate_that_nobody_vouches_for_is_not_trusted(tmp_path: Path) -> None:
    with jwks_server([OLD], tls=tmp_path / "server.pem") as jwks:
        with pytest.raises(Unfetched, match="CERTIFICATE_VERIFY_FAILED"):
            await UrlSource(jwks.url, 10).fetch()
        assert jwks.requests == []


async def test_keys_are_fetched_over_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pem = tmp_path / "server.pem"
    with jwks_server([OLD], tls=pem) as jwks:
        monkeypatch.setenv(ssl.get_default_verify_paths().openssl_cafile_env, str(pem))
        assert await UrlSource(jwks.url, 10).fetch() == jwks.content


async def test_a_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_bytes(key_set(OLD))
    async with running(jwks_file=str(file)) as platform:
        await until(platform.is_idle)
        file.write_bytes(key_set(NEW))
        await platform.fetched()
        assert platform.accepts(NEW)
        assert not platform.accepts(OLD)
        file.unlink()
        await platform.fetched()
        assert platform.verifier.failures == 1
        assert platform.accepts(NEW)


async def test_a_secret_needs_no_fetch() -> None:
    async with running(secret="s" * 32) as platform:
        await asyncio.sleep(0)
        assert platform.verifier.fetches == 0
