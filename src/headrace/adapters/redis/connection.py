"""One way to Redis, and whether it is open.

A Redis that does not answer costs whoever asks at that moment a timeout, once. From then on it is
gone, and asking fails without waiting; one at a time looks whether it is back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from headrace.domain.errors import InvalidSettings

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")


class Unanswered(Exception):
    """Redis did not answer, refused the command, or is gone and was not asked."""


class Connection:
    """A pool of connections to one Redis. `clock` answers seconds that only grow.

    `instead` says what is done while Redis is gone, for the log. Where it `must_obey`, one that
    refuses a command is as good as gone.

    Raises:
        InvalidSettings: from the constructor, where the URL cannot be read.
    """

    def __init__(
        self,
        *,
        url: str,
        max_connections: int,
        timeout_s: float,
        retry_s: float,
        instead: str,
        must_obey: bool = False,
        clock: Callable[[], float],
    ) -> None:
        self._timeout_s = timeout_s
        self._retry_s = retry_s
        self._instead = instead
        self._must_obey = must_obey
        self._clock = clock
        self._retry_at: float | None = None  # None while Redis answers
        self._looking = False
        self._why = ""
        try:
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=max_connections,
                timeout=None,  # the one deadline below covers the wait for a connection too
                socket_timeout=None,
                socket_connect_timeout=None,
                # a second try would cost a second timeout; others answer sooner
                retry=Retry(NoBackoff(), 0),
                protocol=2,  # answers are plain, and nothing is pushed that nobody listens to
            )
        except ValueError as error:  # its text may hold the password
            raise InvalidSettings("the url of Redis is not a Redis URL") from error
        self.redis: Redis = Redis(connection_pool=pool)
        kwargs = pool.connection_kwargs
        # never the URL: it may hold a password
        self._name = f"Redis at {kwargs.get('path') or kwargs.get('host', 'localhost')}"

    @property
    def gone(self) -> bool:
        """Whether the last that was heard of Redis is that it does not answer."""
        return self._retry_at is not None

    @property
    def look_in_s(self) -> float:
        """Until somebody may look whether Redis is back."""
        return 0.0 if self._retry_at is None else max(self._retry_at - self._clock(), 0.0)

    async def ask(
        self, command: Callable[[], Awaitable[_T]], *, timeout_s: float | None = None
    ) -> _T:
        """What `command` brings within `timeout_s`, or the usual time.

        Raises:
            Unanswered: nothing, or an error.
        """
        look = self._retry_at is not None
        if look and (self._looking or self._clock() < (self._retry_at or 0.0)):
            raise Unanswered(f"{self._name} is gone: {self._why}")
        if look:
            self._looking = True
        try:
            async with asyncio.timeout(self._timeout_s if timeout_s is None else timeout_s):
                answer = await command()
        except ResponseError as error:
            if self._must_obey:
                self._turn_away(f"it refused a command: {error}")
            else:  # it answers, and refuses this: no reason to turn away
                self._back()
            raise Unanswered(f"{self._name} refused a command: {error}") from error
        except TimeoutError as error:
            self._turn_away(f"no answer within {self._timeout_s:g} s")
            raise Unanswered(f"{self._name}: {self._why}") from error
        except (RedisError, OSError) as error:
            self._turn_away(str(error))
            raise Unanswered(f"{self._name}: {self._why}") from error
        finally:
            if look:
                self._looking = False
        self._back()
        return answer

    async def close(self) -> None:
        """Let go of connections."""
        await self.redis.aclose(close_connection_pool=True)

    def _turn_away(self, why: str) -> None:
        if self._retry_at is None:
            _logger.warning("%s is gone: %s; %s instead", self._name, why, self._instead)
        self._why = why
        self._retry_at = self._clock() + self._retry_s

    def _back(self) -> None:
        if self._retry_at is not None:
            _logger.warning("%s answers again", self._name)
            self._retry_at = None
