from __future__ import annotations

from typing import Any

import pytest

from headrace.compose import batch_text as text
from headrace.compose.batch_views import Batch, Counts, Problem, Problems


def batch(**fields: Any) -> Batch:
    given: dict[str, Any] = {
        "id": "b",
        "status": "completed",
        "endpoint": "/v2/models/m/infer",
        "completion_window": "24h",
        "created_at": 1,
        "input_file_id": "file-1",
    }
    return Batch(**{**given, **fields})


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-1, "0 s"),
        (59.4, "59 s"),
        (61, "1 min 1 s"),
        (3599.9, "1 h 0 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_a_time_is_said_in_its_two_largest_units(seconds: float, said: str) -> None:
    assert text.duration(seconds) == said


def test_of_many_problems_the_first_are_shown_and_the_others_counted() -> None:
    problems = tuple(Problem("invalid_json_line", "it is not JSON", n) for n in range(1, 24))
    lines = list(text.problem_lines(batch(errors=Problems(problems)), name="rows.jsonl"))
    assert lines[0] == "rows.jsonl line 1: it is not JSON (invalid_json_line)"
    assert len(lines) == 21
    assert lines[-1].startswith("and 3 more: `headrace batch show b --json`")
    whole = Problems((Problem("empty_file", "the file has no rows"),))
    assert list(text.problem_lines(batch(errors=whole))) == ["the file has no rows (empty_file)"]


def test_the_end_of_a_batch_is_told_with_its_pace() -> None:
    ended = batch(request_counts=Counts(1200, 1199, 1), in_progress_at=100, completed_at=102)
    assert text.end_line(ended) == (
        "b is completed: 1,199 of 1,200 rows completed, 1 failed, in 2 s (600 rows/s)"
    )
    assert text.end_line(batch(request_counts=Counts(1, 1, 0))) == (
        "b is completed: 1 of 1 row completed"
    )
    assert text.end_line(batch(status="failed")) == "b is failed: no row was run"
