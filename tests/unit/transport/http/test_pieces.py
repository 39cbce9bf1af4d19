from __future__ import annotations

from headrace.transport.http.pieces import Pieces


def test_the_parts_of_a_body_are_the_reads_that_brought_it() -> None:
    pieces = Pieces()
    reads: list[bytes | memoryview] = [b"ab", memoryview(b"cd"), b""]
    for read in reads:
        pieces.add(read)
    assert all(part is read for part, read in zip(pieces.parts, reads, strict=True))


def test_a_body_in_very_many_parts_is_whole_and_held_in_few() -> None:
    pieces, sent = Pieces(), bytearray()
    for number in range(10_000):
        read = number.to_bytes(2, "big")
        sent += read
        pieces.add(memoryview(read))
    assert b"".join(pieces.parts) == sent
    assert len(pieces.parts) < 1100


def test_what_was_joined_is_not_copied_again() -> None:
    pieces = Pieces()
    for _ in range(1025):
        pieces.add(b"x")
    (joined,) = pieces.parts
    for _ in range(1025):
        pieces.add(b"y")
    assert pieces.parts[0] is joined
    assert pieces.parts[1:] == [b"y" * 1025]
