"""What holds for all tests: none touches what the person who runs them has at home."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# Tests start programs while clients of theirs talk gRPC; its fork handlers would break the child
# between fork and exec. It has to be said before the first test module imports grpc.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


@pytest.fixture(scope="session", autouse=True)
def _own_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Platforms that a test starts without a word about their data keep it in a new place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data-home")))
        yield
