"""Batch objects in a directory of this machine.

What is written lies beside the objects until it is whole and synced, and then gets its name, which
is synced too: whatever a crash leaves, it is no object.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import BinaryIO, Final, Self

from headrace.adapters.artifacts.batch_keys import checked, checked_prefix, is_prefix
from headrace.adapters.artifacts.directory import INCOMING, open_object, sync_directory
from headrace.adapters.artifacts.failures import disk
from headrace.adapters.artifacts.folders import Folders
from headrace.adapters.artifacts.objects import BATCH
from headrace.adapters.artifacts.spool import create, spool, write
from headrace.adapters.artifacts.thread import on_thread
from headrace.domain.errors import AlreadyExists, NotFound

#: What is read in one visit to a thread: a job's chunk as a whole; longer ranges in pieces, since
#: many of them may be on their way to slow clients.
_WHOLE_BYTES: Final = 8 * 1024**2
_PIECE_BYTES: Final = 1024**2
#: What is joined in one visit, so that threads are shared and who gives up does not wait long.
_STEP_BYTES: Final = 64 * 1024**2
#: Without a write for so long, whoever began a file has died; and so often that is looked for.
_LEFT_S: Final = 3600.0

_KNOWN: Final = 10_000  # folders kept in mind
_LISTED: Final = 1000  # objects that are looked at in one visit

_STORE: Final = "store the object"
_READ: Final = "read the object"
_LIST: Final = "list the objects"
#: The kernel copies between files of this kind only in the older way.
_NOT_RANGES: Final = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class LocalObjects:
    """See ObjectStore. Objects lie below `root` as their keys say. `now` is in seconds."""

    def __init__(self, root: Path, *, now: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._incoming = Folders(root / INCOMING, max_unpacked_bytes=0)
        self._now = now
        self._swept_at: float | None = None
        #: Folders whose names, and those of all above them, a crash leaves.
        self._lasting: set[str] = set()

    async def put(self, key: str, data: bytes) -> None:
        """See ObjectStore.put. The same bytes may be put again, as after an uncertain end."""
        with disk(_STORE):
            await on_thread(self._put, checked(key), data)

    def _put(self, key: str, data: bytes) -> None:
        place, passing = self._root / key, self._passing()
        try:
            with create(passing) as file:
                write(file, data)
                os.fsync(file.fileno())
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(passing, place)  # which, unlike a renaming, never replaces
            except FileExistsError:
                if place.stat().st_size != len(data) or place.read_bytes() != data:
                    raise AlreadyExists(f"there is an object {key!a} in the store") from None
        finally:
            passing.unlink(missing_ok=True)
        self._sync(place)

    async def upload(self, key: str, pieces: AsyncIterator[bytes], *, limit_bytes: int) -> int:
        """See ObjectStore.upload."""
        place = self._root / checked(key)
        with disk(_STORE):
            passing = await on_thread(self._passing)
        size = await spool(pieces, passing, limit_bytes=limit_bytes, subject="file")
        with disk(_STORE):
            await on_thread(self._move_in, passing, place)
        return size

    async def join(self, key: str, parts: Sequence[str]) -> int:
        """See ObjectStore.join."""
        steps = self._joined([checked(part) for part in parts], self._root / checked(key))
        with disk("join objects"):
            try:
                while (size := await on_thread(_size_at_end, steps)) is None:
                    pass
            except BaseException:
                await on_thread(steps.close)
                raise
        return size

    def _joined(self, parts: Sequence[str], place: Path) -> Generator[None, None, int]:
        """Write the parts to a place, with pauses where they are long; their size."""
        passing, since = self._passing(), 0
        try:
            with create(passing) as file:
                for part in parts:
                    with open_object(self._root, part) as source:
                        while copied := _copy(source, file):
                            since += copied
                            if since >= _STEP_BYTES:
                                yield
                                since = 0
                os.fsync(file.fileno())
                size = file.tell()
        except BaseException:
            passing.unlink(missing_ok=True)
            raise
        self._move_in(passing, place)
        return size

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """See ObjectStore.read. What replaces the object meanwhile is not seen."""
        with disk(_READ):
            reading, data = await on_thread(self._begin, checked(key), start, end)
            with reading:
                while data:
                    yield data
                    data = b"" if reading.is_over else await on_thread(reading.read)

    def _begin(self, key: str, start: int, end: int | None) -> tuple[_Reading, bytes]:
        reading = _Reading(self._open(key), start, end)
        return reading, reading.read()

    async def size(self, key: str) -> int:
        """See ObjectStore.size."""
        with disk(_READ):
            return await on_thread(self._size, checked(key))

    def _size(self, key: str) -> int:
        with self._open(key) as file:
            return os.fstat(file.fileno()).st_size

    def _open(self, key: str) -> BinaryIO:
        """Open an object. Where there is nothing at all, nobody can tell whether it is gone."""
        try:
            return open_object(self._root, key)
        except NotFound:
            if any((self._root / name).is_dir() for name in (INCOMING, BATCH)):
                raise
        raise OSError(errno.ENOENT, "its directory is empty or not there: is its disk mounted?")

    async def keys(
        self, prefix: str, *, older_than_s: float
    ) -> AsyncGenerator[Sequence[str], None]:
        """See ObjectStore.keys. What the dead have left half written is removed on the way."""
        folder = checked_prefix(prefix)
        with disk(_LIST):
            await on_thread(self._sweep_at_times)
            with contextlib.closing(self._listed(folder, time.time() - older_than_s)) as pages:
                while (page := await on_thread(next, pages, None)) is not None:
                    if page:
                        yield page

    def _listed(self, folder: str, latest: float) -> Generator[list[str], None, None]:
        """Keys of what was last written by then, so many objects looked at a time."""
        old: list[str] = []
        for number, (key, written) in enumerate(_files(self._root, folder), 1):
            if written <= latest:
                old.append(key)
            if number % _LISTED == 0:
                yield old
                old = []
        yield old

    async def remove(self, key: str) -> None:
        """See ObjectStore.remove."""
        with disk("remove the object"):
            await on_thread(self._remove_all if is_prefix(key) else self._remove, key)

    def _remove(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            (self._root / key).unlink()

    def _remove_all(self, prefix: str) -> None:
        leaving = self._passing()
        self._forget(str(self._root / prefix))
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            # in one step, so that nobody writes in between; with the slash, only if it is a folder
            os.rename(f"{self._root / prefix}/", leaving)  # noqa: PTH104 - a Path has no such slash
            shutil.rmtree(leaving, ignore_errors=True)  # else it is swept

    async def presigned(self, key: str, expires_s: int) -> str | None:  # noqa: ARG002 - the port's
        """See ObjectStore.presigned."""
        return None

    async def close(self) -> None:
        """See ObjectStore.close."""

    def _passing(self) -> Path:
        """A new path for what is not whole yet."""
        self._sweep_at_times()
        passing = self._incoming.passing()
        passing.parent.mkdir(parents=True, exist_ok=True)
        return passing

    def _sweep_at_times(self) -> None:
        """Remove what the dead have left half written."""
        now = self._now()
        if self._swept_at is None or now - self._swept_at >= _LEFT_S:
            self._swept_at = now
            self._incoming.sweep(older_than_s=_LEFT_S)

    def _move_in(self, passing: Path, place: Path) -> None:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            passing.replace(place)
        except OSError:
            passing.unlink(missing_ok=True)
            raise
        self._sync(place)

    def _forget(self, folder: str) -> None:
        """A folder goes: it is known no more to last, nor is anything below it."""
        lasting = list(self._lasting)  # in one step: other threads change it
        if any(each.startswith(f"{folder}/") for each in lasting):
            self._lasting.clear()
        else:  # as that of most jobs: else the next write would sync all that is above it
            self._lasting.discard(folder)

    def _sync(self, place: Path) -> None:
        """Make a name last, and those of the folders on the way to it, whoever has made them.

        Each costs the disk a flush, so what is known to last is left out.
        """
        made = []
        for folder in place.parents:
            sync_directory(folder)
            if folder == self._root or str(folder) in self._lasting:
                break
            made.append(str(folder))
        if len(self._lasting) >= _KNOWN:
            self._lasting.clear()
        self._lasting.update(made)


class _Reading:
    """A range of an open file. Methods block."""

    def __init__(self, file: BinaryIO, start: int, end: int | None) -> None:
        self._file = file
        size = os.fstat(file.fileno()).st_size
        self._left = max(0, (size if end is None else min(end, size)) - start)
        self._piece_bytes = self._left if self._left <= _WHOLE_BYTES else _PIECE_BYTES
        file.seek(start)

    @property
    def is_over(self) -> bool:
        return self._left == 0

    def read(self) -> bytes:
        data = self._file.read(min(self._piece_bytes, self._left))
        self._left = self._left - len(data) if data else 0
        if self.is_over:
            self._file.close()
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _size_at_end(steps: Generator[None, None, int]) -> int | None:
    """Go one step on; the size once there are no more."""
    try:
        next(steps)
    except StopIteration as end:
        return int(end.value)
    return None


def _files(root: Path, folder: str) -> Iterator[tuple[str, float]]:
    """Keys of the plain files below a folder, and when each was last written; no link is followed.

    A folder's names are read as they are asked for: there may be millions.
    """
    try:
        entries = os.scandir(root / folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        for entry in entries:
            key = folder + entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from _files(root, f"{key}/")
            elif entry.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):
                    yield key, entry.stat(follow_symlinks=False).st_mtime


def _copy(source: BinaryIO, target: FileIO) -> int:
    """Append some of a file's rest to another within the kernel; how much, 0 at its end."""
    try:
        return os.copy_file_range(source.fileno(), target.fileno(), _STEP_BYTES)
    except OSError as error:
        if error.errno not in _NOT_RANGES:
            raise
    return os.sendfile(target.fileno(), source.fileno(), None, _STEP_BYTES)
