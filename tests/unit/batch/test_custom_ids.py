from __future__ import annotations

import errno
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest

from headrace.batch.custom_ids import CustomIds
from headrace.domain.errors import HeadraceError, StorageFull, StoreUnavailable


class Alike(str):
    """Text whose hash is that of all others."""

    __slots__ = ()

    def __hash__(self) -> int:
        return 7


def _repeated(ids: list[str], *, run: int) -> frozenset[int]:
    with CustomIds(run=run) as custom_ids:
        for custom_id in ids:
            custom_ids.add(custom_id)
        return custom_ids.repeated()


@pytest.mark.parametrize(("run", "count"), [(1, 60), (7, 200), (999, 5_000), (100_000, 5_000)])
def test_what_comes_twice_is_found_wherever_it_lies(run: int, count: int) -> None:
    ids = [f"id-{n}" for n in range(count)]
    again = [ids[0], ids[57], ids[-1]]
    chosen = random.Random(3)
    for _ in range(3):
        shuffled = [*ids, *again]
        chosen.shuffle(shuffled)
        assert _repeated(shuffled, run=run) == {hash(custom_id) for custom_id in again}
    assert _repeated(ids, run=run) == frozenset()


@pytest.mark.parametrize("run", [2, 100])
def test_the_first_and_the_last_of_all_hashes_are_found(run: int) -> None:
    class Extreme(str):
        __slots__ = ()

        def __hash__(self) -> int:
            return -(2**63) if self == "least" else 2**63 - 1

    ends = [Extreme("least"), Extreme("most")]
    assert _repeated([*ends, "a", "b", *ends], run=run) == {-(2**63), 2**63 - 1}


def test_nothing_at_all_is_not_repeated() -> None:
    assert _repeated([], run=2) == frozenset()


def test_ids_of_one_hash_are_answered_for_another_look() -> None:
    assert _repeated([Alike("a"), Alike("b"), "c"], run=2) == {7}


def test_what_is_answered_is_bounded_however_often_ids_come_twice() -> None:
    ids = [f"id-{n}" for n in range(30_000)]
    for run in (1_000, 100_000):
        assert 100 < len(_repeated(ids * 2, run=run)) < 20_000


# --- where they are set aside --------------------------------------------------------------------


def test_what_is_set_aside_is_in_the_folder_that_is_made_for_it_and_has_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[Path] = []
    opened = tempfile.TemporaryFile

    def noted(**given: Any) -> Any:
        folders.append(given["dir"])
        return opened(**given)

    monkeypatch.setattr(tempfile, "TemporaryFile", noted)
    folder = tmp_path / "data" / "here"
    with CustomIds(run=2, folder=folder) as custom_ids:
        custom_ids.add_all(["a", "b", "c", "a"])
        assert custom_ids.repeated() == {hash("a")}
        assert folders == [folder]
        assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, StorageFull), (errno.EIO, StoreUnavailable)]
)
def test_a_disk_that_takes_nothing_is_told_of_by_what_it_lacks(
    number: int, kind: type[HeadraceError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def write(self, _: object) -> None:
            raise OSError(number, "so it is")

        def close(self) -> None:
            raise OSError(number, "so it is still")

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full())
    with CustomIds(run=2, folder=tmp_path) as custom_ids, pytest.raises(kind, match="custom ids"):
        custom_ids.add_all(["a", "b"])
