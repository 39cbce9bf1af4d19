"""Servers that several files of tests talk to, started once for each process of the tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.triton import Triton, running


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A real Triton with every model of `tests/support/triton_models`.

    A test that stops it, freezes it or ends a model's program starts one of its own: `running`.
    """
    with running(tmp_path_factory.mktemp("triton")) as server:
        yield server
