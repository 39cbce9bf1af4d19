"""The measurements run to their end. What they find is never asserted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def _bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        cwd=_ROOT, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip


def test_a_quick_run_ends_with_a_row_for_every_server(tmp_path: Path) -> None:
    report = tmp_path / "benchmarks.md"
    done = _bench("--quick", "--only", "tiny", "--report", str(report))
    assert done.returncode == 0, done.stderr
    rows = [line.split()[:3] for line in done.stdout.splitlines()]
    for server, wire in (("headrace", "json"), ("headrace", "binary"), ("naive", "json")):
        for connections in ("1", "16", "64"):
            assert [server, wire, connections] in rows
    assert "| headrace | json | 64 |" in report.read_text("utf-8")


def test_a_name_that_nothing_has_is_refused_with_the_names_there_are() -> None:
    done = _bench("--only", "nonsense")
    assert done.returncode == 2
    assert "tiny/headrace/json/c64" in done.stderr
