from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from headrace.compose.batch_state import Input, RunState, read_state, state_file, write_state
from headrace.domain.errors import InvalidRequest

STATE = RunState(
    server="http://127.0.0.1:8080",
    input=Input(size_bytes=3, sha256="00", mtime_ns=7),
    content={"input_file_id": "file-1", "endpoint": "/v2/models/m/infer"},
    once="0123456789abcdef" * 2,
)


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = state_file(tmp_path / "out.jsonl")
    assert file == tmp_path / "out.jsonl.headrace-batch.json"
    assert read_state(file) is None
    for each in (STATE, msgspec.structs.replace(STATE, batch="b")):
        write_state(file, each)
        assert read_state(file) == each
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("text", [b"", b"\xff", b"{}", b'{"server": 1}'])
def test_a_file_that_is_no_state_is_told_with_the_way_out(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "state"
    file.write_bytes(text)
    with pytest.raises(InvalidRequest, match="begin anew with --fresh"):
        read_state(file)


def test_a_state_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot be written"):
        write_state(tmp_path / "absent" / "state", STATE)
