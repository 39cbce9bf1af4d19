from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.adapters.artifacts.pieces import gathered
from headrace.domain.errors import PayloadTooLarge
from tests.support.archives import stream


@given(data=st.binary(max_size=50), cut=st.integers(1, 20), piece_bytes=st.integers(1, 30))
async def test_pieces_are_as_large_as_asked_but_for_the_last(
    data: bytes, cut: int, piece_bytes: int
) -> None:
    pieces = [p async for p in gathered(stream(data, chunk_bytes=cut), piece_bytes=piece_bytes)]
    assert b"".join(pieces) == data
    assert all(piece_bytes <= len(piece) < piece_bytes + cut for piece in pieces[:-1])
    assert all(pieces)


async def test_what_is_over_the_limit_is_refused_by_its_name() -> None:
    pieces = gathered(stream(b"12345"), piece_bytes=2, limit_bytes=4, subject="file")
    with pytest.raises(PayloadTooLarge, match="the file has more than 4 bytes"):
        async for _ in pieces:
            pass
