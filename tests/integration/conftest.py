"""Servers that several files of tests talk to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import s3
from tests.support.s3_proxy import Proxy, proxying
from tests.support.triton import Triton, running


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A real Triton with every model of `tests/support/triton_models`, once for each process.

    A test that stops it, freezes it or ends a model's program starts one of its own: `running`.
    """
    with running(tmp_path_factory.mktemp("triton")) as server:
        yield server


@pytest.fixture(scope="module")
def s3_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An object store for a file of tests, each of which has a prefix of its own there."""
    with s3.seaweed(tmp_path_factory.mktemp("seaweed")) as url:
        yield url


@pytest.fixture
def proxy(s3_url: str) -> Iterator[Proxy]:
    """The same, through a proxy that can fail."""
    with proxying(s3_url) as proxy:
        yield proxy
