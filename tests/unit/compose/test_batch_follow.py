from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from headrace.compose.batch_client import BatchClient
from headrace.compose.batch_follow import Patience, follow
from headrace.compose.batch_views import Batch
from headrace.compose.platform_client import Read, Refused, Unreachable

GONE = Unreachable("cannot reach it; is it running?")
BUSY = Refused(503, ["too many batches are followed"])


class Time:
    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Platform(BatchClient):
    """Answers as it was told: a state, or an error; `polls` and `streams` one after the other."""

    def __init__(self, *, streams: list[list[Any]], polls: list[Any]) -> None:
        super().__init__("http://127.0.0.1:1")
        self._streams = streams
        self._polls = polls

    def events(self, id_: str) -> Iterator[Read[Batch]]:
        for each in self._streams.pop(0) if self._streams else [BUSY]:
            yield _answer(each, id_)

    def batch(self, id_: str, *, tenant: str = "") -> Read[Batch]:
        assert tenant == ""
        return _answer(self._polls.pop(0), id_)


def _answer(each: Any, id_: str) -> Read[Batch]:
    if isinstance(each, Exception):
        raise each
    batch = Batch(
        id=id_,
        status=each,
        endpoint="/v2/models/m/infer",
        completion_window="24h",
        created_at=1,
        input_file_id="file-1",
    )
    return Read(batch, {})


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def told() -> list[str]:
    return []


def patience(time: Time, told: list[str], *, limit_s: float = 60.0) -> Patience:
    return Patience(tell=told.append, limit_s=limit_s, clock=time.clock, sleep=time.sleep)


def followed(platform: Platform, patience: Patience) -> list[str]:
    return [each.value.status for each in follow(platform, "b", patience)]


def test_a_stream_is_followed_to_the_end_of_the_batch(time: Time, told: list[str]) -> None:
    platform = Platform(streams=[["validating", "in_progress", "completed"]], polls=[])
    assert followed(platform, patience(time, told)) == ["validating", "in_progress", "completed"]
    assert (time.slept, told) == ([], [])


def test_where_nothing_streams_it_is_asked_from_time_to_time(time: Time, told: list[str]) -> None:
    platform = Platform(streams=[], polls=["validating", "in_progress", "expired"])
    assert followed(platform, patience(time, told)) == ["validating", "in_progress", "expired"]
    assert time.slept == [1.0, 1.0]
    assert told == []


def test_a_stream_that_ends_before_the_batch_is_opened_again(time: Time, told: list[str]) -> None:
    platform = Platform(streams=[["in_progress"], ["completed"]], polls=["in_progress"])
    assert followed(platform, patience(time, told))[-1] == "completed"


def test_a_platform_that_is_started_again_is_waited_for(time: Time, told: list[str]) -> None:
    platform = Platform(
        streams=[["in_progress", GONE], [GONE], [GONE], ["completed"]],
        polls=[GONE, GONE, Refused(502, ["no"])],
    )
    assert followed(platform, patience(time, told)) == ["in_progress", "completed"]
    assert told == ["cannot reach it; trying again"]
    assert time.slept == [0.25, 0.5, 1.0]


def test_a_platform_that_stays_away_is_given_up(time: Time, told: list[str]) -> None:
    platform = Platform(streams=[], polls=[GONE] * 100)
    with pytest.raises(Unreachable):
        followed(platform, patience(time, told, limit_s=60.0))
    assert 60.0 <= time.now <= 70.0
    assert max(time.slept) == 5.0


def test_the_time_without_answers_begins_anew_with_each_answer(time: Time, told: list[str]) -> None:
    polls: list[Any] = [GONE, GONE, "in_progress"] * 20
    platform = Platform(streams=[], polls=[*polls, "completed"])
    followed(platform, patience(time, told, limit_s=5.0))
    assert len(told) == 20


def test_a_batch_that_is_not_there_is_not_waited_for(time: Time, told: list[str]) -> None:
    absent = Refused(404, ["there is no batch 'b'"])
    with pytest.raises(Refused, match="there is no batch"):
        followed(Platform(streams=[[absent]], polls=[absent]), patience(time, told))
    assert (time.slept, told) == ([], [])
