from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from headrace.adapters.artifacts.folders import Folders
from headrace.domain.errors import InvalidRequest
from tests.support.archives import zipped

DIGEST = "ab" + "0" * 62


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path / "root", max_unpacked_bytes=10_000)


def _bytes(folders: Folders, data: bytes) -> Path:
    file = folders.passing()
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(data)
    return file


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_found_once_it_is_made(folders: Folders, tmp_path: Path) -> None:
    assert folders.find(DIGEST) is None
    made = folders.make(DIGEST, _bytes(folders, b"model"), "onnx")
    assert made == folders.find(DIGEST) == tmp_path / "root" / DIGEST
    assert _names(made) == [".contents.json", "model.onnx"]
    assert _names(made.parent) == [DIGEST]


def test_a_folder_that_cannot_be_made_leaves_nothing(folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        folders.make(DIGEST, _bytes(folders, b"no archive"), "zip")
    assert _names(tmp_path / "root") == []


def test_a_folder_that_another_has_made_meanwhile_is_taken(
    folders: Folders, tmp_path: Path
) -> None:
    data = zipped({"model.onnx": b"model"})
    first = folders.make(DIGEST, _bytes(folders, data), "zip")
    inode = first.stat().st_ino
    again = folders.make(DIGEST, _bytes(folders, data), "zip")
    assert again.stat().st_ino == inode
    assert _names(tmp_path / "root") == [DIGEST]


def test_files_reach_the_disk_before_the_folder_has_its_name(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a loss of power would leave a folder of empty files, in their full length."""
    done = []
    sync, rename = os.fsync, Path.rename

    def synced(number: int) -> None:
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{number}")))  # noqa: PTH115, PTH119
        sync(number)

    def renamed(path: Path, target: Path) -> Path:
        done.append(f"-> {Path(target).name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    files = {"model.onnx": b"model", "weights.bin": b"w"}
    folders.make(DIGEST, _bytes(folders, zipped(files)), "zip")
    named = done.index(f"-> {DIGEST}")
    assert {"model.onnx", "weights.bin", ".contents.json"} <= set(done[:named])
    assert done[named + 1 :] == ["root"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"model.onnx": "5"}'])
def test_a_list_that_cannot_be_read_is_a_torn_folder(folders: Folders, content: bytes) -> None:
    made = folders.make(DIGEST, _bytes(folders, b"model"), "onnx")
    (made / ".contents.json").write_bytes(content)
    assert folders.find(DIGEST) is None
    assert folders.make(DIGEST, _bytes(folders, b"model"), "onnx") == folders.find(DIGEST)


def test_a_folder_is_removed_in_one_step(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders.make(DIGEST, _bytes(folders, b"model"), "onnx")
    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", lambda *_, **__: None)  # a crash before the files go
        folders.discard(DIGEST)
    assert folders.find(DIGEST) is None
    assert not (tmp_path / "root" / DIGEST).exists()
    folders.discard(DIGEST)  # harmless


def test_a_sweep_takes_what_is_old_and_nothing_with_a_name(
    folders: Folders, tmp_path: Path
) -> None:
    folders.sweep(older_than_s=0)  # nothing there yet
    made = folders.make(DIGEST, _bytes(folders, b"model"), "onnx")
    old, fresh = _bytes(folders, b"old"), _bytes(folders, b"fresh")
    folder = folders.passing()
    folder.mkdir()
    (folder / "x").write_bytes(b"x")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_bytes(b"x")
    link = folders.passing()
    link.symlink_to(tmp_path / "kept")
    long_ago = time.time() - 100
    for path in (old, folder, made):
        os.utime(path, (long_ago, long_ago))
    os.utime(link, (long_ago, long_ago), follow_symlinks=False)
    folders.sweep(older_than_s=50)
    assert _names(tmp_path / "root") == sorted([DIGEST, fresh.name])
    assert folders.find(DIGEST) == made
    assert (tmp_path / "kept" / "file").exists()


def test_a_link_of_the_right_length_is_no_file(folders: Folders) -> None:
    made = folders.make(DIGEST, _bytes(folders, b"model"), "onnx")
    (made / "model.onnx").unlink()
    (made / "model.onnx").symlink_to("other")
    assert folders.find(DIGEST) is None
