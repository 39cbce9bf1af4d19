from __future__ import annotations

import json

import msgspec
import pytest

from headrace.batch.parts import PartWriter
from headrace.domain.chunks import Part
from headrace.domain.errors import BatchInconsistent, StoreUnavailable
from tests.support.batch_core import failing
from tests.support.memory_objects import MemoryObjects


async def test_a_small_part_is_one_object() -> None:
    objects = MemoryObjects()
    part = PartWriter(objects, "p", held_bytes=10)
    for lines in (b"a\n", b"", b"b\n"):
        await part.write(lines)
    assert objects.objects == {}
    assert await part.end() == Part("p", 4)
    assert objects.objects == {"p": b"a\nb\n"}


async def test_a_line_is_one_to_whoever_splits_text() -> None:
    objects = MemoryObjects()
    part = PartWriter(objects, "p")
    rows = [{"custom_id": "a\u2028b\u2029", "body": "\x85é„ü“日本\u2027"}, {"custom_id": "c"}]
    await part.write(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    size = (await part.end()).size_bytes
    text = objects.objects["p"].decode()
    assert [json.loads(line) for line in text.splitlines()] == rows
    assert "é„ü“日本\u2027" in text
    assert size == len(objects.objects["p"])


async def test_a_part_without_lines_is_none() -> None:
    objects = MemoryObjects()
    part = PartWriter(objects, "p")
    await part.write(b"")
    assert await part.end() == Part()
    assert objects.objects == {}


@pytest.mark.parametrize("lines", [4, 5, 9, 50, 51])
async def test_a_large_part_is_not_held_in_memory_and_whole_at_last(lines: int) -> None:
    objects = MemoryObjects()
    written: list[int] = []

    async def put(_: str) -> None:
        written.append(sum(map(len, objects.objects.values())))

    objects.gate = put
    part = PartWriter(objects, "p", held_bytes=10)
    for n in range(lines):
        await part.write(b"%02d\n" % n)
        assert 3 * (n + 1) - sum(map(len, objects.objects.values())) < 10
    whole = b"".join(b"%02d\n" % n for n in range(lines))
    assert await part.end() == Part("p", len(whole))
    assert objects.objects["p"] == whole
    assert all(key.startswith("p") for key in objects.objects)


@pytest.mark.parametrize("held_bytes", [1, 100])
async def test_what_another_wrote_is_neither_replaced_nor_taken_for_ours(held_bytes: int) -> None:
    objects = MemoryObjects()
    for key in ("p", "p.0000"):
        objects.objects[key] = b"another's"
    part = PartWriter(objects, "p", held_bytes=held_bytes)
    with pytest.raises(BatchInconsistent, match="is there already"):
        await _write(part, b"ours")
    assert objects.objects["p"] == b"another's"


async def test_pieces_that_do_not_add_up_are_no_part() -> None:
    objects = MemoryObjects()
    part = PartWriter(objects, "p", held_bytes=1)
    await part.write(b"abc")
    objects.objects["p.0000"] = b"a"
    with pytest.raises(BatchInconsistent, match="1 bytes, and not 3"):
        await part.end()


@pytest.mark.parametrize("name", ["put", "join"])
async def test_a_store_that_does_not_answer_is_told(name: str) -> None:
    objects = MemoryObjects()
    objects.gate = failing(name)
    with pytest.raises(StoreUnavailable):
        await _write(PartWriter(objects, "p", held_bytes=1), b"abc")


async def _write(part: PartWriter, lines: bytes) -> None:
    await part.write(lines)
    await part.end()


async def test_a_long_line_is_an_object_of_its_own() -> None:
    """Others beside it would be copied with it."""
    objects = MemoryObjects()
    part = PartWriter(objects, "p", held_bytes=10)
    for lines in (b"short\n", b"a long line\n", b"end\n"):
        await part.write(lines)
    assert list(objects.objects.values()) == [b"short\n", b"a long line\n"]
    assert await part.end() == Part("p", 22)
    assert objects.objects["p"] == b"short\na long line\nend\n"
