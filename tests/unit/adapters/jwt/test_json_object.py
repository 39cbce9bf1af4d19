from __future__ import annotations

import pytest

from headrace.adapters.jwt.json_object import read_object


def test_an_object_is_read() -> None:
    assert read_object('{"a": [1, 2.5, "é", null, {"a": true}]}'.encode()) == {
        "a": [1, 2.5, "é", None, {"a": True}]
    }


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'"x"',
        b"null",
        b"{",
        b"{} {}",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": "\xff"}',
        b'\xef\xbb\xbf{"a": 1}',
        '{"a": 1}'.encode("utf-16"),
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whichever it is
        read_object(data)


@pytest.mark.parametrize(
    "data",
    [b'{"alg": "RS256", "alg": "HS256"}', b'{"a": {"b": 1, "\\u0062": 1}}', b'[{"a":1,"a":1}]'],
)
def test_a_name_that_occurs_twice_is_refused_at_any_depth(data: bytes) -> None:
    with pytest.raises(ValueError, match="twice"):
        read_object(data)
