from __future__ import annotations

import pytest

from headrace.domain.errors import (
    DeadlineExceeded,
    EndpointBusy,
    EndpointFailed,
    EndpointTimeout,
    HeadraceError,
    InvalidRequest,
    ModelFailed,
    ModelNotReady,
    UnknownModel,
    Unsupported,
)
from headrace.router.verdicts import Verdict, may_have_run, may_retry, verdict


@pytest.mark.parametrize(
    ("error", "failed", "retry"),
    [
        (EndpointFailed("broke off"), True, True),
        (ModelFailed("crashed"), True, True),
        (EndpointBusy("no room"), None, True),
        (ModelNotReady("loading"), None, True),
        (UnknownModel("not here"), None, True),
        (InvalidRequest("odd"), False, False),
        (Unsupported("sparse"), False, False),
        (DeadlineExceeded("late"), None, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, HeadraceError) else "",
)
def test_each_error_says_whose_fault_it_is_and_whether_to_try_elsewhere(
    error: HeadraceError,
    failed: bool | None,  # noqa: FBT001 - what is expected
    retry: bool,  # noqa: FBT001
) -> None:
    assert verdict(error, seconds=1, usual_s=0.01) == Verdict(failed=failed, retry=retry)
    assert may_retry(error) is retry


@pytest.mark.parametrize(
    ("seconds", "usual_s", "wished", "failed"),
    [
        (1.0, 0.1, True, True),  # ten times as long as usual
        (0.19, 0.1, True, None),  # a client that had no patience
        (0.9, 0.1, True, None),  # its caller may have known that it takes long
        (0.2, 0.1, False, True),
        (0.19, 0.1, False, None),
        (0.04, 0.001, True, None),  # too short for anybody
        (1.0, 0.0, True, None),  # nothing is known of what is usual
        (1.0, 0.0, False, True),  # the time was ours to choose
    ],
)
def test_a_timeout_is_the_endpoints_where_it_had_its_usual_time_twice(
    seconds: float,
    usual_s: float,
    wished: bool,  # noqa: FBT001
    failed: bool | None,  # noqa: FBT001
) -> None:
    judged = verdict(EndpointTimeout("nothing"), seconds=seconds, usual_s=usual_s, wished=wished)
    assert judged == Verdict(failed=failed, retry=True)


def test_a_deadline_that_passed_while_others_were_answered_is_the_callers_own() -> None:
    judged = verdict(
        EndpointTimeout("nothing"), seconds=5.0, usual_s=0.1, wished=True, others_answered=True
    )
    assert judged.failed is None


def test_what_was_refused_or_never_sent_has_not_run() -> None:
    unreached = EndpointFailed("nobody listens")
    unreached.sent = False
    refused = [unreached, EndpointBusy("no room"), UnknownModel("not here"), InvalidRequest("odd")]
    assert [may_have_run(error) for error in refused] == [False] * 4
    ended = [EndpointFailed("500"), EndpointTimeout("nothing"), ModelFailed("it raised")]
    assert [may_have_run(error) for error in ended] == [True] * 3
