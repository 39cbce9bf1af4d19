"""The batch measurements run to their end. What they find is never asserted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from bench import batch_rows, child, cores, page, workload
from bench.batch_bare import BareOutcome, BareTask
from bench.batch_client import BatchClient
from bench.batch_jobs import JobsOutcome, JobsTask
from bench.failure import BenchFailure
from bench.server import Server, serving

_ROOT = Path(__file__).resolve().parents[2]


def test_a_quick_run_ends_with_every_table_and_a_part_of_the_page(tmp_path: Path) -> None:
    report = tmp_path / "page.md"
    page.write(report, "# Others\n\nstay\n")
    done = subprocess.run(
        [sys.executable, "-m", "bench.batch", "--quick", "--report", report],
        cwd=_ROOT, capture_output=True, text=True, check=False, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = report.read_text("utf-8")
    assert written.startswith("# Others\n\nstay\n")
    for row in (
        "| bare loop, orjson |", "| headrace |", "| headrace × 2 |", "of 1 row,",
        "100/s of 10 rows", "### Online requests", "### Memory while 20,000 rows",
    ):  # fmt: skip
        assert row in written


def test_the_bare_loop_answers_what_the_platform_answers(tmp_path: Path) -> None:
    work = workload.make("mlp", tmp_path / "repository")
    rows = batch_rows.write(work, 130, tmp_path / "rows.jsonl")
    output = tmp_path / "bare.jsonl"
    task = BareTask(rows.path, str(output), str(work.file), "orjson")
    outcome = child.run(
        "bench.batch_bare", task, BareOutcome, on=cores.choose().measured, timeout_s=60
    )
    assert outcome.rows == 130
    bare = [_answer(line) for line in output.read_bytes().splitlines()]
    with (
        serving("headrace", work.repository, tmp_path / "log", on=cores.choose().measured) as one,
        BatchClient(one.port) as client,
    ):
        id_ = client.create(client.upload(rows), rows.endpoint)["id"]
        *_, ended = client.looks(id_, every_s=0.05, timeout_s=60)
        content = _content(one, ended["output_file_id"])
        _refuses_jobs_that_do_not_complete(one, client, tmp_path)
    answered = [_answer(line) for line in content.splitlines()]
    assert [name for name, _ in answered] == [name for name, _ in bare]
    for (_, theirs), (_, ours) in zip(bare, answered, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


def _refuses_jobs_that_do_not_complete(server: Server, client: BatchClient, folder: Path) -> None:
    broken = folder / "broken.jsonl"
    broken.write_text("no row\n", "utf-8")
    rows = batch_rows.RowsFile(str(broken), 1, "mlp")
    file = client.upload(rows)
    id_ = client.create(file, rows.endpoint)["id"]
    with pytest.raises(BenchFailure, match="ended as failed"):
        list(client.looks(id_, every_s=0.05, timeout_s=60))
    task = JobsTask(server.port, file, rows.endpoint, 10, 0.3)
    with pytest.raises(BenchFailure, match="did not end as they should"):
        child.run("bench.batch_jobs", task, JobsOutcome, on=cores.choose().load, timeout_s=60)


def _content(server: Server, file_id: str) -> bytes:
    status, _, body = server.ask("GET", f"/v1/files/{file_id}/content")
    assert status == 200
    return body


def _answer(line: bytes) -> tuple[str, list[float]]:
    row = orjson.loads(line)
    (output,) = row["response"]["body"]["outputs"]
    assert (output["name"], output["shape"]) == ("y", [1, 10])
    return row["custom_id"], output["data"]
