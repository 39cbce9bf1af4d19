"""The keys of an issuer as they are known now, kept fresh."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from contextlib import suppress

from headrace.adapters.jwt.keys import KeySet, Published, read_set
from headrace.adapters.jwt.schedule import FetchSchedule
from headrace.adapters.jwt.sources import Source, Unfetched

_logger = logging.getLogger(__name__)


class KeyRing:
    """Keys that are fetched in the background; the last good ones stay when that fails.

    `clock` answers seconds that only grow. Nothing here waits but `run` and `first`.
    """

    def __init__(
        self,
        source: Source,
        *,
        rsa_algorithm: str,
        refresh_s: float,
        clock: Callable[[], float] = time.monotonic,
        randomness: random.Random | None = None,
    ) -> None:
        self.keys: KeySet | None = None  # None until a fetch brought some
        self.fetches = 0
        self.failures = 0
        self._source = source
        self._rsa_algorithm = rsa_algorithm
        self._clock = clock
        self._schedule = FetchSchedule(refresh_s, randomness or random.Random())
        self._due = asyncio.Event()
        self._known = asyncio.Event()
        self._complaints: tuple[str, ...] = ()
        self._failing = False
        self._listeners: list[Callable[[], None]] = []

    def on_change(self, heard: Callable[[], None]) -> None:
        """Call `heard` whenever the keys are not the same as before."""
        self._listeners.append(heard)

    def ask(self) -> None:
        """A token names a key that is not here: it may be new."""
        if self._schedule.ask(self._clock()):
            self._due.set()

    async def first(self, timeout_s: float) -> bool:
        """Wait until keys are known, for which `run` must be running; whether they are."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._known.wait()
        return self.keys is not None

    async def run(self) -> None:
        """Fetch whenever it is due. Never returns."""
        while True:
            await self._fetch()
            while wait_s := self._schedule.wait_s(self._clock()):
                self._due.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._due.wait()

    def take(self, data: bytes) -> None:
        """Use a key set as fetched. Raises ValueError, and all is as before."""
        published = read_set(data, rsa_algorithm=self._rsa_algorithm)
        self._complain(published)
        changed = self.keys is None or published.keys.all != self.keys.all
        self.keys = published.keys
        self._known.set()
        if changed:
            for heard in self._listeners:
                heard()

    async def _fetch(self) -> None:
        self._schedule.begun(self._clock())
        self.fetches += 1
        try:
            self.take(await self._source.fetch())
        except (Unfetched, ValueError) as error:
            self.failures += 1
            self._schedule.failed(self._clock())
            if not self._failing:
                meanwhile = "no token can be verified" if self.keys is None else "those known stay"
                _logger.warning(
                    "no keys of the issuer from %s: %s; %s", self._source.name, error, meanwhile
                )
            self._failing = True
        else:
            self._schedule.succeeded(self._clock())
            if self._failing:
                _logger.warning("%s has keys of the issuer again", self._source.name)
            self._failing = False

    def _complain(self, published: Published) -> None:
        if published.complaints != self._complaints:  # else it has been said
            for complaint in published.complaints:
                _logger.warning("keys of the issuer from %s: %s", self._source.name, complaint)
        self._complaints = published.complaints
