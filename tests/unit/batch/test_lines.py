from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.batch.lines import LINES_AT_ONCE, Line, Lines, filled_lines, lines_of


def _split(data: bytes, *, piece_bytes: int = 1 << 20, limit_bytes: int = 1 << 20) -> list[Line]:
    lines = Lines(limit_bytes=limit_bytes)
    found: list[Line] = []
    for start in range(0, len(data), piece_bytes):
        found += lines.feed(data[start : start + piece_bytes])
    return found + list(lines.rest())


async def _pieces(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def test_lines_have_their_numbers_and_their_places() -> None:
    assert _split(b"one\n\n three \r\nfour") == [
        Line(1, 0, 4, b"one"),
        Line(2, 4, 5, b""),
        Line(3, 5, 14, b" three "),
        Line(4, 14, 18, b"four"),
    ]


def test_a_file_that_ends_in_a_newline_has_no_line_behind_it() -> None:
    assert _split(b"one\n") == [Line(1, 0, 4, b"one")]
    assert _split(b"") == []


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 1000])
def test_a_line_over_the_limit_is_cut_off_and_the_next_one_is_not(piece_bytes: int) -> None:
    found = _split(b"12345\n123456\n12", piece_bytes=piece_bytes, limit_bytes=5)
    assert [(line.text, line.too_long) for line in found] == [
        (b"12345", False),
        (b"12345", True),
        (b"12", False),
    ]
    assert [(line.start, line.end) for line in found] == [(0, 6), (6, 13), (13, 15)]


@pytest.mark.parametrize("text", [b"", b" \t", b"\r"])
def test_a_line_of_white_space_is_blank(text: bytes) -> None:
    assert [line.is_blank for line in _split(text + b"\nx\n")] == [True, False]


def test_a_line_that_is_cut_off_in_white_space_is_not_blank() -> None:
    assert not _split(b"      x\n", limit_bytes=5)[0].is_blank


@given(
    data=st.lists(st.sampled_from([b"\n", b"\r\n", b"a", b" ", b"b" * 9, b"\xff"])).map(b"".join),
    piece_bytes=st.integers(1, 40),
    limit_bytes=st.integers(1, 30),
)
def test_however_a_file_is_cut_its_lines_are_the_same_and_cover_it(
    data: bytes, piece_bytes: int, limit_bytes: int
) -> None:
    found = _split(data, piece_bytes=piece_bytes, limit_bytes=limit_bytes)
    assert found == _split(data, limit_bytes=limit_bytes)
    assert b"".join(data[line.start : line.end] for line in found) == data
    assert [line.number for line in found] == list(range(1, len(found) + 1))
    for line in found:
        whole = data[line.start : line.end].removesuffix(b"\n")
        assert line.too_long == (len(whole) > limit_bytes)
        assert line.text == whole[:limit_bytes].rstrip(b"\r")


@pytest.mark.parametrize("piece_bytes", [1, 7, 4096, 1 << 20])
async def test_a_hundred_thousand_lines_come_out_of_pieces_of_any_size(piece_bytes: int) -> None:
    data = b"7\n" * 100_000
    pieces = [data[at : at + piece_bytes] for at in range(0, len(data), piece_bytes)]
    found = [
        (line.number, line.start, line.text)
        async for lines in lines_of(_pieces(*pieces), limit_bytes=10)
        for line in lines
    ]
    assert found == [(n + 1, 2 * n, b"7") for n in range(100_000)]


def test_a_long_line_is_put_together_in_time_that_grows_with_it_alone() -> None:
    lines = Lines(limit_bytes=1 << 24)
    piece = b"x" * 64
    for _ in range(1 << 17):  # 8 MiB; copying all of it for each piece would take hours
        assert not list(lines.feed(piece))
    (line,) = lines.rest()
    assert len(line.text) == 1 << 23


def test_what_is_over_the_limit_is_not_held() -> None:
    lines, piece = Lines(limit_bytes=1000), b"x" * (1 << 20)
    tracemalloc.start()
    try:
        for _ in range(50):
            assert not list(lines.feed(piece))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


async def test_others_get_their_turn_between_the_slices_of_a_piece() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    running = asyncio.create_task(other())
    found = [
        lines async for lines in lines_of(_pieces(b"a\n" * 500), limit_bytes=9, slice_bytes=10)
    ]
    running.cancel()
    assert len(found) == 101
    assert turns >= 100


# --- blank lines ---------------------------------------------------------------------------------

_SPACED = st.lists(
    st.sampled_from([b"\n", b"\n\n\n", b"\r\n", b" \t\n", b"  ", b"a", b" b ", b"\v\f", b"\xa0"])
).map(b"".join)


@given(data=_SPACED, piece_bytes=st.integers(1, 40), limit_bytes=st.integers(1, 30))
def test_without_blank_lines_the_others_are_the_same_however_a_file_is_cut(
    data: bytes, piece_bytes: int, limit_bytes: int
) -> None:
    lines = Lines(limit_bytes=limit_bytes)
    found: list[Line] = []
    for start in range(0, len(data), piece_bytes):
        found += lines.filled(data[start : start + piece_bytes])
    found += (line for line in lines.rest() if not line.is_blank)
    assert found == [line for line in _split(data, limit_bytes=limit_bytes) if not line.is_blank]


@given(data=_SPACED, more=st.booleans())
def test_lines_of_a_text_have_their_numbers_wherever_it_is_begun(
    *, data: bytes, more: bool
) -> None:
    text = b"{}\n" + data if more else data
    found = list(filled_lines(text, 3 if more else 0))
    assert found == [(n, line) for n, line in enumerate(data.split(b"\n")) if line.strip()]


async def test_so_many_lines_come_at_a_time_however_short_they_are() -> None:
    pieces = _pieces(b"a\n" * 10 * LINES_AT_ONCE)
    found = [lines async for lines in lines_of(pieces, limit_bytes=9)]
    assert [len(lines) for lines in found] == [LINES_AT_ONCE] * 10 + [0]


def test_a_file_of_blank_lines_is_passed_by_whole_runs_of_them() -> None:
    class Piece(bytes):
        looks = 0

        def find(self, *args: Any) -> int:
            Piece.looks += 1
            return super().find(*args)

    lines = Lines(limit_bytes=1 << 20)
    assert list(lines.filled(Piece(b"\n" * 200_000 + b" \r\n" * 50_000))) == []
    assert Piece.looks < 10
    assert (lines.number, lines.at) == (250_001, 350_000)
    assert list(lines.filled(b"a\n")) == [Line(250_001, 350_000, 350_002, b"a")]
