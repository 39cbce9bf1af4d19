from __future__ import annotations

import io
import json
from typing import Any

import msgspec
import pytest

from headrace.telemetry.access_log import Access, AccessLog
from headrace.telemetry.logs import LogSettings


class Clock:
    def __init__(self) -> None:
        self.now = 1732308900.1234

    def __call__(self) -> float:
        return self.now


class Broken(io.StringIO):
    def write(self, text: str, /) -> int:
        del text
        raise OSError(28, "No space left on device")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def access(status: int = 200, **texts: str) -> Access:
    entry = Access(
        ended_s=1732308900.1234,
        duration_s=0.0012345,
        request_id="r-1",
        method="POST",
        route="/v2/models/{model}/infer",
        status=status,
        bytes_in=1024,
        bytes_out=512,
    )
    return msgspec.structs.replace(entry, **texts)


def made(stream: io.StringIO, clock: Clock, mode: str = "sampled", per_s: int = 3) -> AccessLog:
    settings = msgspec.convert(
        {"access": mode, "access_per_s": per_s, "format": "json"}, LogSettings
    )
    return AccessLog(settings, stream=stream, clock=clock, max_buffered=100)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_has_the_fields_of_the_request(stream: io.StringIO, clock: Clock) -> None:
    log = made(stream, clock)
    log.add(
        access(
            503,
            code="queue_full",
            model="bert",
            version="2",
            principal="alice",
            client="10.0.0.1",
            trace_id="0af7651916cd43dd8448eb211c80319c",
        )
    )
    log.flush()

    assert stream.getvalue() == (
        '{"ts":"2024-11-22T20:55:00.123Z","level":"error","logger":"headrace.access",'
        '"message":"request","duration_ms":1.234,"request_id":"r-1","method":"POST",'
        '"route":"/v2/models/{model}/infer","status":503,"bytes_in":1024,"bytes_out":512,'
        '"code":"queue_full","model":"bert","version":"2","principal":"alice",'
        '"client":"10.0.0.1","trace_id":"0af7651916cd43dd8448eb211c80319c"}\n'
    )


@pytest.mark.parametrize(("status", "level"), [(200, "info"), (404, "info"), (500, "error")])
def test_failures_of_the_platform_are_errors_and_those_of_clients_are_not(
    stream: io.StringIO, clock: Clock, status: int, level: str
) -> None:
    log = made(stream, clock)
    log.add(access(status))
    log.flush()

    assert lines(stream)[0]["level"] == level


def test_nothing_is_written_before_the_flush_and_nothing_twice(
    stream: io.StringIO, clock: Clock
) -> None:
    log = made(stream, clock)
    log.add(access())
    assert stream.getvalue() == ""

    log.flush()
    log.flush()

    assert len(lines(stream)) == 1


def test_lines_are_written_in_one_piece_in_the_order_of_requests(clock: Clock) -> None:
    written: list[str] = []

    class Stream(io.StringIO):
        def write(self, text: str, /) -> int:
            written.append(text)
            return len(text)

    log = made(Stream(), clock, "all")
    for number in range(20):
        log.add(access(request_id=f"r-{number}"))
    log.flush()

    assert len(written) == 1
    assert [json.loads(line)["request_id"] for line in written[0].splitlines()] == [
        f"r-{number}" for number in range(20)
    ]


def test_of_a_second_so_many_successes_are_written_and_the_rest_is_reported(
    stream: io.StringIO, clock: Clock
) -> None:
    log = made(stream, clock, per_s=3)
    for number in range(10):
        log.add(access(request_id=f"r-{number}"))
        log.flush()
        clock.now += 0.01
    assert [line["request_id"] for line in lines(stream)] == ["r-0", "r-1", "r-2"]

    clock.now += 1
    log.flush()

    summary = lines(stream)[-1]
    assert summary == {
        "ts": "2024-11-22T20:55:01.223Z",
        "level": "info",
        "logger": "headrace.access",
        "message": "requests were left out of this log",
        "suppressed": 7,
        "suppressed_errors": 0,
    }
    assert log.suppressed == 7


def test_a_new_second_allows_anew_and_reports_only_its_own(
    stream: io.StringIO, clock: Clock
) -> None:
    log = made(stream, clock, per_s=1)
    for _ in range(3):
        for _ in range(3):
            log.add(access())
        clock.now += 1
        log.flush()
    clock.now += 1
    log.flush()

    assert [line.get("suppressed") for line in lines(stream)] == [None, 2, None, 2, None, 2]
    assert log.suppressed == 6


def test_successes_do_not_use_up_what_errors_are_granted(stream: io.StringIO, clock: Clock) -> None:
    log = made(stream, clock, per_s=2)
    for _ in range(30):
        log.add(access(200))
        log.add(access(503))
    log.close()

    *written, summary = lines(stream)
    assert [line["status"] for line in written].count(200) == 2
    assert [line["status"] for line in written].count(503) == 20
    assert (summary["suppressed"], summary["suppressed_errors"]) == (38, 10)


