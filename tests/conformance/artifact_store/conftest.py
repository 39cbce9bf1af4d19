"""The stores that the suite runs on: each test has one of its own, empty."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import obstore
import pytest

from headrace.adapters.artifacts.settings import LocalArtifacts
from headrace.adapters.artifacts.store import Artifacts
from tests.support import s3

LIMIT_BYTES = 32 * 1024**2


class Place(Protocol):
    """A store, and a way to its objects that is not the platform's."""

    artifacts: Artifacts
    data_dir: Path

    def put(self, key: str, data: bytes) -> None: ...

    def keys(self) -> list[str]: ...

    def uri(self, key: str) -> str: ...

    def again(self, now: Callable[[], float] = time.time) -> Artifacts:
        """A store as after a restart, on the same data."""
        ...


class LocalPlace:
    def __init__(self, folder: Path) -> None:
        self.data_dir = folder / "data"
        self._root = self.data_dir / "objects"
        self.artifacts = self.again()

    def again(self, now: Callable[[], float] = time.time) -> Artifacts:
        return Artifacts(
            LocalArtifacts(max_artifact_bytes=LIMIT_BYTES, max_unpacked_bytes=LIMIT_BYTES),
            data_dir=self.data_dir,
            now=now,
        )

    def put(self, key: str, data: bytes) -> None:
        place = self._root / key
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)

    def keys(self) -> list[str]:
        files = (path for path in self._root.rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self._root)) for path in files)

    def uri(self, key: str) -> str:
        return (self._root / key).as_uri()


class S3Place:
    def __init__(self, folder: Path, url: str) -> None:
        self.data_dir = folder / "data"
        self._prefix = uuid.uuid4().hex
        self._url = url
        self._client = s3.client(url)
        self.artifacts = self.again()

    def again(self, now: Callable[[], float] = time.time) -> Artifacts:
        return Artifacts(
            s3.settings(
                self._url,
                self._prefix,
                max_artifact_bytes=LIMIT_BYTES,
                max_unpacked_bytes=LIMIT_BYTES,
            ),
            data_dir=self.data_dir,
            now=now,
        )

    def put(self, key: str, data: bytes) -> None:
        obstore.put(self._client, f"{self._prefix}/{key}", data)

    def keys(self) -> list[str]:
        pages = obstore.list(self._client, self._prefix)
        return sorted(m["path"].removeprefix(f"{self._prefix}/") for page in pages for m in page)

    def uri(self, key: str) -> str:
        return f"s3://{s3.BUCKET}/{self._prefix}/{key}"


@pytest.fixture(scope="session")
def s3_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One store for the whole run; started when a test first asks for it."""
    with s3.seaweed(tmp_path_factory.mktemp("seaweed")) as url:
        yield url


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "local":
        return LocalPlace(tmp_path)
    return S3Place(tmp_path, request.getfixturevalue("s3_url"))
