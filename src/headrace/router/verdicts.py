"""What the outcome of one attempt says about the endpoint, and whether another may be made."""

from __future__ import annotations

from typing import Final

import msgspec

from headrace.domain.errors import (
    DeadlineExceeded,
    EndpointFailed,
    EndpointTimeout,
    HeadraceError,
    ModelFailed,
    UnknownModel,
)

#: A timeout says nothing of an endpoint that usually takes about as long, or that had no time.
_LEAST_S: Final = 0.05
_USUAL: Final = 2.0
#: A caller that gives an endpoint less than this says nothing of it.
_LEAST_WISHED_S: Final = 1.0


class Verdict(msgspec.Struct, frozen=True):
    """`failed` is None where the outcome is no word about the endpoint."""

    failed: bool | None
    retry: bool


_FINE: Final = Verdict(failed=False, retry=False)
_FAILED: Final = Verdict(failed=True, retry=True)
_NO_WORD: Final = Verdict(failed=None, retry=True)
_TOO_LATE: Final = Verdict(failed=None, retry=False)


def verdict(
    error: HeadraceError,
    *,
    seconds: float,
    usual_s: float,
    wished: bool = False,
    others_answered: bool = False,
) -> Verdict:
    """Judge an attempt that took `seconds` and ended in `error`.

    `usual_s` is what answers take there, 0 where there was none; `wished` is whether the time that
    it had was the caller's choice, and `others_answered` whether the endpoint has answered other
    requests meanwhile.

    What an endpoint says of the client's request shows that it is well. A deadline that was too
    short to begin with is the client's, and must open no breaker: a request may take longer than
    most, and its caller ask for it again and again.
    """
    if isinstance(error, (EndpointFailed, ModelFailed)):
        return _FAILED
    if isinstance(error, EndpointTimeout):
        if wished and (others_answered or not usual_s or seconds < _LEAST_WISHED_S):
            return _NO_WORD
        return _FAILED if seconds >= max(_LEAST_S, _USUAL * usual_s) else _NO_WORD
    if isinstance(error, UnknownModel) or error.retryable:  # it has no room, or not the model
        return _NO_WORD
    return _TOO_LATE if isinstance(error, DeadlineExceeded) else _FINE


def may_retry(error: HeadraceError) -> bool:
    """Whether another attempt may succeed."""
    return verdict(error, seconds=0, usual_s=0).retry


def may_have_run(error: HeadraceError) -> bool:
    """Whether an attempt that ended so may have reached a model."""
    if isinstance(error, EndpointFailed):
        return error.sent
    return isinstance(error, (DeadlineExceeded, ModelFailed))
