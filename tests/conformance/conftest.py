"""What several suites share: platforms whose wire they look at, and a PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import repositories
from tests.support.databases import migrated, postgres
from tests.support.process import Server, serving

__all__ = ["migrated", "postgres"]  # fixtures


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A platform for the clients; a test that changes a model takes one of its own."""
    yield from _platform(tmp_path_factory.mktemp("clients"))


@pytest.fixture(scope="session")
def golden_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A platform that only the golden pairs talk to, so that they can tell all of its state."""
    yield from _platform(tmp_path_factory.mktemp("golden"))


def _platform(folder: Path) -> Iterator[Server]:
    models = repositories.conformance(folder / "models")
    environment = {"HEADRACE_LOG__ACCESS": "all"}  # the sizes of what was on the wire
    with serving(models, folder / "log", environment=environment) as server:
        yield server
