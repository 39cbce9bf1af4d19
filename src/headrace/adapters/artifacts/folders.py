"""Artifacts as folders of this machine, made whole or not at all."""

from __future__ import annotations

import os
import shutil
import stat
import time
import uuid
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace.adapters.artifacts import archive
from headrace.adapters.artifacts.directory import sync_directory
from headrace.domain.catalog import Format
from headrace.domain.errors import InvalidRequest

#: Written last; archives cannot have it, since hidden files are left out.
_CONTENTS: Final = ".contents.json"
_PASSING: Final = "."  # names of what is being made or removed begin with it


class Folders:
    """`<root>/<digest>/` for each artifact. Methods block."""

    def __init__(self, root: Path, *, max_unpacked_bytes: int) -> None:
        self._root = root
        self._max_unpacked_bytes = max_unpacked_bytes

    def passing(self) -> Path:
        """A new path on the same file system, for what is not whole yet."""
        return self._root / f"{_PASSING}{uuid.uuid4().hex}"

    def find(self, digest: str) -> Path | None:
        """The artifact's folder, if it is there with every file in its length."""
        folder = self._root / digest
        try:
            contents = msgspec.json.decode((folder / _CONTENTS).read_bytes(), type=dict[str, int])
            whole = all(_is_plain(folder / name, size) for name, size in contents.items())
        except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
            return None
        return folder if whole else None

    def make(self, digest: str, file: Path, format: Format) -> Path:
        """Turn an artifact's bytes, checked ones, into its folder; takes `file` away.

        Raises:
            InvalidRequest: the bytes are not of the format, or an archive that is refused.
            OSError: the disk failed.
        """
        making = self.passing()
        making.mkdir(parents=True)
        try:
            if format == "zip":
                archive.unpack(file, making, max_bytes=self._max_unpacked_bytes)
                file.unlink()
            else:
                with file.open("rb") as opened:
                    # else one digest could stand for two folders
                    if opened.read(len(archive.MAGIC)) == archive.MAGIC:
                        msg = "this is a ZIP archive, not an ONNX file; give its format as 'zip'"
                        raise InvalidRequest(msg)
                file.rename(making / archive.MODEL)
            _write_contents(making)
            return self._move_in(making, digest)
        finally:
            _remove_tree(making)
            file.unlink(missing_ok=True)

    def _move_in(self, making: Path, digest: str) -> Path:
        place = self._root / digest
        if self.find(digest) is None:
            self.discard(digest)  # torn: a crash, or somebody's hand
        try:
            making.rename(place)
        except OSError:
            if self.find(digest) is None:  # else another process was quicker
                raise
        sync_directory(self._root)
        return place

    def discard(self, digest: str) -> None:
        """Remove an artifact's folder; harmless where there is none."""
        leaving = self.passing()
        try:
            # in one step: half a folder would be taken for one
            (self._root / digest).rename(leaving)
        except FileNotFoundError:
            return
        _remove_tree(leaving)

    def sweep(self, *, older_than_s: float) -> None:
        """Remove what a process that died has left half made."""
        if not self._root.is_dir():
            return
        oldest = time.time() - older_than_s
        for path in self._root.glob(f"{_PASSING}*"):
            try:
                left = path.lstat().st_mtime <= oldest
            except FileNotFoundError:
                continue
            if left and path.is_dir() and not path.is_symlink():
                _remove_tree(path)
            elif left:
                path.unlink(missing_ok=True)


def _is_plain(file: Path, size: int) -> bool:
    found = file.lstat()
    return stat.S_ISREG(found.st_mode) and found.st_size == size


def _write_contents(folder: Path) -> None:
    contents: dict[str, Any] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            file = Path(parent, name)
            contents[str(file.relative_to(folder))] = file.stat().st_size
        sync_directory(Path(parent))
    with (folder / _CONTENTS).open("xb") as opened:
        opened.write(msgspec.json.encode(contents))
        opened.flush()
        os.fsync(opened.fileno())
    sync_directory(folder)


def _remove_tree(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
