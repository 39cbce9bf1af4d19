from __future__ import annotations

from typing import Any

import pytest

from headrace.batch.settings import BatchSettings


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_file_bytes": 0}, "max_file_bytes must be at least 1"),
        ({"follow_poll_s": 0.0}, "follow_poll_s must be more than 0"),
        ({"chunk_s": 0.0}, "chunk_s must be more than 0"),
        ({"sweep_s": -1.0}, "sweep_s must be 0 or more"),
        ({"model_patience_s": -1.0}, "model_patience_s must be 0 or more"),
        ({"orphan_age_s": 0.0}, "orphan_age_s must be more than 0"),
        ({"max_jobs_per_tenant": -1}, "max_jobs_per_tenant must be 0 or more"),
        ({"max_files_per_tenant": -1}, "max_files_per_tenant must be 0 or more"),
        ({"max_stored_bytes_per_tenant": -1}, "max_stored_bytes_per_tenant must be 0 or more"),
        ({"max_row_bytes": 10, "chunk_bytes": 9}, "a row has to fit into a chunk"),
        ({"min_window_s": 10, "max_window_s": 9}, "max_window_s 9 is under"),
        ({"max_attempts": 11}, "max_attempts_limit 10 is under"),
    ],
)
def test_settings_that_nothing_could_be_done_with_are_refused(
    given: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        BatchSettings(**given)
