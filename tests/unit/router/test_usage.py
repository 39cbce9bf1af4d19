from __future__ import annotations

from datetime import UTC, datetime

from headrace.domain.usage import BOUNDS_S, Usage
from headrace.router.usage import UsageRecorder

AT = datetime(2026, 1, 1, tzinfo=UTC)
KEY = ("t", "m", "1")


def recorder() -> UsageRecorder:
    return UsageRecorder(now=lambda: AT)


def test_requests_failures_and_latencies_are_counted_by_version() -> None:
    usage = recorder()
    usage.record(KEY, 0.002, failed=False)
    usage.record(KEY, 0.004, failed=True)
    usage.record(("t", "m", "2"), 0.1, failed=False)
    found = usage.of("t", "m")
    assert set(found) == {"1", "2"}
    assert (found["1"].requests, found["1"].errors, found["1"].last_used_at) == (2, 1, AT)
    assert found["1"].latency_s == 0.006
    assert sum(found["1"].buckets) == 2
    assert usage.of("t", "other") == usage.of("u", "m") == {}


def test_what_is_taken_is_counted_no_more() -> None:
    usage = recorder()
    usage.record(KEY, 0.1, failed=False)
    assert [(key, each.requests) for key, each in usage.take()] == [(KEY, 1)]
    assert usage.take() == []
    assert usage.of("t", "m") == {}


def test_what_could_not_be_kept_is_counted_on() -> None:
    usage = recorder()
    usage.record(KEY, 0.1, failed=False)
    taken = usage.take()
    usage.record(KEY, 0.1, failed=True)
    usage.put_back(taken)
    found = usage.of("t", "m")["1"]
    assert (found.requests, found.errors, sum(found.buckets)) == (2, 1, 2)


def test_a_latency_above_every_bound_is_counted() -> None:
    usage = recorder()
    usage.record(KEY, 2 * BOUNDS_S[-1], failed=False)
    assert usage.of("t", "m")["1"].buckets[-1] == 1


def test_quantiles_lie_in_the_bucket_of_the_request() -> None:
    usage = recorder()
    for milliseconds in range(1, 101):
        usage.record(KEY, milliseconds / 1000, failed=False)
    found = usage.of("t", "m")["1"]
    half, most = found.quantile_s(0.5), found.quantile_s(0.99)
    assert half is not None
    assert most is not None
    assert 0.04 <= half <= 0.063
    assert 0.063 <= most <= 0.1
    assert Usage().quantile_s(0.5) is None
