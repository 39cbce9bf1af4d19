from __future__ import annotations

import contextlib
import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.domain.errors import InvalidRequest, PayloadTooLarge, UnsupportedEncoding
from headrace.transport.oip_rest.compression import choose, compress, decompress

LIMIT = 1000
PACK: dict[bytes, Callable[[bytes], bytes]] = {
    b"gzip": gzip.compress,
    b"x-gzip": gzip.compress,
    b"deflate": zlib.compress,
}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=5), st.sampled_from([b"gzip", b"deflate"]))
def test_what_was_compressed_comes_back(parts: list[bytes], coding: bytes) -> None:
    pieces: list[bytes | memoryview] = [memoryview(part) for part in parts]
    packed = compress(pieces, coding)
    assert decompress(packed, coding, LIMIT) == b"".join(parts)
    unpack = gzip.decompress if coding == b"gzip" else zlib.decompress
    assert unpack(packed) == b"".join(parts)


@pytest.mark.parametrize("coding", [*PACK, b" GZIP\t", b"Deflate"])
def test_names_of_codings_are_not_minded_for_case_and_space(coding: bytes) -> None:
    packed = PACK[coding.strip().lower()](b"hello")
    assert decompress(packed, coding, LIMIT) == b"hello"


@pytest.mark.parametrize("coding", [b"", b"identity", b" Identity "])
def test_no_coding_is_none(coding: bytes) -> None:
    body = b"x" * (LIMIT + 1)  # whose size was bounded when it was read
    assert decompress(body, coding, LIMIT) is body


@pytest.mark.parametrize(
    "coding", [b"br", b"zstd", b"compress", b"gzip, gzip", b"gzip,identity", b"\xff\r\n" * 100]
)
def test_other_codings_are_named_in_the_refusal(coding: bytes) -> None:
    with pytest.raises(UnsupportedEncoding, match="use gzip, deflate or none") as caught:
        decompress(b"", coding, LIMIT)
    assert caught.value.message.isascii()
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("coding", list(PACK))
def test_the_limit_is_that_of_the_decoded_body(coding: bytes) -> None:
    assert decompress(PACK[coding](b"x" * LIMIT), coding, LIMIT) == b"x" * LIMIT
    with pytest.raises(PayloadTooLarge, match="limit of 1000 bytes once decompressed"):
        decompress(PACK[coding](b"x" * (LIMIT + 1)), coding, LIMIT)


@pytest.mark.parametrize("coding", list(PACK))
def test_a_bomb_takes_no_memory(coding: bytes) -> None:
    bomb = PACK[coding](b"\0" * 50_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge):
            decompress(bomb, coding, LIMIT)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 300_000


@pytest.mark.parametrize("coding", list(PACK))
@pytest.mark.parametrize("damage", ["empty", "cut", "trailing", "twice", "plain", "checksum"])
def test_a_body_is_one_whole_stream_of_its_coding(coding: bytes, damage: str) -> None:
    packed = PACK[coding](b"hello" * 20)
    body = {
        "empty": b"",
        "cut": packed[:-1],
        "trailing": packed + b"\0",
        "twice": packed * 2,
        "plain": b'{"inputs": []}',
        "checksum": packed[:-5] + bytes([packed[-5] ^ 1]) + packed[-4:],
    }[damage]
    with pytest.raises(InvalidRequest, match=rf"the request body is not .*{coding.decode()}"):
        decompress(body, coding, LIMIT)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=100), st.sampled_from(list(PACK)))
def test_any_bytes_are_decoded_or_refused(body: bytes, coding: bytes) -> None:
    with contextlib.suppress(InvalidRequest):
        assert len(decompress(body, coding, LIMIT)) <= LIMIT


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=20, max_size=100), st.sampled_from(list(PACK)), st.data())
def test_a_damaged_stream_is_never_taken_for_another(
    content: bytes, coding: bytes, data: st.DataObject
) -> None:
    packed = bytearray(PACK[coding](content))
    at = data.draw(st.integers(0, len(packed) - 1))
    packed[at] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(InvalidRequest):  # a bit of the time in the header does not matter
        assert decompress(bytes(packed), coding, LIMIT) == content


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        (b"gzip", b"gzip"),
        (b"deflate", b"deflate"),
        (b"deflate, gzip", b"gzip"),
        (b"GZIP", b"gzip"),
        (b" gzip ; q=0.5 , deflate", b"gzip"),
        (b"gzip;q=0, deflate", b"deflate"),
        (b"gzip;q=0.000", None),
        (b"gzip; q=0.0", None),
        (b"br, zstd", None),
        (b"identity", None),
        (b"*", None),
        (b"", None),
        (b",,;;==", None),
    ],
)
def test_an_answer_is_coded_as_the_client_accepts(accepted: bytes, chosen: bytes | None) -> None:
    assert choose(accepted) == chosen
