from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from headrace.compose.keys_expiry import expiry

NOW = datetime(2026, 12, 30, 18, 0, 0, tzinfo=UTC)


def test_a_span_is_counted_from_now() -> None:
    assert expiry("30d", NOW) == NOW + timedelta(days=30)
    assert expiry("12h", NOW) == NOW + timedelta(hours=12)


def test_a_date_is_its_beginning_in_utc() -> None:
    assert expiry("2027-01-31", NOW) == datetime(2027, 1, 31, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    ["2027-01-31T12:00:00Z", "2027-01-31T12:00Z", "2027-01-31T13:00:00+01:00"],
)
def test_a_moment_is_taken_with_its_offset(text: str) -> None:
    assert expiry(text, NOW) == datetime(2027, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0d",
        "-1d",
        "30",
        "30 d",
        "1m",
        "999999d",
        "soon",
        "2027",
        "20270131",
        "2027-W04-7",
        "2027-01-31T12:00:00",
        "2027-01-31 12:00:00Z",
    ],
)
def test_what_is_none_of_these_is_told_with_what_they_are(text: str) -> None:
    with pytest.raises(ValueError, match="expected 30d"):
        expiry(text, NOW)


@pytest.mark.parametrize("text", ["2027-02-30", "2027-13-01", "2027-01-31T25:00:00Z"])
def test_a_day_that_no_calendar_has_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be in|out of range"):
        expiry(text, NOW)
