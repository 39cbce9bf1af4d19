from __future__ import annotations

from pathlib import Path

import pytest

from tools import openapi


def test_the_committed_document_is_up_to_date() -> None:
    assert openapi.main(["--check"]) == 0, "run python -m tools.openapi"


def test_a_stale_document_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "openapi.json"
    assert openapi.main(["--check"], file=file) == 1
    assert "out of date" in capsys.readouterr().err
    assert openapi.main([], file=file) == 0
    assert openapi.main(["--check"], file=file) == 0