def test_a_clock_that_is_set_back_does_not_silence_the_log(
    stream: io.StringIO, clock: Clock
) -> None:
    log = made(stream, clock, per_s=1)
    log.add(access())
    clock.now -= 3600
    log.flush()

    log.add(access())
    log.flush()

    assert len(lines(stream)) == 2


@pytest.mark.parametrize(
    ("mode", "written"),
    [
        ("all", [200, 404, 503] * 20),
        ("errors", [404, 503] * 20),
        ("off", []),
    ],
)
def test_the_other_modes_write_all_or_errors_or_nothing(
    stream: io.StringIO, clock: Clock, mode: str, written: list[int]
) -> None:
    log = made(stream, clock, mode, per_s=1)
    for _ in range(20):
        for status in (200, 404, 503):
            log.add(access(status))
    log.close()

    assert [line["status"] for line in lines(stream)] == written


@pytest.mark.parametrize("mode", ["all", "sampled", "errors", "off"])
@pytest.mark.parametrize("status", [200, 404])
def test_what_is_wanted_is_what_would_be_taken(clock: Clock, mode: str, status: int) -> None:
    asked, told = io.StringIO(), io.StringIO()
    asking, telling = made(asked, clock, mode, per_s=1), made(told, clock, mode, per_s=1)
    for _ in range(15):
        if asking.wants(status):
            asking.add(access(status))
        telling.add(access(status))
    asking.close()
    telling.close()

    assert asked.getvalue() == told.getvalue()
    assert asking.suppressed == telling.suppressed


def test_over_the_buffers_bound_entries_are_dropped_and_counted(
    stream: io.StringIO, clock: Clock
) -> None:
    log = made(stream, clock, "all")
    for _ in range(130):
        log.add(access())
    clock.now += 1
    log.flush()

    *written, summary = lines(stream)
    assert len(written) == 100
    assert (summary["dropped"], summary["level"]) == (30, "warning")
    assert "suppressed" not in summary
    assert log.dropped == 30

    log.add(access())
    log.flush()
    assert "request_id" in lines(stream)[-1]


def test_a_stream_that_fails_costs_the_lines_and_nothing_else(clock: Clock) -> None:
    log = made(Broken(), clock, "all")
    log.add(access())
    log.add(access())

    log.flush()

    assert log.dropped == 2


def test_a_closed_stream_costs_the_lines_and_nothing_else(
    stream: io.StringIO, clock: Clock
) -> None:
    log = made(stream, clock, "all")
    log.add(access())
    stream.close()

    log.close()

    assert log.dropped == 1


STRINGS = ["request_id", "method", "route", "code", "model", "version", "principal", "client"]


@pytest.mark.parametrize("field", STRINGS)
def test_every_string_is_cut_to_256_characters(
    stream: io.StringIO, clock: Clock, field: str
) -> None:
    log = made(stream, clock)
    for length in (256, 257, 10_000):
        log.add(access(200, **{field: "x" * length}))
    log.flush()

    assert [line[field] for line in lines(stream)] == ["x" * 256] * 3


@pytest.mark.parametrize("form", ["json", "pretty"])
@pytest.mark.parametrize("field", STRINGS)
def test_hostile_text_stays_on_one_line(
    stream: io.StringIO, clock: Clock, form: str, field: str
) -> None:
    settings = msgspec.convert({"format": form}, LogSettings)
    log = AccessLog(settings, stream=stream, clock=clock)
    log.add(access(200, **{field: 'a"\n{"ts":\r\x1b[2J\x85\u2028\u202e\x7f\ud800 status=200'}))
    log.flush()

    (line,) = stream.getvalue().splitlines()
    assert all(character.isprintable() for character in line)
    if form == "json":
        assert json.loads(line)[field].startswith('a"\n{"ts":')


def test_a_pretty_line_is_for_people(stream: io.StringIO, clock: Clock) -> None:
    settings = LogSettings(format="pretty", access_per_s=1)
    log = AccessLog(settings, stream=stream, clock=clock)
    log.add(access(model="bert" + "x" * 1000))
    log.add(access())
    log.close()

    request, summary = stream.getvalue().splitlines()
    assert request == (
        "20:55:00.123Z info    headrace.access: POST /v2/models/{model}/infer 200 1.2 ms "
        "request_id=r-1 bytes_in=1024 bytes_out=512 model=bert" + "x" * 252
    )
    assert summary == (
        "20:55:00.123Z info    headrace.access: requests were left out of this log "
        "suppressed=1 suppressed_errors=0"
    )


def test_a_quiet_log_writes_nothing(stream: io.StringIO, clock: Clock) -> None:
    log = made(stream, clock)
    for _ in range(10):
        clock.now += 1
        log.flush()
    log.close()

    assert stream.getvalue() == ""
