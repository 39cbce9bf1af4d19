from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final, TypeAlias

import msgspec

_Seconds: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=86_400)]

_MAX_DOUBLINGS: Final = (
    64  # from any base that is more than the longest wait; floats do not overflow
)


class RetrySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How often a request is tried, and how long it waits in between."""

    #: Attempts of one request, the first included; 1: none is retried.
    max_attempts: Annotated[int, msgspec.Meta(ge=1, le=100)] = 3
    #: Retries there may be for each request, counted over all of them.
    budget_ratio: Annotated[float, msgspec.Meta(ge=0, le=100)] = 0.2
    #: Retries in ten seconds that are allowed however few requests there are.
    budget_floor: Annotated[int, msgspec.Meta(ge=0)] = 3
    #: Seconds that the first retry waits at most; the next ones twice as long as the one before.
    base_s: _Seconds = 0.01
    #: Seconds that any of them waits at most.
    max_s: _Seconds = 1.0
    #: Seconds that a backend may ask for with `Retry-After`; where it asks for more, the request
    #: is not retried.
    longest_retry_after_s: _Seconds = 1.0

    def __post_init__(self) -> None:
        if self.max_s < self.base_s:
            raise ValueError(f"max_s must be at least base_s ({self.base_s}), got {self.max_s}")


def backoff_s(
    retry: int,
    settings: RetrySettings,
    chance: Callable[[], float],
    retry_after_s: float | None,
) -> float | None:
    """Seconds to wait before retry number `retry`, from 1 on; None: give up.

    Any time from none to the retry's longest, so that those who failed together do not come back
    together. `chance` answers from 0 to below 1; `retry_after_s` is what the backend asked for.
    """
    doublings = min(retry - 1, _MAX_DOUBLINGS)
    wait_s = chance() * min(settings.base_s * 2.0**doublings, settings.max_s)
    if retry_after_s is None:
        return wait_s
    if not retry_after_s <= settings.longest_retry_after_s:  # NaN is beyond it too
        return None
    # on top of it: everybody was told the same time
    return max(retry_after_s, 0.0) + wait_s
