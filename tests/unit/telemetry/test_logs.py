from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.telemetry.logs import (
    JsonFormatter,
    LogContext,
    LogSettings,
    PrettyFormatter,
    configure,
    log_context,
    one_line,
    rfc3339,
)

# Ways to end a line, to steer a terminal, or to turn the text around.
HOSTILE = (
    "a\nb\rc\r\nd\x0be\x0cf\x1b[31mg\x00h\x7fi\x85j\x9bk\u2028l\u2029m"
    "\u202en\u2066o\u200ep\ufeffq\tr"
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield logger
    logging.captureWarnings(capture=False)
    logger.handlers[:] = handlers
    logger.setLevel(level)


def record(
    message: str = "ready",
    *args: object,
    exc: BaseException | None = None,
    extra: dict[str, object] | None = None,
) -> logging.LogRecord:
    made = logging.getLogger("headrace.test").makeRecord(
        "headrace.test",
        logging.WARNING,
        __file__,
        1,
        message,
        args,
        (type(exc), exc, exc.__traceback__) if exc else None,
        extra=extra,
    )
    made.created = 1732308900.1234
    return made


def fail(message: str) -> None:
    raise RuntimeError(message)


def failed(message: str) -> BaseException:
    with pytest.raises(RuntimeError) as raised:
        fail(message)
    return raised.value


def as_json(made: logging.LogRecord) -> dict[str, Any]:
    line = JsonFormatter().format(made)
    assert len(line.splitlines()) == 1
    decoded = json.loads(line)
    assert isinstance(decoded, dict)
    return decoded


def as_pretty(made: logging.LogRecord) -> str:
    return PrettyFormatter(coloured=False).format(made)


def assert_harmless(line: str) -> None:
    assert len(line.splitlines()) == 1
    assert line == one_line(line)
    assert all(character.isprintable() for character in line)


def test_a_json_line_has_its_fields_in_order() -> None:
    line = JsonFormatter().format(
        record("loaded %s", "bert", extra={"model": "bert", "seconds": 1.5})
    )

    assert line == (
        '{"ts":"2024-11-22T20:55:00.123Z","level":"warning","logger":"headrace.test",'
        '"message":"loaded bert","model":"bert","seconds":1.5}'
    )


def test_an_exception_is_a_string_field() -> None:
    exc = as_json(record(exc=failed("no such file")))["exc"]

    assert exc.startswith("Traceback (most recent call last):\n")
    assert exc.endswith("RuntimeError: no such file")


def test_a_stack_is_a_string_field() -> None:
    made = record()
    made.stack_info = "Stack (most recent call last):\n  here"

    assert as_json(made)["stack"] == made.stack_info
    assert as_pretty(made).splitlines()[1:] == [
        "    Stack (most recent call last):",
        "      here",
    ]


def test_hostile_text_stays_on_one_json_line_and_is_read_back_as_it_was() -> None:
    made = record(HOSTILE, extra={"field": HOSTILE, "k\ney": 1})

    assert_harmless(JsonFormatter().format(made))
    decoded = as_json(made)
    assert decoded["message"] == decoded["field"] == HOSTILE
    assert decoded["k\ney"] == 1
    assert_harmless(JsonFormatter().format(record("only \x7f of ASCII")))


def test_hostile_text_stays_on_one_pretty_line() -> None:
    made = record("user %s", HOSTILE, extra={"field": HOSTILE, "k\ney": 1})
    made.name = f"headrace.{HOSTILE}"

    assert_harmless(as_pretty(made))


def test_a_forged_field_is_quoted_in_a_pretty_line() -> None:
    line = as_pretty(
        record("hi", extra={"user": 'x principal=admin "y" \\', "plain": "bert", "empty": ""})
    )

    assert line.endswith(r'''hi user="x principal=admin \"y\" \\" plain=bert empty=""''')


def test_hostile_text_in_an_exception_stays_on_its_indented_line() -> None:
    made = record(exc=failed("no \x1b[31mfile\r2024 forged"))

    first, *rest = as_pretty(made).split("\n")

    assert first.endswith("headrace.test: ready")
    assert all(line.startswith("    ") for line in rest)
    assert rest[-1] == r"    RuntimeError: no \u001b[31mfile\r2024 forged"
    for line in rest:
        assert_harmless(line)


def test_readable_text_of_any_language_is_left_as_it_is() -> None:
    assert as_json(record("größer → 模型"))["message"] == "größer → 模型"
    assert "größer → 模型" in JsonFormatter().format(record("größer → 模型"))
    assert as_pretty(record("größer → 模型")).endswith("größer → 模型")


def test_extra_fields_cannot_replace_the_own_ones() -> None:
    decoded = as_json(
        record("real", extra=dict.fromkeys(("ts", "level", "logger", "exc"), "forged"))
    )

    assert decoded["ts"] == "2024-11-22T20:55:00.123Z"
    assert (decoded["level"], decoded["logger"]) == ("warning", "headrace.test")
    assert decoded["level_"] == decoded["exc_"] == "forged"
    assert "exc" not in decoded


class Itself(list[object]):
    """A list that holds itself."""

    def __init__(self) -> None:
        super().__init__()
        self.append(self)


@pytest.mark.parametrize(
    ("value", "logged"),
    [
        (Path("/models/bert"), "/models/bert"),
        (ValueError("wrong"), "wrong"),
        (float("nan"), None),
        ({"a": [1, None]}, {"a": [1, None]}),
        ("lone \ud800 surrogate", r"lone \ud800 surrogate"),
        ({(1, 2): 3}, {"(1, 2)": 3}),
        ({1, 2}, [1, 2]),
        (object, "<class 'object'>"),
        (1 << 70, 1 << 70),
        (Itself(), "[[...]]"),
    ],
    ids=[
        "path",
        "exception",
        "nan",
        "nested",
        "surrogate",
        "key",
        "set",
        "type",
        "integer",
        "cycle",
    ],
)
def test_no_value_of_an_extra_field_costs_the_line(value: object, logged: object) -> None:
    decoded = as_json(record("kept", extra={"value": value}))

    assert (decoded["message"], decoded["value"]) == ("kept", logged)
    assert_harmless(as_pretty(record("kept", extra={"value": value})))


@pytest.mark.parametrize("formatter", [JsonFormatter(), PrettyFormatter(coloured=False)])
def test_arguments_that_do_not_fit_the_message_do_not_cost_the_line(
    formatter: logging.Formatter,
) -> None:
    assert "%d of %d" in formatter.format(record("%d of %d", "x"))


def test_the_context_of_the_request_is_added_where_there_is_one() -> None:
    token = log_context.set(LogContext(request_id="r-1", trace_id="0af7"))
    try:
        decoded = as_json(record("hi"))
        own = as_json(record("hi", extra={"request_id": "r-2"}))
    finally:
        log_context.reset(token)

    assert (decoded["request_id"], decoded["trace_id"]) == ("r-1", "0af7")
    assert own["request_id"] == "r-2"
    assert "request_id" not in as_json(record("hi"))


def test_only_a_terminal_gets_colours(root: logging.Logger) -> None:
    for stream, coloured in ((Terminal(), True), (io.StringIO(), False)):
        configure(LogSettings(format="pretty"), stream)
        root.warning("careful")

        assert ("\x1b[33m" in stream.getvalue()) is coloured
        assert "careful" in stream.getvalue()


@pytest.mark.parametrize(
    ("settings", "stream", "pretty"),
    [
        (LogSettings(), Terminal(), True),
        (LogSettings(), io.StringIO(), False),
        (LogSettings(format="json"), Terminal(), False),
        (LogSettings(format="pretty"), io.StringIO(), True),
    ],
    ids=["auto-terminal", "auto-file", "json", "pretty"],
)
def test_the_format_follows_the_settings_and_the_stream(
    root: logging.Logger,
    settings: LogSettings,
    stream: io.StringIO,
    pretty: bool,  # noqa: FBT001
) -> None:
    configure(settings, stream)
    root.info("hello")

    assert stream.getvalue().startswith("{") is not pretty


def test_there_is_one_handler_however_often_logging_is_configured(root: logging.Logger) -> None:
    first, second = io.StringIO(), io.StringIO()
    configure(LogSettings(), first)
    configure(LogSettings(), second)

    logging.getLogger("headrace.some.where").info("once")

    assert len(root.handlers) == 1
    assert first.getvalue() == ""
    assert len(second.getvalue().splitlines()) == 1


def test_records_below_the_level_are_not_written(root: logging.Logger) -> None:
    stream = io.StringIO()
    configure(LogSettings(level="warning"), stream)

    root.info("no")
    root.warning("yes")

    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["yes"]


@pytest.mark.usefixtures("root")
def test_warnings_become_log_lines() -> None:
    stream = io.StringIO()
    configure(LogSettings(), stream)

    warnings.simplefilter("always")  # pytest puts the filters back after every test
    warnings.warn("old model format", UserWarning, stacklevel=1)

    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["logger"] == "py.warnings"
    assert "old model format" in json.loads(line)["message"]


@pytest.mark.usefixtures("root")
def test_an_exception_in_flight_is_logged_on_one_line() -> None:
    stream = io.StringIO()
    configure(LogSettings(), stream)

    logging.getLogger("headrace.test").error("failed", exc_info=failed("no such file"))

    (line,) = stream.getvalue().splitlines()
    assert "RuntimeError: no such file" in json.loads(line)["exc"]
    assert json.loads(line)["level"] == "error"


@pytest.mark.parametrize(
    ("epoch_s", "written"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1732308900.9999, "2024-11-22T20:55:00.999Z"),
        (1732308901, "2024-11-22T20:55:01.000Z"),
    ],
)
def test_times_are_written_in_utc_with_milliseconds(epoch_s: float, written: str) -> None:
    assert rfc3339(epoch_s) == written
    assert int(datetime.fromisoformat(written).timestamp()) == int(epoch_s)


@pytest.mark.parametrize(
    "given",
    [{"level": "loud"}, {"format": "xml"}, {"access": "some"}, {"access_per_s": 0}, {"x": 1}],
)
def test_settings_that_mean_nothing_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(given, LogSettings)


def test_the_defaults_are_valid_settings() -> None:
    assert msgspec.convert(msgspec.to_builtins(LogSettings()), LogSettings) == LogSettings()
