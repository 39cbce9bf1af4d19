"""What has to be true of a job that has ended, whatever happened underway."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec

from tests.support.chaos.shapes import Shape


class Job(msgspec.Struct):
    """A job as the API tells of it, and the rows that it was given."""

    told: dict[str, Any]
    rows: list[int]

    @property
    def id(self) -> str:
        return str(self.told["id"])


def check_job(shape: Shape, job: Job, read: Callable[[str], bytes]) -> None:
    """Every row exactly once, with the right answer, in the rows' order; and the counts.

    Raises:
        AssertionError: says what is wrong.
    """
    told = job.told
    allowed = {"completed", "cancelled"} if shape.cancelled else {"completed"}
    assert told["status"] in allowed, f"{job.id} is {told['status']}: {told}"
    answers = _lines(read, told["output_file_id"])
    failures = _lines(read, told["error_file_id"])
    found = [*answers, *failures]
    assert len(set(found)) == len(found), (
        f"told twice: {sorted(x for x in found if found.count(x) > 1)}"
    )
    assert sorted(found) == sorted(job.rows), f"rows {sorted(found)}, wanted {job.rows}"
    for kind, lines in (("answers", answers), ("failures", failures)):
        assert list(lines) == sorted(lines), f"the {kind} are not in order: {list(lines)}"
    for row, line in answers.items():
        [output] = line["response"]["body"]["outputs"]
        assert output["data"] == [shape.value(row) * 2], f"row {row}: {line}"
        assert row not in shape.refused, f"row {row} was refused and has an answer"
    for row, line in failures.items():
        code = (line["error"] or {}).get("code") or line["response"]["body"]["error"]["code"]
        right = {"invalid_request"} if row in shape.refused else set()
        if told["status"] == "cancelled":
            right = {*right, "batch_cancelled"}
        assert code in right, f"row {row} failed with {code!r}: {line}"
    counts = told["request_counts"]
    wanted = {"total": len(job.rows), "completed": len(answers), "failed": len(failures)}
    assert counts == wanted, f"counts {counts}, wanted {wanted}"


def _lines(read: Callable[[str], bytes], file: str | None) -> dict[int, dict[str, Any]]:
    """Lines by the numbers of their rows, in the order of the file."""
    if file is None:
        return {}
    lines: dict[int, dict[str, Any]] = {}
    for text in read(file).splitlines():
        line = json.loads(text)
        row = int(line["custom_id"].removeprefix("row-"))
        assert row not in lines, f"row {row} is in {file} twice"
        lines[row] = line
    return lines
