from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from headrace.compose.model_file import Damaged, digest, opened, pieces, save
from headrace.domain.errors import InvalidRequest

CONTENT = b"model"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def nobody(_: int) -> None:
    pass


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "iris.onnx"


def test_a_file_is_read_in_pieces_that_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "big"
    file.write_bytes(bytes(600_000))
    counted: list[int] = []
    with opened(file) as stream:
        found = list(pieces(stream, 600_000, counted.append))
    assert b"".join(found) == bytes(600_000)
    assert max(map(len, found)) <= 256 * 1024
    assert sum(counted) == 600_000


def test_a_digest_comes_with_the_first_bytes(place: Path) -> None:
    place.write_bytes(CONTENT)
    with opened(place) as stream:
        assert digest(stream, len(CONTENT), nobody) == (SHA256, b"mode")


def test_a_file_that_becomes_shorter_while_it_is_read_is_told(place: Path) -> None:
    place.write_bytes(CONTENT)
    with opened(place) as stream, pytest.raises(InvalidRequest, match="became shorter"):
        list(pieces(stream, 100, nobody))


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InvalidRequest, match="not a regular file"), opened(pipe):
        pass


def test_what_came_whole_is_in_its_place_alone(place: Path) -> None:
    assert save(place, [b"mo", b"del"], SHA256, nobody, force=False) == SHA256
    assert place.read_bytes() == CONTENT
    assert list(place.parent.iterdir()) == [place]


def test_what_came_damaged_leaves_nothing_behind(place: Path) -> None:
    with pytest.raises(Damaged, match="nothing was saved"):
        save(place, [b"other"], SHA256, nobody, force=False)
    assert list(place.parent.iterdir()) == []


def test_what_came_damaged_leaves_what_was_there(place: Path) -> None:
    place.write_bytes(b"mine")
    with pytest.raises(Damaged):
        save(place, [b"other"], SHA256, nobody, force=True)
    assert place.read_bytes() == b"mine"
    assert list(place.parent.iterdir()) == [place]


def test_a_file_that_appeared_meanwhile_is_not_overwritten(place: Path) -> None:
    place.write_bytes(b"mine")
    with pytest.raises(InvalidRequest, match="is there already; overwrite it with --force"):
        save(place, [CONTENT], SHA256, nobody, force=False)
    assert place.read_bytes() == b"mine"
    assert list(place.parent.iterdir()) == [place]


def test_by_force_a_file_is_replaced_but_nothing_else_is(place: Path) -> None:
    place.write_bytes(b"mine")
    save(place, [CONTENT], SHA256, nobody, force=True)
    assert place.read_bytes() == CONTENT
    place.unlink()
    os.mkfifo(place)
    with pytest.raises(InvalidRequest, match="not a regular file"):
        save(place, [CONTENT], SHA256, nobody, force=True)


def test_a_folder_that_is_not_there_is_told(place: Path) -> None:
    with pytest.raises(InvalidRequest, match="No such file or directory"):
        save(place / "below" / "x", [CONTENT], SHA256, nobody, force=False)
