from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.compose.batch_results import REFUSED, STDOUT, Places
from headrace.compose.batch_views import Batch, Counts, Problem, Problems, StoredFile
from headrace.compose.batch_wait import finish
from headrace.compose.models_output import Output
from headrace.compose.platform_client import Read
from headrace.domain.errors import InvalidRequest


class _Client:
    """Files by their ids."""

    def __init__(self, **files: bytes) -> None:
        self._files = files

    def file(self, id_: str) -> Read[StoredFile]:
        return Read(StoredFile(id=id_, bytes=len(self._files[id_])), {})

    @contextlib.contextmanager
    def content(self, id_: str, *, start: int = 0) -> Iterator[Iterator[bytes]]:
        yield iter([self._files[id_][start:]])


def _failed(message: str, **fields: Any) -> Read[Batch]:
    batch = Batch(
        id="batch_1", status="failed", endpoint="/v2/models/m/infer", completion_window="24h",
        created_at=1, input_file_id="file-1", errors=Problems((Problem("code", message),)),
        **fields,
    )  # fmt: skip
    return Read(batch, {})


def test_a_batch_whose_input_is_gone_has_the_answers_that_it_got(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = _failed(
        "the input file is gone", output_file_id="out", error_file_id="err",
        request_counts=Counts(total=4, completed=1, failed=1),
    )  # fmt: skip
    client: Any = _Client(out=b"an answer\n", err=b"an error\n")
    places = Places(tmp_path / "out", tmp_path / "err")
    assert finish(client, Output(as_json=False), ended, places) == REFUSED
    assert (tmp_path / "out").read_bytes() == b"an answer\n"
    assert (tmp_path / "err").read_bytes() == b"an error\n"
    shown = capsys.readouterr()
    assert "batch_1 is failed: 1 of 4 rows completed, 1 failed" in shown.out
    assert "the input file is gone" in shown.err
    assert "retry" not in shown.out  # which would need the input


def test_a_batch_that_was_refused_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = Places(tmp_path / "out", tmp_path / "err")
    client: Any = _Client()
    assert finish(client, Output(as_json=False), _failed("no rows"), places) == REFUSED
    assert list(tmp_path.iterdir()) == []
    assert "no row was run" in capsys.readouterr().out


def test_stdin_and_stdout_may_be_the_files_that_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rows"
    file.touch()
    with file.open() as read, file.open("a") as written:
        monkeypatch.setattr("sys.stdin", read)
        with pytest.raises(InvalidRequest, match=r"--input - and --output .*rows are the same"):
            Places(file, None).require_apart(reads=True)
        monkeypatch.setattr("sys.stdout", written)
        with pytest.raises(InvalidRequest, match=r"--output - and --errors .*rows are the same"):
            Places(STDOUT, file).require_apart()
        Places(file, tmp_path / "other").require_apart()
    Places(file, tmp_path / "other").require_apart(reads=True)  # stdin is closed


def test_a_retry_never_overwrites_what_came_meanwhile(tmp_path: Path) -> None:
    ended = Batch(
        id="batch_1", status="completed", endpoint="/v2/models/m/infer", completion_window="24h",
        created_at=1, input_file_id="file-1", output_file_id="out",
        request_counts=Counts(total=1, completed=1),
    )  # fmt: skip
    client: Any = _Client(out=b"an answer\n")
    (tmp_path / "out").write_bytes(b"precious")
    places = Places(tmp_path / "out", None)
    with pytest.raises(InvalidRequest, match="is something else"):
        finish(client, Output(as_json=True), Read(ended, {}), places)
    assert [(tmp_path / "out").read_bytes()] == [each.read_bytes() for each in tmp_path.iterdir()]
    forced = Places(tmp_path / "out", None, overwrites=True)
    assert finish(client, Output(as_json=True), Read(ended, {}), forced) == 0
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"an answer\n"]
