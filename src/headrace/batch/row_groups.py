"""Rows that wait for more of their kind, to be asked about together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from headrace.batch.merging import Alike, Batch, Form, alike, form_of, length_of
from headrace.domain.inference import InferRequest
from headrace.domain.tensors import InferContent
from headrace.ports.rows import Row

#: The most rows of a version that one request may have; 0: its rows are asked about one by one.
Mergeable: TypeAlias = Callable[[str, str], int]

_FORMS_KEPT: Final = 1024


class RowGroups:
    """Groups of rows that are alike, the oldest first.

    A group is full with as many rows as `mergeable` allows, and no more than `portion` makes of
    that at the time, or with `max_request_bytes`.
    """

    def __init__(
        self, mergeable: Mergeable, portion: Callable[[int], int], *, max_request_bytes: int
    ) -> None:
        self._mergeable = mergeable
        self._portion = portion
        self._max_request_bytes = max_request_bytes
        self._groups: dict[Alike, Batch] = {}
        self._forms: dict[Form, tuple[Alike, int, int]] = {}

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def first_place(self) -> int:
        """The place of the oldest group's first row; -1 where none waits."""
        oldest = next(iter(self._groups.values()), None)
        return -1 if oldest is None else oldest.places[0]

    def pop(self) -> Batch:
        """The oldest group."""
        return self._groups.pop(next(iter(self._groups)))

    def add(self, place: int, row: Row, request: InferRequest, size_bytes: int) -> Batch | None:
        """Put a row to others like it. Answers a batch that is to be sent, if there is one now."""
        if request.payload is not None:  # it has no tensors that others could join
            return Batch([place], [row], [0])
        content = request.content
        form = form_of(request, content)
        known = self._forms.get(form) if form is not None else None
        key, length, limit = known or self._kind(request, content, form)
        most = self._portion(limit)
        if not 0 < length < most:
            return Batch([place], [row], [length], length)
        batch = self._groups.get(key)
        full = None
        if batch is None or batch.length + length > most:
            full = batch
            if full is not None:
                del self._groups[key]  # so that the new one is the youngest
            batch = self._groups[key] = Batch([], [], [])
        batch.add(place, row, length, size_bytes)
        if full is None and (batch.length == most or batch.size_bytes >= self._max_request_bytes):
            full = self._groups.pop(key)
        return full

    def _kind(
        self, request: InferRequest, content: InferContent, form: Form | None
    ) -> tuple[Alike, int, int]:
        """What a row is merged by, how many of a model's rows it is, and how many may be one."""
        most = self._mergeable(request.model, request.version)
        kind = (alike(request, content), length_of(content) if most else 0, most)
        if form is not None and len(self._forms) < _FORMS_KEPT:
            self._forms[form] = kind
        return kind
