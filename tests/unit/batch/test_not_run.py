from __future__ import annotations

import pytest

from headrace.batch.not_run import not_run
from headrace.domain.jobs import Ending


@pytest.mark.parametrize(
    ("ending", "dead", "code"),
    [
        ("expired", False, "batch_expired"),
        ("cancelled", False, "batch_cancelled"),
        ("completed", True, "chunk_dead"),
        ("expired", True, "chunk_dead"),
        ("cancelled", True, "chunk_dead"),
    ],
)
def test_rows_that_did_not_run_are_told_why(ending: Ending, dead: bool, code: str) -> None:  # noqa: FBT001
    error = not_run(ending, dead=dead)
    assert error.code == code
    assert not error.retryable
