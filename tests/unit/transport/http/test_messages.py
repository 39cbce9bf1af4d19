from __future__ import annotations

import pytest

from headrace.transport.http.messages import path_of


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/v1/models?x=/api/v1", "/v1/models"),
        (b"/%61pi/v1", "/api/v1"),
        (b"http://a/api/v1?x", "/api/v1"),
        (b"http://a", "/"),
        (b"/http://a/x", "/http://a/x"),
        (b"/%ff%0d%0a", "/\ufffd\r\n"),
        (b"*", "*"),
        (b"a:1", "a:1"),
        (b"", ""),
    ],
)
def test_a_path_is_what_routes_see_of_a_target(target: bytes, path: str) -> None:
    assert path_of(target) == path
