from __future__ import annotations

import hashlib
import io
import json
from typing import Any

import pytest

from headrace.compose import batch_rows
from headrace.compose.batch_rows import Rows, as_row
from headrace.domain.errors import InvalidRequest
from headrace.transport.oip_rest.rows import OipRows

URL = "/v2/models/m/infer"
BODY = b'{"inputs": [{"name": "x", "data": [1]}], "id": "7"}'
ROW = b'{"custom_id": "a", "method": "POST", "url": "/v2/models/m/infer", "body": %b}' % BODY


def rows(data: bytes) -> Rows:
    return Rows(io.BytesIO(data), name="rows.jsonl")


def converted(data: bytes, url: str = URL) -> list[bytes]:
    return b"".join(rows(data).pieces(url)).splitlines()


@pytest.mark.parametrize(
    ("line", "custom_id"),
    [
        (BODY, "3"),
        (b'{"custom_id": "a b", ' + BODY[1:], "a b"),
        (b'{"body": %b}' % BODY, "3"),
        (b'{"custom_id": "c", "body": %b}' % BODY, "c"),
        (ROW, "a"),
    ],
)
def test_an_input_becomes_a_row_however_much_of_one_it_is(line: bytes, custom_id: str) -> None:
    made = as_row(line, number=3, url=json.dumps(URL).encode())
    assert json.loads(made) == {
        "custom_id": custom_id,
        "method": "POST",
        "url": URL,
        "body": json.loads(BODY),
    }
    head = OipRows().head(made.rstrip(b"\n"))
    assert (head.custom_id, head.url, head.problem) == (custom_id, URL, "")


def test_what_a_line_says_itself_is_kept() -> None:
    line = b'{"url": "/v2/models/other/infer", "body": {}}'
    assert json.loads(converted(line)[0])["url"] == "/v2/models/other/infer"


def test_lines_keep_their_numbers_whatever_is_between_them() -> None:
    lines = converted(b"\n".join([BODY, b"", b"no JSON", b"[1]", BODY]))
    assert lines[1:4] == [b"", b"no JSON", b"[1]"]  # the platform says what is wrong with them
    assert [json.loads(lines[at])["custom_id"] for at in (0, 4)] == ["1", "5"]


def test_lines_of_a_batch_file_go_through_byte_for_byte() -> None:
    data = b"\xef\xbb\xbf" + ROW + b"\r\n\n" + ROW
    assert b"".join(rows(data).pieces()) == data
    looked_at = rows(ROW + b"\n" + BODY)
    assert looked_at.endpoint() == URL
    assert b"".join(looked_at.pieces()) == ROW + b"\n" + BODY


def test_the_digest_is_that_of_the_input_whatever_becomes_of_it() -> None:
    data = (BODY + b"\n") * 10_000
    expected = hashlib.sha256(data).hexdigest()
    for url in (URL, ""):
        read = rows(data)
        pieces = list(read.pieces(url))
        assert (read.sha256, read.size_bytes) == (expected, len(data))
        assert max(map(len, pieces)) < 1024**2
        assert len(pieces) > 1
    through = rows(data)
    through.read_through()
    assert through.sha256 == expected


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "rows.jsonl has no rows"),
        (b"\n \n", "rows.jsonl has no rows"),
        (b"\n" + BODY, "line 2: the row has no url.*--model"),
        (b"no JSON", "line 1: the row has no url"),
        (b'{"url": 3}', "line 1: the row has no url"),
    ],
)
def test_rows_that_name_no_endpoint_are_refused_with_the_way_out(data: bytes, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        rows(data).endpoint()


def test_a_line_without_end_is_not_read_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_rows, "MAX_LINE_BYTES", 100)
    with pytest.raises(InvalidRequest, match="line 2 has over 100 bytes"):
        converted(BODY + b"\n" + b"x" * 101)


def test_an_input_that_cannot_be_read_is_told_by_its_name() -> None:
    class Broken(io.BytesIO):
        def read(self, _: Any = -1) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(InvalidRequest, match=r"rows.jsonl cannot be read: Input/output error"):
        list(Rows(Broken(), name="rows.jsonl").pieces())
