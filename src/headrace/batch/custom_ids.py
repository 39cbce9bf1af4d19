"""Whether any of very many custom ids comes twice, in bounded memory."""

from __future__ import annotations

import contextlib
import errno
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

import numpy as np
import numpy.typing as npt

from headrace.domain.errors import StorageFull, StoreUnavailable

_RUN: Final = 200_000  # hashes that are held in memory; more take the loop for too long to sort
_HASH: Final = np.dtype(np.int64)
#: Hashes that are looked for again: so many are never all of ids that differ.
_MOST: Final = 10_000
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CustomIds:
    """Remembers hashes, some of them in memory and the others sorted in a temporary file.

    Python's hashes of text are salted in each process: nobody can prepare ids that collide. What
    has the same hash need not be the same: who asks looks at those again.

    The file is in `folder`, which is made where it is not there; None: where the system has such
    files. It has no name there, and goes with the process. Every method but `__exit__` raises
    StorageFull where there is no room for it, and StoreUnavailable where the disk fails otherwise.
    """

    def __init__(self, *, run: int = _RUN, folder: Path | None = None) -> None:
        self._run = run
        self._folder = folder
        self._recent: list[int] = []
        self._lengths: list[int] = []  # of the sorted runs in the file
        self._file: IO[bytes] | None = None

    def add(self, custom_id: str) -> None:
        """Remember one."""
        self._recent.append(hash(custom_id))
        if len(self._recent) >= self._run:
            self._spill()

    def add_all(self, custom_ids: Iterable[str]) -> None:
        """Remember some."""
        self._recent.extend(map(hash, custom_ids))
        if len(self._recent) >= self._run:
            self._spill()

    def repeated(self) -> frozenset[int]:
        """Hashes that came more than once: all of them, or so many that some are of equal ids."""
        if self._file is None and len(set(self._recent)) == len(self._recent):
            return frozenset()
        found: set[int] = set()
        for part in self._parts():
            part.sort()
            found.update(part[1:][part[1:] == part[:-1]][:_MOST].tolist())
            if len(found) >= _MOST:
                break
        return frozenset(found)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # what could not be written is not needed any more
                self._file.close()

    def _spill(self) -> None:
        run = np.sort(np.array(self._recent, _HASH))
        with _disk():
            if self._file is None:
                self._file = _opened(self._folder)
            self._file.write(run.data)
            self._file.flush()
        self._lengths.append(len(run))
        self._recent.clear()

    def _parts(self) -> Iterator[npt.NDArray[np.int64]]:
        """All hashes, a range of values at a time, each about as large as a run."""
        recent = np.sort(np.array(self._recent, _HASH))
        if self._file is None:
            yield recent
            return
        runs: list[npt.NDArray[Any]] = [recent]
        at = 0
        for length in self._lengths:
            runs.append(np.memmap(self._file, _HASH, "r", at * _HASH.itemsize, (length,)))
            at += length
        bounds = np.linspace(-(2.0**63), 2.0**63, len(runs) + 1)
        low = [0] * len(runs)
        for bound in bounds[1:-1].tolist():
            high = [int(np.searchsorted(run, np.int64(int(bound)))) for run in runs]
            yield np.concatenate([r[a:b] for r, a, b in zip(runs, low, high, strict=True)])
            low = high
        yield np.concatenate([r[a:] for r, a in zip(runs, low, strict=True)])


def _opened(folder: Path | None) -> IO[bytes]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=folder)


@contextlib.contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = "the custom ids of a large file cannot be set aside"
        if error.errno in _FULL:
            msg = f"{what}: there is no room on the disk of the data directory; free some"
            raise StorageFull(msg) from error
        raise StoreUnavailable(f"{what}: {error.strerror or type(error).__name__}") from error
