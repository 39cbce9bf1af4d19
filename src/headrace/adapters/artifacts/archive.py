"""A ZIP archive with a model, unpacked without trust in anything that it says of itself.

The layout: `model.onnx`, the files with its external data, and optionally `config.toml` or
`config.pbtxt`, label files and a `warmup` folder. All of it may lie in one enclosing folder, as
archivers make it of a folder. Hidden files and what macOS adds are left out.
"""

from __future__ import annotations

import os
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from headrace.domain.errors import InvalidRequest

MODEL: Final = "model.onnx"
MAGIC: Final = b"PK\x03\x04"
MAX_ENTRIES: Final = 1000
MAX_RATIO: Final = 100  # unpacked to packed; weights seldom shrink to a half
FREE_BYTES: Final = 64 * 1024**2  # which may be unpacked whatever the ratio

_MAX_DIRECTORY_BYTES: Final = 1024**2  # zipfile reads the list of entries as a whole
_MAX_PATH_BYTES: Final = 512
_MAX_NAME_BYTES: Final = 255  # of one part, as file systems have it
_MAX_DEPTH: Final = 8
_CHUNK_BYTES: Final = 1024**2
_SHOWN: Final = 100
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others take memory as they please
_ENCRYPTED: Final = 0x1 | 0x40  # flag bits: encrypted; strongly so
#: In a name they mean something to a shell, to Windows or to ONNX Runtime, which takes external
#: data with asterisks in its name for an address in memory.
_FORBIDDEN: Final = frozenset('\\:*?"<>|')
_CODE: Final = frozenset({".py", ".pyc", ".pyo", ".pyd", ".so", ".dll", ".dylib"})
_PICKLES: Final = frozenset({".pkl", ".pickle", ".joblib", ".pt", ".pth"})

_END: Final = struct.Struct("<4s4H2LH")
_END64: Final = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64: Final = struct.Struct("<4sLQL")

Place = tuple[zipfile.ZipInfo, PurePosixPath]


def unpack(archive: Path, folder: Path, *, max_bytes: int) -> None:
    """Write the archive's files below `folder`, an empty one, and sync them. Blocks.

    What is written when it raises is the caller's to remove.

    Raises:
        InvalidRequest: it is no archive, breaks a rule above, or unpacks to over `max_bytes`.
        OSError: the disk failed.
    """
    with archive.open("rb") as file:
        _check_ends(file)
        try:
            with zipfile.ZipFile(file) as opened:
                places = plan(opened.infolist())
                _write(opened, places, folder, _Budget(archive.stat().st_size, max_bytes))
        except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, UnicodeError) as error:
            raise InvalidRequest(f"the archive is damaged: {error}") from error
        except (NotImplementedError, RuntimeError, ValueError, OverflowError) as error:
            raise InvalidRequest(f"the archive cannot be unpacked: {error}") from error


def plan(entries: Sequence[zipfile.ZipInfo]) -> list[Place]:
    """Which entries are written, and where, relative to the model's folder.

    Raises:
        InvalidRequest: an entry has a name that is not allowed, is no plain file, is encrypted or
            there twice, or there is no model.
    """
    if len(entries) > MAX_ENTRIES:
        raise InvalidRequest(f"the archive has over {MAX_ENTRIES} entries")
    places = []
    for entry in entries:
        path = _path(entry)
        _check_kind(entry, path)
        if not _is_folder(entry) and not _is_left_out(path):
            places.append((entry, path))
    places = _without_enclosing_folder(places)
    _check_distinct([path for _, path in places])
    for _, path in places:
        _check_content(path)
    if not any(str(path) == MODEL for _, path in places):
        nested = [str(path.parent) for _, path in places if path.name == MODEL]
        where = f"; it is in '{nested[0]}'" if nested else ""
        raise InvalidRequest(f"the archive has no {MODEL} at its root{where}")
    return places


