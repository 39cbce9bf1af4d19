"""Triton's measurements run to their end. What they find is never asserted."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from bench import cores, grpc_frames, load, page
from bench.failure import BenchFailure
from bench.load import LoadTask
from tests.support import triton

_ROOT = Path(__file__).resolve().parents[2]


def test_a_quick_run_ends_with_a_row_for_every_wire_and_a_part_of_the_page(tmp_path: Path) -> None:
    triton.require()
    report = tmp_path / "page.md"
    page.write(report, "# Others\n\nstay\n")
    done = subprocess.run(
        [sys.executable, "-m", "bench.triton", "--quick", "--concurrency=4", "--report", report],
        cwd=_ROOT, capture_output=True, text=True, check=False, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line.split()[:2] for line in done.stdout.splitlines()]
    for subject, tables in (("direct", 4), ("headrace", 5), ("bare", 2), ("empty", 1)):
        assert rows.count([subject, "4"]) == tables
    written = report.read_text("utf-8")
    assert written.startswith("# Others\n\nstay\n")
    assert "| headrace | 4 |" in written


def test_a_page_keeps_the_parts_that_other_programs_wrote(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    page.write(file, "## One\n", part="one")
    page.write(file, "# Own\n")
    page.write(file, "## Two\n", part="two")
    page.write(file, "## One, again\n", part="one")
    page.write(file, "# Own, again\n")
    text = file.read_text("utf-8")
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == ["# Own, again", "## One, again", "## Two"]


class _Handler(grpc.GenericRpcHandler):  # type: ignore[misc]  # the library ships no types
    """Answers everything with what it was sent, or with a status."""

    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code

    def service(self, _: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._answer)

    def _answer(self, message: bytes, context: Any) -> bytes:
        context.set_code(self._code)
        return message


def _put_on(code: grpc.StatusCode, message: bytes) -> load.LoadOutcome:
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, handlers=[_Handler(code)])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            task = LoadTask(
                port=port,
                request=grpc_frames.request("/any/Method", message, {"authorization": "x" * 200}),
                connections=8,
                warm_up_s=0.1,
                seconds=0.1,
                server_pid=1,
            )
            return load.put_on(task, on=cores.choose().load, program="bench.grpc_load")
        finally:
            server.stop(None).wait()


@pytest.mark.parametrize("size_bytes", [0, 10_000, 60_000])
def test_a_load_of_grpc_goes_on_where_it_has_to_wait_for_the_servers_window(
    size_bytes: int,
) -> None:
    outcome = _put_on(grpc.StatusCode.OK, bytes(size_bytes))
    assert outcome.requests > 8


def test_a_status_other_than_ok_ends_the_run_instead_of_being_counted() -> None:
    with pytest.raises(BenchFailure, match="no success"):
        _put_on(grpc.StatusCode.UNAVAILABLE, b"")
