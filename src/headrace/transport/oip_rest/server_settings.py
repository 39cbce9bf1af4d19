"""Triton's trace and logging settings, on this platform's log.

`trace_level` TIMESTAMPS writes the time line of every `trace_rate`-th request to the log
"headrace.timeline", `trace_count` of them at most. Nothing is written to files that a client
names. Source: Triton `docs/protocol/extension_trace.md` and `extension_logging.md`.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from typing import Any, Final

from headrace.domain.errors import InvalidRequest

_timeline: Final = logging.getLogger("headrace.timeline")
_DEFAULTS: Final = {
    "trace_file": "",
    "trace_level": ["OFF"],
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_mode": "log",
}
_LEVELS: Final = {"OFF", "TIMESTAMPS"}
_WHOLE: Final = re.compile("-?[0-9]{1,18}")
_NUMBERS: Final = {"trace_rate": 1, "trace_count": -1, "log_frequency": 0}  # least values


class RequestTimelines:
    """Which requests leave a time line in the log: settings for all models and for single ones."""

    def __init__(self) -> None:
        self.active = False  # whether any setting asks for time lines: one branch per request
        self._global: dict[str, Any] = dict(_DEFAULTS)
        self._models: dict[str, dict[str, Any]] = {}
        self._seen: dict[str, int] = {}
        self._written: dict[str, int] = {}

    def get(self, model: str = "") -> dict[str, Any]:
        """The settings in force for a model, or for all."""
        return {**self._global, **self._models.get(model, {})}

    def update(self, changes: Mapping[str, Any], model: str = "") -> dict[str, Any]:
        """Change settings; null gives a setting back to its default. Returns what is in force.

        No change at all for a model takes back every setting of its own.

        Raises:
            InvalidRequest: naming the setting.
        """
        checked = {key: _checked(key, value) for key, value in changes.items()}
        target = self._models.setdefault(model, {}) if model else self._global
        if model and not changes:
            del self._models[model]
        for key, value in checked.items():
            if value is not None:
                target[key] = value
            elif model:
                target.pop(key, None)
            else:
                target[key] = _DEFAULTS[key]
        self._seen.pop(model, None)
        self._written.pop(model, None)
        everything = [self._global, *self._models.values()]
        self.active = any("TIMESTAMPS" in s.get("trace_level", ()) for s in everything)
        return self.get(model)

    def record(self, model: str, version: str, request_id: str, begun_ns: int) -> None:
        """Write the time line of a request that is answered, if its turn has come."""
        settings = self.get(model)
        if "TIMESTAMPS" not in settings["trace_level"]:
            return
        scope = model if model in self._models else ""
        seen = self._seen[scope] = self._seen.get(scope, 0) + 1
        written = self._written.get(scope, 0)
        count = int(settings["trace_count"])
        if seen % int(settings["trace_rate"]) or (count >= 0 and written >= count):
            return
        self._written[scope] = written + 1
        _timeline.info(
            "request",
            extra={
                "model": model,
                "version": version,
                "request_id": request_id,
                "REQUEST_START": begun_ns,
                "REQUEST_END": time.time_ns(),
            },
        )


class LogLevel:
    """Triton's log switches as the level of this platform's root logger."""

    def __init__(self) -> None:
        self._settings: dict[str, Any] = {
            "log_file": "",
            "log_info": True,
            "log_warning": True,
            "log_error": True,
            "log_verbose_level": 0,
            "log_format": "ISO8601",
        }

    def get(self) -> dict[str, Any]:
        """The switches in force."""
        level = logging.getLogger().getEffectiveLevel()
        self._settings["log_info"] = level <= logging.INFO
        self._settings["log_warning"] = level <= logging.WARNING
        self._settings["log_error"] = level <= logging.ERROR
        if level > logging.DEBUG:
            self._settings["log_verbose_level"] = 0
        return dict(self._settings)

    def update(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Change switches. Raises InvalidRequest naming the switch; nothing is changed then."""
        merged = self.get()
        for key, value in changes.items():
            if key == "log_file" and value != "":
                msg = "log_file cannot be set over the API: logs go where the platform was told"
                raise InvalidRequest(msg)
            if key not in merged:
                msg = f"unknown log setting {key[:64]!a}"
                raise InvalidRequest(msg)
            if type(value) is not type(merged[key]):
                msg = f"{key}: expected a {type(merged[key]).__name__}"
                raise InvalidRequest(msg)
            if key == "log_format" and value not in {"default", "ISO8601"}:
                msg = "log_format: expected default or ISO8601"
                raise InvalidRequest(msg)
            if key == "log_verbose_level" and value < 0:
                msg = "log_verbose_level: expected a whole number >= 0"
                raise InvalidRequest(msg)
            merged[key] = value
        self._settings = merged
        logging.getLogger().setLevel(_level(merged))
        return self.get()


def _level(settings: Mapping[str, Any]) -> int:
    if settings["log_verbose_level"] > 0:
        return logging.DEBUG
    for key, level in (
        ("log_info", logging.INFO),
        ("log_warning", logging.WARNING),
        ("log_error", logging.ERROR),
    ):
        if settings[key]:
            return level
    return logging.CRITICAL


def _checked(key: str, value: Any) -> Any:
    """The value of a setting in its stored form; None where it goes back to the default."""
    if key == "trace_file":
        msg = "trace_file cannot be set over the API: time lines go to the log"
        raise InvalidRequest(msg)
    if key not in _DEFAULTS:
        msg = f"unknown trace setting {key[:64]!a}"
        raise InvalidRequest(msg)
    if value is None:
        return None
    if key == "trace_level":
        levels = [value] if isinstance(value, str) else value
        if not isinstance(levels, list) or not levels or not {*map(str, levels)} <= _LEVELS:
            msg = "trace_level: expected a list of OFF or TIMESTAMPS"
            raise InvalidRequest(msg)
        return levels
    if key in _NUMBERS:
        text = str(value)
        if not _WHOLE.fullmatch(text) or int(text) < _NUMBERS[key]:
            msg = f"{key}: expected a whole number >= {_NUMBERS[key]}"
            raise InvalidRequest(msg)
        return text
    if value != "log":
        msg = f"{key}: expected log"
        raise InvalidRequest(msg)
    return value
