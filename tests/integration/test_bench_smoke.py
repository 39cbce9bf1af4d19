"""The measurements run to their end. What they find is never asserted."""

from __future__ import annotations

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from bench import child, cores
from bench.failure import BenchFailure
from bench.load import LoadOutcome, LoadTask

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


class _Overloaded(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_an_answer_other_than_200_ends_the_run_instead_of_being_counted() -> None:
    with HTTPServer(("127.0.0.1", 0), _Overloaded) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        task = LoadTask(
            port=server.server_port,
            request=b"GET / HTTP/1.1\r\nHost: test\r\n\r\n",
            connections=1,
            warm_up_s=0.1,
            seconds=0.1,
            server_pid=1,
        )
        try:
            with pytest.raises(BenchFailure, match="503, not 200"):
                child.run("bench.load", task, LoadOutcome, on=cores.choose().load, timeout_s=30)
        finally:
            server.shutdown()
