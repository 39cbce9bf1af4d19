from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.domain.errors import Conflict, HeadraceError, RateLimited
from headrace.domain.standing import Standing
from headrace.transport.dialect import Dialect
from headrace.transport.dialects import dialect_of
from headrace.transport.management.problems import PROBLEM
from headrace.transport.oip_rest.errors import OIP
from headrace.transport.openai.errors import OPENAI
from headrace.transport.status import STATUS

DIALECTS = (OIP, OPENAI, PROBLEM)
_LINES = re.compile(rb"(?:[a-z0-9-]+: [!-~](?:[ -~]*[!-~])?\r\n)+")

messages = st.text(st.characters(), max_size=80) | st.sampled_from(
    ['"', "\\", "\r\nx: y", "\x00\x7f", "\ud800", "a\udfffb", "\u2028", "", "x" * 10_000]
)
standings = st.builds(
    Standing,
    policy=st.text(max_size=10),
    quota=st.integers(1, 10**6),
    window_s=st.integers(1, 10**6),
    remaining=st.integers(0, 10**6),
    reset_s=st.floats(0, 1e6),
)


@st.composite
def errors(draw: st.DrawFn) -> HeadraceError:
    code = draw(st.sampled_from(sorted(STATUS)))
    made = type("Made", (HeadraceError,), {"code": code})
    wait_s = draw(st.none() | st.floats(0, 1e6))
    error: HeadraceError = made(draw(messages), retry_after_s=wait_s)
    error.standings = draw(st.lists(standings, max_size=2))
    return error


def sentence(dialect: Dialect, body: Any) -> Any:
    if dialect is PROBLEM:
        return body["detail"]
    return body["error"]["message"] if dialect is OPENAI else body["error"]


@given(errors(), st.from_regex(r"[!#-&(-\[\]-~]{1,40}", fullmatch=True))
def test_an_error_is_the_same_in_every_dialect(error: HeadraceError, request_id: str) -> None:
    heads = set()
    sentences = set()
    for dialect in DIALECTS:
        response = dialect.response(error, request_id)
        by_asgi = dialect.asgi_response(error, request_id)
        assert _LINES.fullmatch(response.headers)
        media_type, _, lines = response.headers.partition(b"\r\n")
        assert media_type == b"content-type: " + dialect.media_type.encode()
        assert b"x-error-code: " + error.code.encode() in lines.split(b"\r\n")
        assert b"x-request-id: " + request_id.encode() in lines.split(b"\r\n")
        heads.add((response.status, lines))
        assert by_asgi.status_code == response.status
        own = {(b"content-length", b"%d" % len(by_asgi.body)), (b"content-type", media_type[14:])}
        told = {tuple(line.split(b": ", 1)) for line in lines.splitlines()}
        assert set(by_asgi.raw_headers) == told | own

        (body,) = response.body
        assert bytes(by_asgi.body) == body
        sentences.add(sentence(dialect, json.loads(bytes(body))))

    ((status, _),) = heads
    assert status == STATUS[error.code][0]
    (told_to_all,) = sentences
    assert told_to_all == error.message.encode("utf-8", "backslashreplace").decode()


def test_open_inference_protocol_has_the_sentence_only() -> None:
    response = OIP.response(Conflict("it is in use"), "req-1")
    assert json.loads(bytes(response.body[0])) == {"error": "it is in use"}


def test_openai_sorts_errors_by_a_type() -> None:
    response = OPENAI.response(RateLimited("slow down"), "req-1")
    assert json.loads(bytes(response.body[0])) == {
        "error": {
            "message": "slow down",
            "type": "rate_limit_error",
            "param": None,
            "code": "rate_limited",
        }
    }


def test_a_problem_tells_what_the_error_knows_besides() -> None:
    error = Conflict("it is in use")
    error.details = {"by": ["an alias"]}
    response = PROBLEM.response(error, "req-1")
    assert json.loads(bytes(response.body[0])) == {
        "type": "urn:headrace:error:conflict",
        "title": "Conflict",
        "status": 409,
        "detail": "it is in use",
        "code": "conflict",
        "request_id": "req-1",
        "by": ["an alias"],
    }


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v2/models/a", OIP),
        ("/livez", OIP),
        ("/", OIP),
        ("", OIP),
        ("*", OIP),
        ("/v1/models", OPENAI),
        ("/v1", OPENAI),
        ("/v10/models", OIP),
        ("/api/v1/models", PROBLEM),
        ("/docs", PROBLEM),
        ("/docs/", PROBLEM),
        ("/docsx", OIP),
        ("//api/v1", OIP),
    ],
)
def test_a_path_has_the_dialect_of_its_clients(path: str, dialect: Dialect) -> None:
    assert dialect_of(path) is dialect