def looks_pickled(file: Path) -> bool:
    """Whether a file begins and ends as pickles of protocol 2 and later do."""
    with file.open("rb") as opened:
        if opened.read(2) not in {b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"}:
            return False
        opened.seek(-1, os.SEEK_END)
        return opened.read(1) == b"."


class _Budget:
    """Bytes that may still be written."""

    def __init__(self, archive_bytes: int, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._by_ratio = max(FREE_BYTES, archive_bytes * MAX_RATIO)
        self._written = 0

    def spend(self, size: int) -> None:
        self._written += size
        if self._written > self._max_bytes:
            raise InvalidRequest(f"the archive unpacks to over {self._max_bytes} bytes, the limit")
        if self._written > self._by_ratio:
            msg = f"the archive unpacks to over {MAX_RATIO} times its size, as no model does"
            raise InvalidRequest(msg)


def _check_ends(file: BinaryIO) -> None:
    """Refuse a file that is not an archive from its first byte to its last, or has a long list.

    Whatever else could be taken for an archive, or for something else as well, ends here.
    """
    head = file.read(len(MAGIC))
    size = file.seek(0, os.SEEK_END)
    if head != MAGIC:
        empty = head == b"PK\x05\x06"
        raise InvalidRequest("the archive is empty" if empty else "this is not a ZIP archive")
    end = size - _END.size
    if end < 0:
        raise InvalidRequest("the archive is cut off")
    file.seek(end)
    magic, *_, count, length, offset, comment = _END.unpack(file.read(_END.size))
    if magic != b"PK\x05\x06" or comment:
        raise InvalidRequest("the archive is cut off, or has a comment or more behind its end")
    locator = end - _LOCATOR64.size
    if locator >= _END64.size:
        file.seek(locator)
        magic, _, at, _ = _LOCATOR64.unpack(file.read(_LOCATOR64.size))
        if magic == b"PK\x06\x07":
            end = locator - _END64.size
            file.seek(end)
            magic, *_, count, length, offset = _END64.unpack(file.read(_END64.size))
            if magic != b"PK\x06\x06" or at != end:
                raise InvalidRequest("the archive is damaged: its ZIP64 records do not fit")
    if count > MAX_ENTRIES or length > _MAX_DIRECTORY_BYTES:
        raise InvalidRequest(f"the archive has over {MAX_ENTRIES} entries, or long names")
    if offset + length != end:
        raise InvalidRequest("the archive is damaged: its list of entries is not at its end")
    file.seek(0)


def _is_folder(entry: zipfile.ZipInfo) -> bool:
    return entry.orig_filename.endswith("/")  # ZipInfo.is_dir fails where there is no name


def _path(entry: zipfile.ZipInfo) -> PurePosixPath:
    name = entry.orig_filename  # `filename` ends at a NUL
    shown = ascii(name[:_SHOWN])
    text = name.removesuffix("/") if _is_folder(entry) else name
    parts = text.split("/")
    if name.startswith("/") or ".." in parts:
        raise InvalidRequest(f"the archive's entry {shown} leaves the model's folder")
    if any(part in {"", "."} for part in parts):
        raise InvalidRequest(f"the archive's entry {shown} has an empty part in its path")
    if not name.isprintable() or not _FORBIDDEN.isdisjoint(name):
        raise InvalidRequest(f"the archive's entry {shown} has characters that no file may have")
    long = len(text.encode()) > _MAX_PATH_BYTES or len(parts) > _MAX_DEPTH
    if long or any(len(part.encode()) > _MAX_NAME_BYTES for part in parts):
        raise InvalidRequest(f"the archive's entry {shown} has too long a path")
    return PurePosixPath(text)


def _check_kind(entry: zipfile.ZipInfo, path: PurePosixPath) -> None:
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in {0, stat.S_IFDIR if _is_folder(entry) else stat.S_IFREG}:
        raise InvalidRequest(f"the archive's entry '{path}' is a link or a device, not a file")
    if entry.flag_bits & _ENCRYPTED:
        raise InvalidRequest(f"the archive's entry '{path}' is encrypted")
    if entry.compress_type not in _METHODS:
        raise InvalidRequest(f"the archive's entry '{path}' is compressed by other than deflate")


def _is_left_out(path: PurePosixPath) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _without_enclosing_folder(places: list[Place]) -> list[Place]:
    tops = {path.parts[0] for _, path in places}
    if len(tops) != 1 or any(len(path.parts) == 1 for _, path in places):
        return places
    (top,) = tops
    if not any(str(path) == f"{top}/{MODEL}" for _, path in places):
        return places
    return [(entry, path.relative_to(top)) for entry, path in places]


def _check_distinct(paths: Sequence[PurePosixPath]) -> None:
    """Names that some file system takes for one another are one name."""
    files: set[PurePosixPath] = set()
    folders: set[PurePosixPath] = set()
    for path in paths:
        folded = PurePosixPath(unicodedata.normalize("NFKC", str(path)).casefold())
        if folded in files:
            raise InvalidRequest(f"the archive has '{path}' twice, in upper or lower case")
        files.add(folded)
        folders.update(folded.parents)
    both = files & folders
    if both:
        raise InvalidRequest(f"the archive has '{min(both)}' both as a file and as a folder")


def _check_content(path: PurePosixPath) -> None:
    suffix = path.suffix.lower()
    if suffix in _CODE:
        msg = f"the archive has '{path}', which is code; what is uploaded is never run as code"
        raise InvalidRequest(msg)
    if suffix in _PICKLES:
        raise InvalidRequest(_pickled(path))


def _pickled(path: PurePosixPath) -> str:
    return f"the archive has '{path}', a pickle, which is never read; export the model to ONNX"


def _write(
    archive: zipfile.ZipFile, places: Sequence[Place], folder: Path, budget: _Budget
) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    for entry, path in places:
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(entry) as source, open(os.open(place, flags, 0o644), "wb") as target:  # noqa: PTH123 - with O_EXCL
            while data := source.read(_CHUNK_BYTES):
                budget.spend(len(data))
                target.write(data)
            target.flush()
            os.fsync(target.fileno())
        if looks_pickled(place):
            raise InvalidRequest(_pickled(path))
