from __future__ import annotations

import pytest

from headrace.transport.management.cursors import decode, encode
from headrace.transport.management.preconditions import match, names
from headrace.transport.management.problems import InvalidFields


@pytest.mark.parametrize(
    ("header", "revisions"),
    [
        (None, None),
        ("*", "*"),
        ('"7"', frozenset({7})),
        ('"7", "8"', frozenset({7, 8})),
        ('W/"7"', frozenset()),  # a weak tag names no exact state
        ('W/"7","8"', frozenset({8})),
        ('"x"', frozenset()),
        ('""', frozenset()),
        (f'"{"9" * 100}"', frozenset()),
    ],
)
def test_if_match_names_revisions(header: str | None, revisions: object) -> None:
    assert match(header) == revisions


@pytest.mark.parametrize(
    ("header", "known"),
    [
        (None, False),
        ("*", True),
        ('"7"', True),
        ('W/"7"', True),
        ('"6", "7"', True),
        ('"77"', False),
    ],
)
def test_if_none_match_compares_weakly(header: str | None, known: int) -> None:
    assert names(header, '"7"') is bool(known)


def test_a_cursor_comes_back_as_it_was() -> None:
    after = ("näme", "default", "b")
    cursor = encode("name asc", after)
    assert decode("name asc", cursor, 3) == after
    assert encode("name asc", ()) is None
    assert decode("name asc", None, 3) == ()


@pytest.mark.parametrize("change", ["order", "parts", "cut", "padded"])
def test_a_cursor_of_another_list_is_refused(change: str) -> None:
    cursor = encode("name asc", ("a", "b"))
    assert cursor is not None
    order = "name desc" if change == "order" else "name asc"
    parts = 3 if change == "parts" else 2
    text = {"cut": cursor[:-1], "padded": cursor + "="}.get(change, cursor)
    with pytest.raises(InvalidFields):
        decode(order, text, parts)
