from __future__ import annotations

import pytest

from headrace.domain.errors import EndpointFailed
from headrace.transport.openai.event_stream import EventReader, event

STREAM = b': here\n\ndata: {"a": 1}\n\nevent: x\r\ndata:two\r\ndata: lines\r\n\r\ndata: [DONE]\n\n'
EVENTS = [b'{"a": 1}', b"two\nlines", b"[DONE]"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, len(STREAM)])
def test_events_are_the_same_however_they_are_cut_into_pieces(size: int) -> None:
    reader = EventReader(limit_bytes=100)
    pieces = [STREAM[i : i + size] for i in range(0, len(STREAM), size)]
    assert [data for piece in pieces for data in reader.feed(piece)] == EVENTS


def test_an_event_that_has_not_ended_is_none() -> None:
    assert not list(EventReader(limit_bytes=100).feed(b"data: 1\n"))


@pytest.mark.parametrize("piece", [b"data: " + b"x" * 10, b"data: x\n"])
def test_an_event_that_has_no_end_is_not_held_for_ever(piece: bytes) -> None:
    reader = EventReader(limit_bytes=100)
    with pytest.raises(EndpointFailed, match="over 100 bytes"):
        _feed(reader, piece)


def test_what_is_written_is_read_again() -> None:
    reader = EventReader(limit_bytes=100)
    assert list(reader.feed(event(b"two\nlines") + event(b"[DONE]"))) == [b"two\nlines", b"[DONE]"]


def _feed(reader: EventReader, piece: bytes) -> None:
    for _ in range(1000):
        list(reader.feed(piece))
