"""The object stores that the suite runs on: each test has one of its own, empty."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from headrace.adapters.artifacts.batch_objects import object_store
from headrace.adapters.artifacts.settings import LocalArtifacts, S3Artifacts
from headrace.ports.object_store import ObjectStore
from tests.support import s3
from tests.support.memory_objects import MemoryObjects


@pytest.fixture(scope="session")
def s3_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One store for the whole run; started when a test first asks for it."""
    with s3.seaweed(tmp_path_factory.mktemp("seaweed")) as url:
        yield url


@pytest.fixture(params=["memory", "local", "s3"])
def again(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], ObjectStore]:
    """Gives the store, each time as another process would have it."""
    if request.param == "memory":
        memory = MemoryObjects()
        return lambda: memory
    if request.param == "local":
        return lambda: object_store(LocalArtifacts(), data_dir=tmp_path)
    settings = S3Artifacts(
        bucket=s3.BUCKET,
        prefix=uuid.uuid4().hex,
        endpoint=request.getfixturevalue("s3_url"),
        region="us-east-1",
        access_key_id=s3.ACCESS_KEY,
        secret_access_key=s3.SECRET_KEY,
    )
    return lambda: object_store(settings, data_dir=tmp_path)


@pytest.fixture
async def store(again: Callable[[], ObjectStore]) -> AsyncIterator[ObjectStore]:
    opened = again()
    yield opened
    await opened.close()
