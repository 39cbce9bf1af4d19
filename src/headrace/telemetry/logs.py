"""Logging on the standard library: one handler, one line for each record, as JSON or for people.

Nothing that a record carries can begin a line of its own or reach a terminal as a control
character, whoever sent it.
"""

from __future__ import annotations

import functools
import logging
import re
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Annotated, Any, Final, Literal, TextIO

import msgspec


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is logged, and in which form."""

    #: The least severe records that are written. The access log does not heed it.
    level: Literal["debug", "info", "warning", "error"] = "info"
    #: `json` for machines, `pretty` for people; `auto` is pretty where stderr is a terminal.
    format: Literal["auto", "json", "pretty"] = "auto"
    #: Requests that get a line: all, a bounded number, those with status 400 and above, or none.
    access: Literal["all", "sampled", "errors", "off"] = "sampled"
    #: Successes that `sampled` writes in a second at most; of errors it writes ten times as many.
    access_per_s: Annotated[int, msgspec.Meta(ge=1)] = 100


class LogContext(msgspec.Struct, frozen=True, gc=False):
    """What a log line says about the request that it belongs to."""

    request_id: str = ""
    trace_id: str = ""


log_context: Final[ContextVar[LogContext | None]] = ContextVar("log_context", default=None)
"""Optional, and read by the formatters only: everything else gets a `Call`."""

# C0 and C1 controls, DEL, line and paragraph separators, marks that turn the direction of text,
# and lone surrogates, which no encoding can write
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_SHORT_ESCAPES: Final = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
_BARE: Final = re.compile(r"[^\s\"'=]+")
_JSON: Final = msgspec.json.Encoder(enc_hook=str)

# `taskName` is there from Python 3.12 on, `message` and `asctime` once a formatter has run
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_OWN: Final = frozenset({"ts", "level", "logger", "message", "exc", "stack"})

_COLOURS: Final = {
    "debug": "\x1b[2m",
    "warning": "\x1b[33m",
    "error": "\x1b[31m",
    "critical": "\x1b[31m",
}
_COLOURS_OFF: Final = "\x1b[0m"


def configure(settings: LogSettings, stream: TextIO) -> None:
    """Let the root logger write to `stream` and nowhere else; Python's warnings go there too."""
    handler = logging.StreamHandler(stream)
    if is_pretty(settings, stream):
        handler.setFormatter(PrettyFormatter(coloured=stream.isatty()))
    else:
        handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    for earlier in root.handlers[:]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(settings.level.upper())
    logging.captureWarnings(capture=True)


def is_pretty(settings: LogSettings, stream: TextIO) -> bool:
    """Whether lines are written for people."""
    return settings.format == "pretty" or (settings.format == "auto" and stream.isatty())


def one_line(text: str) -> str:
    r"""Escape what could end the line or steer a terminal: a newline becomes the two letters \n."""
    return _UNSAFE.sub(_escaped, text)


def json_line(encoded: bytes) -> str:
    """Make encoded JSON one line for every reader, by escapes that a JSON parser undoes.

    JSON escapes C0 controls by itself. C1, DEL and the separators that also end lines for
    `str.splitlines` it lets through, and all of them occur within strings only.
    """
    text = encoded.decode()
    if encoded.isascii() and "\x7f" not in text:
        return text
    return _UNSAFE.sub(_escaped, text)


def rfc3339(epoch_s: float) -> str:
    """Write a time in UTC with milliseconds: 2024-11-22T20:54:13.123Z."""
    milliseconds = int(epoch_s * 1000)
    return f"{_whole_second(milliseconds // 1000)}.{milliseconds % 1000:03d}Z"


def pairs(fields: Mapping[str, object]) -> str:
    """Write fields as ` key=value`, quoted where a value could be taken for more than one."""
    written = []
    for key, value in fields.items():
        text = one_line(str(value))
        if not _BARE.fullmatch(text):
            text = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
        written.append(f" {one_line(key)}={text}")
    return "".join(written)


class JsonFormatter(logging.Formatter):
    """One JSON object a record: ts, level, logger, message, the `extra` fields, exc, stack."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one record as one line."""
        fields: dict[str, object] = {
            "ts": rfc3339(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        for key, value in _extra(record).items():
            # a record's own fields cannot be replaced by what somebody attached to it
            fields[f"{key}_" if key in _OWN else key] = value
        if record.exc_info:
            fields["exc"] = _traceback(self, record.exc_info)
        if record.stack_info:
            fields["stack"] = record.stack_info
        try:
            return json_line(_JSON.encode(fields))
        except (TypeError, ValueError, RecursionError, msgspec.MsgspecError):
            # a lone surrogate, a key that JSON has no form for, an object that holds itself
            return json_line(_JSON.encode({one_line(k): _plain(v) for k, v in fields.items()}))


class PrettyFormatter(logging.Formatter):
    """A line for people; a traceback follows on indented lines."""

    def __init__(self, *, coloured: bool) -> None:
        super().__init__()
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        """Write one record as one line, and as many more as its traceback has."""
        level = record.levelname.lower()
        message = one_line(_message(record)) + pairs(_extra(record))
        text = pretty_line(record.created, level, record.name, message, coloured=self._coloured)
        if record.exc_info:
            text += _indented(_traceback(self, record.exc_info))
        if record.stack_info:
            text += _indented(record.stack_info)
        return text


def pretty_line(epoch_s: float, level: str, logger: str, message: str, *, coloured: bool) -> str:
    """Put a line for people together; `message` is safe already."""
    shown = f"{level:<7}"
    if coloured and level in _COLOURS:
        shown = _COLOURS[level] + shown + _COLOURS_OFF
    return f"{rfc3339(epoch_s)[11:]} {shown} {one_line(logger)}: {message}"


def _traceback(formatter: logging.Formatter, exc_info: Any) -> str:
    """The traceback, or what can be said where the exception's own class prevents it."""
    try:
        return formatter.formatException(exc_info)
    except Exception:  # noqa: BLE001 - raised by classes of models
        return f"{exc_info[0].__name__}: its traceback cannot be written"


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage().rstrip("\n")
    except (TypeError, ValueError, KeyError):  # wrong arguments must not cost the line
        return f"{record.msg} {record.args!r}"


def _extra(record: logging.LogRecord) -> dict[str, object]:
    fields = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    context = log_context.get()
    if context is not None:
        for key, value in (("request_id", context.request_id), ("trace_id", context.trace_id)):
            if value:
                fields.setdefault(key, value)
    return fields


def _plain(value: object) -> str:
    return one_line(value if isinstance(value, str) else repr(value))


def _indented(text: str) -> str:
    return "".join("\n    " + one_line(line) for line in text.split("\n"))


def _escaped(match: re.Match[str]) -> str:
    return _SHORT_ESCAPES.get(match[0]) or f"\\u{ord(match[0]):04x}"


@functools.lru_cache(maxsize=8)
def _whole_second(epoch_s: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(epoch_s))
