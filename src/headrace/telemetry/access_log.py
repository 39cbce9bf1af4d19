"""The access log: a line for each request, kept cheap by encoding lines in batches.

The hot path appends to a list. The owner calls `flush` every 200 ms and `close` at the end, on
the thread that adds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TextIO

import msgspec

from headrace.telemetry.logs import (
    LogSettings,
    is_pretty,
    json_line,
    one_line,
    pairs,
    pretty_line,
    rfc3339,
)

LOGGER: Final = "headrace.access"

_CUT_CHARS: Final = 256
_ERROR: Final = 400
_FAILURE: Final = 500
_UNLIMITED: Final = 1 << 62
_ERRORS_PER_SUCCESS: Final = 10
_WINDOW_S: Final = 1.0

_encode: Final = msgspec.json.Encoder().encode


class Access(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One answered request. Fields that are "" are left out of its line."""

    ended_s: float  # since the epoch
    duration_s: float  # first byte received to last byte written
    request_id: str
    method: str  # of HTTP, or "GRPC"
    route: str  # the route's template, not the path
    status: int  # of HTTP; that which the gRPC status maps to
    bytes_in: int
    bytes_out: int
    code: str = ""  # the error's code; "" is a success
    model: str = ""
    version: str = ""
    principal: str = ""
    caller: str = ""  # the class of the principal
    client: str = ""  # its address
    trace_id: str = ""


class AccessLog:
    """Buffers entries, bounds how many there are, and writes them as lines in batches.

    `clock` is seconds since the epoch. `suppressed` and `dropped` count since the start: requests
    that the mode or its rate left out, and those lost to a full buffer or a stream that failed.
    """

    def __init__(
        self,
        settings: LogSettings,
        *,
        stream: TextIO,
        clock: Callable[[], float],
        max_buffered: int = 50_000,
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._pretty = is_pretty(settings, stream)
        self._coloured = stream.isatty()
        self._max_buffered = max_buffered
        self._sampled = settings.access == "sampled"
        self._quota = {  # successes and errors that may be written in a window
            "all": (_UNLIMITED, _UNLIMITED),
            "sampled": (settings.access_per_s, settings.access_per_s * _ERRORS_PER_SUCCESS),
            "errors": (0, _UNLIMITED),
            "off": (0, 0),
        }[settings.access]
        self._successes_left, self._errors_left = self._quota
        self._entries: list[Access] = []
        self._window_began = clock()
        self._suppressed_errors = 0
        self._reported = (0, 0, 0)
        self.suppressed = 0
        self.dropped = 0

    def add(self, entry: Access) -> None:
        """Take one entry for the next flush, unless the mode or the rate leaves it out."""
        if entry.status < _ERROR:
            if self._successes_left <= 0:
                self.suppressed += 1
                return
            self._successes_left -= 1
        else:
            if self._errors_left <= 0:
                self.suppressed += 1
                self._suppressed_errors += 1
                return
            self._errors_left -= 1
        entries = self._entries
        if len(entries) >= self._max_buffered:
            self.dropped += 1
            return
        entries.append(entry)

    def wants(self, status: int) -> bool:
        """Whether `add` would take an entry with this status now; one that it would not is counted.

        Asked before an entry is built, it saves the building: most of the cost under load.
        """
        if status < _ERROR:
            if self._successes_left > 0:
                return True
        elif self._errors_left > 0:
            return True
        else:
            self._suppressed_errors += 1
        self.suppressed += 1
        return False

    def flush(self) -> None:
        """Write what was added; once a second also how much was left out, and allow anew."""
        now = self._clock()
        # not within the window also where the clock was set back
        self._write(now, window_ended=not 0 <= now - self._window_began < _WINDOW_S)

    def close(self) -> None:
        """Write everything, and what was left out of the running second."""
        self._write(self._clock(), window_ended=True)

    def _write(self, now: float, *, window_ended: bool) -> None:
        entries, self._entries = self._entries, []
        line = self._pretty_line if self._pretty else _json_line
        lines = [line(entry) for entry in entries]
        if window_ended:
            self._window_began = now
            self._successes_left, self._errors_left = self._quota
            lines += self._summary(now)
        if not lines:
            return
        try:
            self._stream.write("\n".join(lines) + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # the log's reader is gone or its disk is full: serve on
            self.dropped += len(entries)

    def _summary(self, now: float) -> list[str]:
        counts = (self.suppressed, self._suppressed_errors, self.dropped)
        suppressed, errors, dropped = (
            count - earlier for count, earlier in zip(counts, self._reported, strict=True)
        )
        self._reported = counts
        fields = {}
        if self._sampled and suppressed:
            fields = {"suppressed": suppressed, "suppressed_errors": errors}
        if dropped:
            fields["dropped"] = dropped
        if not fields:
            return []
        level = "warning" if dropped else "info"
        message = "requests were left out of this log"
        if self._pretty:
            message += pairs(fields)
            return [pretty_line(now, level, LOGGER, message, coloured=self._coloured)]
        head = {"ts": rfc3339(now), "level": level, "logger": LOGGER, "message": message}
        return [json_line(_encode(head | fields))]

    def _pretty_line(self, entry: Access) -> str:
        entry = _cleaned(entry)
        message = (
            f"{one_line(entry.method)} {one_line(entry.route)} {entry.status} "
            f"{entry.duration_s * 1000:.1f} ms"
        )
        rest = {
            name: value
            for name, value in msgspec.structs.asdict(entry).items()
            if name not in _IN_MESSAGE and value != ""
        }
        return pretty_line(
            entry.ended_s, _level(entry), LOGGER, message + pairs(rest), coloured=self._coloured
        )


_IN_MESSAGE: Final = frozenset({"ended_s", "duration_s", "method", "route", "status"})
# An entry that is no longer than this has no string that is longer than _CUT_CHARS: a cheaper
# question than to ask every string.
_SURELY_UNCUT_BYTES: Final = len(_encode(Access(0.0, 0.0, "", "", "", 0, 0, 0))) + _CUT_CHARS
_FIRST_STRING: Final = '"request_id"'


def _json_line(entry: Access) -> str:
    try:
        encoded = _encode(entry)
        if len(encoded) > _SURELY_UNCUT_BYTES:
            encoded = _encode(_cleaned(entry))
    except UnicodeEncodeError:
        encoded = _encode(_cleaned(entry))
    text = json_line(encoded)
    # the two fields before the first string are written here, in the form that lines have
    return (
        f'{{"ts":"{rfc3339(entry.ended_s)}","level":"{_level(entry)}","logger":"{LOGGER}",'
        f'"message":"request","duration_ms":{entry.duration_s * 1000:.3f},'
        f"{text[text.index(_FIRST_STRING) :]}"
    )


def _level(entry: Access) -> str:
    return "error" if entry.status >= _FAILURE else "info"


def _cleaned(entry: Access) -> Access:
    """Cut strings to 256 characters, and replace lone surrogates, which have no encoding."""
    changes = {}
    for name, value in msgspec.structs.asdict(entry).items():
        if isinstance(value, str):
            kept = value[:_CUT_CHARS]
            if not kept.isascii():
                kept = kept.encode("utf-8", "backslashreplace").decode("utf-8")[:_CUT_CHARS]
            if kept != value:
                changes[name] = kept
    return msgspec.structs.replace(entry, **changes) if changes else entry
