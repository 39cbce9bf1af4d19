from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest

from headrace.transport.http import heap


def test_all_of_the_heap_that_is_free_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    library = SimpleNamespace(malloc_trim=lambda pad: kept.append(pad.value))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    heap.trim()

    assert kept == [0]


def test_nothing_is_done_where_the_c_library_has_no_such_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    heap.trim()


def test_the_c_library_of_this_process_takes_the_call() -> None:
    heap.trim()
