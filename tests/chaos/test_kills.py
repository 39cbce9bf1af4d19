"""A part of what `make chaos` does: processes that die or stop wherever a job takes them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support import postgres
from tests.support.kafka import apache

_ROOT: Final = Path(__file__).parents[2]
#: Seconds within which a case has to be over, on a machine that runs other tests beside it.
_BOUND: Final = "--bound=60"
_PATIENCE_S: Final = 200.0
_STOP_S: Final = 30.0

pytestmark = pytest.mark.timeout(_PATIENCE_S + 2 * _STOP_S)


def chaos(report: Path, *arguments: str) -> dict[str, Any]:
    """Run the program that `make chaos` runs, and answer its report."""
    command = [
        sys.executable,
        "-m",
        "tests.support.chaos",
        f"--report={report}",
        _BOUND,
        *arguments,
    ]
    program = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=_ROOT
    )
    try:
        said, _ = program.communicate(timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        program.terminate()  # it stops the servers that it has started
        said, _ = program.communicate(timeout=_STOP_S)
    assert program.returncode == 0, said[-5000:]
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def test_wherever_a_process_dies_or_stops_every_row_is_told_once(tmp_path: Path) -> None:
    report = chaos(tmp_path / "report", "--kills=25", "--pauses=3")
    assert report["kills"] >= 25
    assert report["pauses"] >= 3
    assert report["by_shape"].keys() == {"plain", "partial", "retry", "cancel", "duplicates"}


@pytest.mark.skipif(postgres.binaries() is None, reason="NO POSTGRESQL")
@pytest.mark.skipif(bool(apache.missing()), reason=apache.missing() or "there is Kafka")
def test_the_same_holds_on_postgresql_and_kafka_and_s3(tmp_path: Path) -> None:
    report = chaos(tmp_path / "report", "--kind=cluster", "--kills=4", "--shape=partial")
    assert report["kills"] >= 4
