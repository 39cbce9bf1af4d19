from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeAlias

import msgspec

_Seconds: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
_Verdicts: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]


class HealthCheckSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How endpoints are asked whether they are ready."""

    #: Whether they are asked at all; where not, all are taken to be.
    enabled: bool = True
    #: Seconds between two checks of an address.
    interval_s: _Seconds = 5.0
    #: Share by which that varies at random, so that not all are asked together.
    jitter: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.2
    #: Seconds that an answer may take.
    timeout_s: _Seconds = 1.0
    #: Checks in a row that fail before no more requests are sent there.
    unhealthy_after: _Verdicts = 3
    #: Checks in a row that succeed before requests are sent there again.
    healthy_after: _Verdicts = 1
    #: Seconds between two readings of what servers count of their models, of those that have
    #: Triton's statistics extension; 0: it is not read.
    statistics_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 15.0


class HealthChecks:
    """What active checks say of one address. It is healthy until they say otherwise.

    The very first verdict counts at once: nothing is known that it could contradict. `chance`
    answers from 0 to below 1.
    """

    __slots__ = ("_chance", "_contrary", "_settings", "_told", "healthy")

    def __init__(self, settings: HealthCheckSettings, chance: Callable[[], float]) -> None:
        self._settings = settings
        self._chance = chance
        self._told = False
        self._contrary = 0  # verdicts in a row against what is believed
        self.healthy = True

    def said(self, ready: bool) -> bool:  # noqa: FBT001 - the verdict is all there is to say
        """Take in a verdict; answers whether `healthy` has changed by it."""
        first, self._told = not self._told, True
        if ready == self.healthy:
            self._contrary = 0
            return False
        self._contrary += 1
        after = self._settings.healthy_after if ready else self._settings.unhealthy_after
        if self._contrary < after and not first:
            return False
        self._contrary = 0
        self.healthy = ready
        return True

    def next_in_s(self) -> float:
        """Seconds from one check to the next."""
        spread = self._settings.jitter * (2 * self._chance() - 1)
        return self._settings.interval_s * (1 + spread)
