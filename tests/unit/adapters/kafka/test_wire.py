from __future__ import annotations

import pytest

from headrace.adapters.kafka.wire import Unreadable, decode, encode, key
from headrace.domain.chunks import ChunkRef
from headrace.ports.job_queue import Message


def test_a_message_is_read_as_it_was_written() -> None:
    message = Message(ref=ChunkRef("batch_1", 7), failures=2, attempt=5)
    assert decode(encode(message)) == message


def test_a_message_of_a_process_before_attempts_were_told_is_read() -> None:
    raw = b'{"v":1,"job":"batch_1","chunk":7,"failures":2}'
    assert decode(raw) == Message(ref=ChunkRef("batch_1", 7), failures=2)


def test_a_chunk_that_was_handed_back_has_another_key() -> None:
    ref = ChunkRef("batch_1", 7)
    keys = [key(ref, attempt) for attempt in range(5)]
    assert len(set(keys)) == 5
    assert key(ref) == keys[0] == b"batch_1/7"


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "empty"),
        (b"secret", "JSON is malformed"),
        (b'{"job":"\xff","chunk":1}', "UTF-8"),
        (b'{"job":"j"}', "missing required field `chunk`"),
        (b'{"v":2,"job":"j","chunk":1}', r"\$\.v"),
        (b'{"job":"j","chunk":"secret"}', r"Expected `int`.*\$\.chunk"),
        (b"[" * 10_000, "nested too deeply|malformed|Expected `object`"),
        (b" " * 20_000, "20000 bytes, over 16384"),
    ],
)
def test_what_is_no_message_is_told_by_what_is_wrong_and_not_by_what_it_says(
    raw: bytes, why: str
) -> None:
    with pytest.raises(Unreadable, match=why) as told:
        decode(raw)
    assert "secret" not in str(told.value)
