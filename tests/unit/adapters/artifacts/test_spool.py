from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.adapters.artifacts.spool import Received, receive
from headrace.domain.errors import PayloadTooLarge, StoreUnavailable
from tests.support.archives import stream


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 3000).map(lambda n: n * 997), max_size=6))
async def test_a_stream_is_written_as_it_came_however_it_is_cut(
    sizes: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    chunks = [bytes([i]) * size for i, size in enumerate(sizes)]

    async def sent() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    file = tmp_path_factory.mktemp("spool") / "new" / "file"
    received = await receive(sent(), file, limit_bytes=10**8)
    data = b"".join(chunks)
    assert file.read_bytes() == data
    assert received == Received(hashlib.sha256(data).hexdigest(), len(data))


@pytest.mark.parametrize(("size", "fits"), [(100, True), (101, False)])
async def test_the_limit_is_exact(tmp_path: Path, size: int, fits: bool) -> None:  # noqa: FBT001
    file = tmp_path / "file"
    if fits:
        await receive(stream(bytes(size), chunk_bytes=30), file, limit_bytes=100)
    else:
        with pytest.raises(PayloadTooLarge, match="more than 100 bytes"):
            await receive(stream(bytes(size), chunk_bytes=30), file, limit_bytes=100)
    assert file.exists() == fits


async def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(StoreUnavailable):
        await receive(stream(b"other"), tmp_path / "file", limit_bytes=100)
    assert (tmp_path / "file").read_bytes() == b"mine"
