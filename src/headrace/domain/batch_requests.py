"""What callers ask of batch files and jobs, and what lists of them answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of an upload. `expires_after_s` None: as the settings say."""

    filename: str
    purpose: str
    expires_after_s: int | None = None


class NewJob(msgspec.Struct, frozen=True, kw_only=True):
    """What a job is asked for with. None: as the settings say."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: Mapping[str, str] = {}
    output_expires_after_s: int | None = None
    priority: int = 0
    max_attempts: int | None = None


class Again(msgspec.Struct, frozen=True, kw_only=True):
    """What a retry does otherwise than the job that it repeats. None: as that did.

    With `codes` it runs only the rows that failed with one of them.
    """

    completion_window: str | None = None
    metadata: Mapping[str, str] | None = None
    priority: int | None = None
    max_attempts: int | None = None
    codes: frozenset[str] | None = None


class Page(msgspec.Struct, Generic[T], frozen=True):
    """Some items, and whether there are more behind them."""

    items: Sequence[T]
    has_more: bool
