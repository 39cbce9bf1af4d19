"""What a place for artifacts' bytes does, and how it names them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final, Protocol

from headrace.domain.errors import InvalidRequest

#: Below it the platform keeps artifacts; the rest of the store is others'.
FOLDER: Final = "artifacts/"
#: Below it lie the files of batch jobs, each its tenant's alone.
BATCH: Final = "batch/"
CHUNK_BYTES: Final = 1024**2

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_KEY_BYTES: Final = 1024  # the longest key of S3
_SHOWN: Final = 200  # characters of a caller's text in our message


def key(digest: str) -> str:
    """Where the bytes with this SHA-256 lie, relative to the store's root."""
    return f"{FOLDER}sha256/{digest[:2]}/{digest}"


def checked_digest(text: str) -> str:
    """A SHA-256 in lower case, which a path may be made of. Raises InvalidRequest."""
    digest = text.lower().removeprefix("sha256:")
    if not _DIGEST.fullmatch(digest):
        raise InvalidRequest(f"{text[:_SHOWN]!a} is not a SHA-256: 64 hexadecimal digits")
    return digest


def is_digest(text: str) -> bool:
    """Whether an object's name is a digest, so that it may be one of ours."""
    return _DIGEST.fullmatch(text) is not None


def checked_key(uri: str, path: str, *, copy_from: str) -> str:
    """The key that `path`, a part of `uri`, names, if callers may point at it.

    Raises:
        InvalidRequest: it is empty or too long, climbs with `..`, or is not theirs to name.
    """
    parts = path.split("/")
    if not path or len(path.encode()) > _KEY_BYTES or not path.isprintable() or "\\" in path:
        raise InvalidRequest(f"{uri[:_SHOWN]!a} names no object")
    if any(part in {"", ".", ".."} for part in parts):
        raise InvalidRequest(f"{uri[:_SHOWN]!a}: '.', '..' and empty names are not followed")
    if not path.startswith(copy_from):
        raise InvalidRequest(f"{uri[:_SHOWN]!a}: models are only taken from below '{copy_from}'")
    if path.startswith(FOLDER):
        raise InvalidRequest(f"{uri[:_SHOWN]!a} lies where the platform keeps its own artifacts")
    if path.startswith(BATCH):
        raise InvalidRequest(f"{uri[:_SHOWN]!a} lies where the platform keeps files of batch jobs")
    return path


class Objects(Protocol):
    """Bytes by key. Methods raise StoreUnavailable where the store does not answer."""

    async def put(self, file: Path, digest: str) -> None:
        """Keep a file's bytes, all of them or none; the file may be moved away.

        Where they are already, they become young again, see `age_s`.

        Raises:
            StorageFull: there is no room.
        """
        ...

    def read(self, key: str) -> AsyncIterator[bytes]:
        """An object's bytes in order. Raises NotFound where there is no such object."""
        ...

    def find(self, uri: str) -> str:
        """The key of what a caller points at. Raises InvalidRequest where it is not of here."""
        ...

    async def size(self, key: str) -> int:
        """Bytes of an object. Raises NotFound."""
        ...

    async def remove(self, digest: str) -> None:
        """Let go of an artifact's bytes; harmless where there are none."""
        ...

    async def age_s(self, digest: str) -> float | None:
        """See ArtifactStore.age_s."""
        ...

    async def digests(self) -> Sequence[str]:
        """Of all artifacts, sorted."""
        ...
