"""Refusals that say more than a sentence: which field, which check, what is in the way.

`details` holds what a wire may show beside the message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headrace.domain.errors import Conflict, InvalidRequest


class InvalidField(InvalidRequest):
    """One field of what was sent cannot be; `pointer` is its JSON pointer (RFC 6901)."""

    def __init__(self, pointer: str, message: str) -> None:
        where = pointer.removeprefix("/").replace("/", ".")
        super().__init__(f"{where}: {message}" if where else message)
        self.details = {"errors": [{"pointer": f"#{pointer}", "detail": message}]}


class Dangling(Conflict):
    """One field of what was sent names what is not there; `pointer` is its JSON pointer."""

    def __init__(self, pointer: str, message: str) -> None:
        super().__init__(f"{pointer.removeprefix('/').replace('/', '.')}: {message}")
        self.details = {"errors": [{"pointer": f"#{pointer}", "detail": message}]}


class Needed(Conflict):
    """Something else refers to it. `by` are paths below /api/v1: "routes/checkout"."""

    def __init__(self, message: str, by: Sequence[str]) -> None:
        super().__init__(message)
        self.details = {"needed_by": list(by)}


class PromotionRefused(Conflict):
    """Checks failed; `checks` are all of them with their outcomes."""

    def __init__(self, message: str, checks: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(message)
        self.details = {"checks": list(checks)}
