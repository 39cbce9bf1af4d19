"""Objects in a directory of this machine.

Not obstore's LocalStore: that does not sync to the disk before it renames, and tells of a full
disk in words only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import unquote, urlsplit

from headrace.adapters.artifacts import objects
from headrace.adapters.artifacts.failures import disk
from headrace.adapters.artifacts.settings import LocalArtifacts
from headrace.adapters.artifacts.thread import on_thread
from headrace.domain.errors import InvalidRequest, NotFound

#: Below the root: what is being written. It is on the same file system, so that it can be moved.
INCOMING: Final = ".incoming"

_SHOWN: Final = 200


class Directory:
    """Objects below `root`; a key is a relative path. `now` is in seconds since 1970."""

    def __init__(
        self, root: Path, *, copy_from: str = "", now: Callable[[], float] = time.time
    ) -> None:
        self._root = root
        self._copy_from = copy_from
        self._now = now

    async def put(self, file: Path, digest: str) -> None:
        """See Objects.put. `file`, on the same file system and synced, is moved into its place."""
        with disk("store the artifact"):
            await on_thread(self._put, file, digest)

    def _put(self, file: Path, digest: str) -> None:
        place = self._root / objects.key(digest)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.utime(file)  # its age counts from here, not from the last write of a slow upload
        # over what is there: the same bytes, or damaged ones
        file.replace(place)
        sync_directory(place.parent)

    async def read(self, key: str) -> AsyncIterator[bytes]:
        """See Objects.read."""
        with disk("read the artifact"):
            file = await on_thread(open_object, self._root, key)
            with file:
                while chunk := await on_thread(file.read, objects.CHUNK_BYTES):
                    yield chunk

    def find(self, uri: str) -> str:
        """See Objects.find: a path relative to the root, or a `file:` URI of one below it."""
        path = uri
        if ":" in uri:
            parts = urlsplit(uri)
            if parts.scheme != "file" or parts.netloc not in {"", "localhost"}:
                msg = f"{uri[:_SHOWN]!a} is not in this platform's store, which is a directory"
                raise InvalidRequest(f"{msg}; name a path relative to it")
            path = unquote(parts.path)
        if path.startswith("/"):
            root = f"{self._root.absolute()}/"
            if not path.startswith(root):
                raise InvalidRequest(f"{uri[:_SHOWN]!a} is not in this platform's store")
            path = path.removeprefix(root)
        return objects.checked_key(uri, path, copy_from=self._copy_from)

    async def size(self, key: str) -> int:
        """See Objects.size."""
        with disk("read the artifact"):
            file = await on_thread(open_object, self._root, key)
            with file:
                return os.fstat(file.fileno()).st_size

    async def remove(self, digest: str) -> None:
        """See Objects.remove."""
        with disk("remove the artifact"):
            await on_thread((self._root / objects.key(digest)).unlink, missing_ok=True)

    async def age_s(self, digest: str) -> float | None:
        """See Objects.age_s."""
        with disk("read the artifact"):
            try:
                file = await on_thread(open_object, self._root, objects.key(digest))
            except NotFound:
                return None
            with file:
                return self._now() - os.fstat(file.fileno()).st_mtime

    async def digests(self) -> Sequence[str]:
        """See Objects.digests."""
        with disk("list the artifacts"):
            return await on_thread(self._digests)

    def _digests(self) -> list[str]:
        folder = self._root / objects.FOLDER / "sha256"
        return sorted(file.name for file in folder.glob("??/*") if objects.is_digest(file.name))


def root_of(settings: LocalArtifacts, data_dir: Path) -> Path:
    """The directory that the settings mean."""
    return Path(settings.path).absolute() if settings.path else data_dir / "objects"


def open_object(root: Path, key: str) -> BinaryIO:
    """Open a plain file below `root`, no link on the way to it followed. Raises NotFound.

    Each name is looked up in the folder that the one before gave, so nothing that changes
    meanwhile leads elsewhere.
    """
    *folders, name = Path(key).parts
    with contextlib.ExitStack() as opened:
        try:
            at = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
            opened.callback(os.close, at)
            for folder in folders:
                at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
                opened.callback(os.close, at)
            # a pipe would make the open wait for a writer
            number = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)
        except (FileNotFoundError, NotADirectoryError):
            raise _missing(key) from None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _missing(key) from None
            raise
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise _missing(key)
    return os.fdopen(number, "rb")


def sync_directory(folder: Path) -> None:
    """Make the names in a folder outlast a loss of power."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _missing(key: str) -> NotFound:
    return NotFound(f"there is no object {key[:_SHOWN]!a} in the store")
