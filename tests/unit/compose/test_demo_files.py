from __future__ import annotations

import os
from pathlib import Path

import pytest

from headrace.compose import demo_files
from headrace.compose.demo_files import pick


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("something")


def names(folder: Path, count: int) -> list[str]:
    return [str(file.relative_to(folder)) for file in pick(folder, count)]


def test_every_kind_is_there_before_any_kind_is_there_twice(tmp_path: Path) -> None:
    write(tmp_path, "a.py", "b.py", "c.PY", "deep/er/x.md", "Makefile", "deep/LICENSE")

    assert names(tmp_path, 4) == ["Makefile", "a.py", "deep/LICENSE", "deep/er/x.md"]
    assert names(tmp_path, 5) == ["Makefile", "a.py", "b.py", "deep/LICENSE", "deep/er/x.md"]


def test_the_file_nearest_to_the_top_stands_for_its_kind(tmp_path: Path) -> None:
    write(tmp_path, "a/b/first.py", "z.py")

    assert names(tmp_path, 1) == ["z.py"]


def test_folders_of_tools_are_left_alone(tmp_path: Path) -> None:
    write(
        tmp_path,
        ".git/config",
        ".venv/x.py",
        "venv/x.py",
        "node_modules/x.js",
        "src/__pycache__/x.pyc",
        ".ci/run",
        ".gitignore",
    )

    assert names(tmp_path, 99) == [".ci/run", ".gitignore"]


def test_empty_files_links_and_pipes_are_not_picked(tmp_path: Path) -> None:
    write(tmp_path, "real.txt")
    (tmp_path / "empty.md").touch()
    (tmp_path / "link.json").symlink_to("real.txt")
    (tmp_path / "circle").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")

    assert names(tmp_path, 99) == ["real.txt"]


def test_a_folder_that_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    assert pick(tmp_path / "gone", 3) == []


def test_no_more_than_a_bounded_number_of_entries_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_files, "_LOOKED_AT", 10)
    write(tmp_path, *(f"{folder}/{file}.x" for folder in "abc" for file in range(5)))

    assert len(names(tmp_path, 99)) == 7  # three folders, then as many files as are left
