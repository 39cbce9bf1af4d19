"""What `headrace batch` says and asks, where the platform answers as no test could make it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from headrace.cli import main
from headrace.compose import batch_follow
from tests.support.prepared_http import Network, prepared

URL = "/v2/models/m/infer"
BATCH = {
    "id": "batch_1",
    "status": "in_progress",
    "endpoint": URL,
    "completion_window": "24h",
    "created_at": 1,
    "input_file_id": "file-1",
}
ENDED = {
    **BATCH,
    "status": "completed",
    "output_file_id": "file-1o",
    "request_counts": {"total": 1, "completed": 1, "failed": 0},
}
FILE = {"id": "file-1", "bytes": 2}
PAGE = {"data": [], "has_more": False}


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    return prepared(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands are run in: it has rows."""
    monkeypatch.chdir(tmp_path)
    row = {"custom_id": "a", "method": "POST", "url": URL, "body": {}}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path


def batch(*arguments: str, **given: Any) -> Result:
    return CliRunner().invoke(main, ["batch", *arguments], **given)


def refuse(network: Network, status: int, message: str) -> None:
    network.answer(status, {"error": {"message": message, "code": "c"}})


def sent_json(network: Network, place: int) -> Any:
    return json.loads(network.sent[place].partition(b"\r\n\r\n")[2])


def key(network: Network, place: int) -> bytes:
    """The idempotency key of a request."""
    return network.sent[place].partition(b"Idempotency-Key: ")[2].partition(b"\r\n")[0]


def take_upload(network: Network) -> None:
    """Answer all that is asked up to the creation of a batch."""
    for answer in (PAGE, {}, FILE):
        network.answer(200, answer)


def end(network: Network, output: bytes = b"{}") -> None:
    """Answer that the batch has ended, and with what."""
    event = b"data: " + json.dumps(ENDED).encode() + b"\n\n"
    network.raw(b"HTTP/1.1 200 OK\r\n\r\n" + event)
    network.answer(200, FILE)
    network.answer(200, output)


@pytest.mark.parametrize("command", sorted(main.commands["batch"].commands))  # type: ignore[attr-defined]
def test_the_help_of_every_command_has_an_example_of_it(command: str) -> None:
    result = batch(command, "--help")
    assert result.exit_code == 0
    assert f"headrace batch {command} " in result.stdout.partition("Examples:\n")[2]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "--input"),
        (["-i", "nowhere.jsonl"], "does not exist"),
        (["-i", "."], "is a directory"),
        (["-i", "-"], "name a file for the answers with --output"),
        (["-i", "rows.jsonl", "-o", "-"], "has to be a file"),
        (["-i", "rows.jsonl", "-o", "no/where"], "is not a directory"),
        (["-i", "rows.jsonl", "-o", "rows.jsonl"], "rows.jsonl is there already; --fresh"),
        (["-i", "rows.jsonl", "--version", "1"], "--model"),
        (["-i", "rows.jsonl", "--metadata", "x"], "'x' is not as team=search"),
        (["-i", "empty.jsonl"], "empty.jsonl has no rows"),
        (["-i", "other.jsonl"], "expected /v2/models/{model}/infer"),
    ],
)
def test_a_wrong_call_is_told_before_the_platform_is_asked(
    folder: Path, network: Network, options: list[str], told: str
) -> None:
    (folder / "empty.jsonl").touch()
    (folder / "other.jsonl").write_text('{"url": "/v2/x"}')
    before = sorted(folder.iterdir())
    result = batch("run", *options)
    assert result.exit_code == 2
    assert told in result.stderr
    assert (network.sent, sorted(folder.iterdir())) == ([], before)


def test_an_upload_is_remembered_before_its_batch_is_begun(folder: Path, network: Network) -> None:
    take_upload(network)  # and no answer to the creation
    result = batch("run", "-i", "rows.jsonl")
    assert result.exit_code == 2
    assert "closed the connection" in result.stderr
    network.answer(200, BATCH)
    end(network)
    result = batch("run", "-i", "rows.jsonl")
    assert (result.exit_code, (folder / "rows.output.jsonl").read_text()) == (0, "{}")
    uploads = [line for line in network.lines() if line == "POST /v1/files"]
    first, second = [
        place for place, line in enumerate(network.lines()) if line == "POST /v1/batches"
    ]
    assert len(uploads) == 1
    assert key(network, first) == key(network, second) != b""
    assert sent_json(network, second) == {
        "input_file_id": "file-1", "endpoint": URL, "completion_window": "24h",
    }  # fmt: skip


def test_of_a_batch_that_is_refused_nothing_is_left(folder: Path, network: Network) -> None:
    take_upload(network)
    refuse(network, 429, "too many batches")
    network.answer(200, {})
    result = batch("run", "-i", "rows.jsonl")
    assert (result.exit_code, result.stderr) == (1, "headrace: too many batches\n")
    assert network.lines()[-1] == "DELETE /v1/files/file-1"
    assert list(folder.iterdir()) == [folder / "rows.jsonl"]


def test_a_batch_that_is_known_no_more_is_begun_anew_on_purpose(
    folder: Path, network: Network
) -> None:
    take_upload(network)
    network.answer(200, BATCH)
    network.answer(200, BATCH)
    batch("run", "-i", "rows.jsonl", "--no-wait")
    for _ in range(2):  # its events, and itself
        refuse(network, 404, "there is no batch 'batch_1'")
    result = batch("run", "-i", "rows.jsonl")
    assert result.exit_code == 1
    assert "begin anew with --fresh" in result.stderr
    take_upload(network)
    network.answer(200, BATCH)
    end(network)
    result = batch("run", "-i", "rows.jsonl", "--fresh")
    assert (result.exit_code, "batch_1 is left to itself" in result.stderr) == (0, True)
    assert sorted(each.name for each in folder.iterdir()) == ["rows.jsonl", "rows.output.jsonl"]


def test_a_run_is_gone_on_with_at_its_own_platform_only(folder: Path, network: Network) -> None:
    take_upload(network)
    network.answer(200, BATCH)
    network.answer(200, BATCH)
    batch("run", "-i", "rows.jsonl", "--no-wait")
    before = len(network.sent)
    result = batch("run", "-i", "rows.jsonl", "--url", "http://other")
    assert result.exit_code == 2
    assert "is of a run at http://127.0.0.1:8080: name that as --url" in result.stderr
    result = batch("run", "-i", "rows.jsonl", "--model", "n")
    assert "a run for /v2/models/m/infer, not /v2/models/n/infer" in result.stderr
    assert len(network.sent) == before
    assert folder.exists()


def test_ctrl_c_while_rows_are_sent_begins_nothing(
    folder: Path, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    network.failure = KeyboardInterrupt()
    result = batch("run", "-i", "rows.jsonl")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[1:] == ["headrace: interrupted", "nothing was begun"]
    assert list(folder.iterdir()) == [folder / "rows.jsonl"]


def test_a_download_that_breaks_off_goes_on_from_there(
    folder: Path, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_follow, "_FIRST_WAIT_S", 0.0)
    network.answer(200, ENDED)
    network.answer(200, {"id": "file-1o", "bytes": 4})
    network.answer(200, b"ab", {"Content-Length": "4"})
    network.answer(206, b"cd")
    result = batch("results", "batch_1", "--output", "out.jsonl")
    assert result.exit_code == 0, result.stderr
    assert (folder / "out.jsonl").read_bytes() == b"abcd"
    assert b"\r\nRange: bytes=2-\r\n" in network.sent[-1]


def test_what_cannot_be_taken_whole_is_not_saved(folder: Path, network: Network) -> None:
    network.answer(200, ENDED)
    network.answer(200, {"id": "file-1o", "bytes": 4})
    refuse(network, 404, "there is no file 'file-1o'")
    result = batch("results", "batch_1", "--output", "out.jsonl")
    assert (result.exit_code, result.stderr.count("no file 'file-1o'")) == (1, 1)
    assert list(folder.iterdir()) == [folder / "rows.jsonl"]


def test_a_batch_without_answers_has_an_empty_file_of_them(folder: Path, network: Network) -> None:
    network.answer(200, {**BATCH, "status": "cancelled"})
    assert batch("results", "batch_1", "--output", "out.jsonl").exit_code == 1
    assert (folder / "out.jsonl").read_bytes() == b""


def test_a_replay_is_of_the_rows_that_were_given_up(network: Network) -> None:
    network.answer(200, {**BATCH, "id": "batch_2"})
    result = batch("replay", "batch_1")
    assert (result.exit_code, result.stdout) == (0, "batch_2\n")
    assert network.lines() == ["POST /v1/batches/batch_1/retry"]
    assert sent_json(network, 0) == {"codes": ["chunk_dead"]}
    assert key(network, 0)


def test_a_retry_says_only_what_it_is_told(network: Network) -> None:
    for options, content in (
        ([], {}),
        (["--code", "a", "--code", "b"], {"codes": ["a", "b"]}),
        (
            ["--priority", "0", "--metadata", "a=b=c", "--completion-window", "7d"],
            {"priority": 0, "metadata": {"a": "b=c"}, "completion_window": "7d"},
        ),
    ):
        network.answer(200, BATCH)
        assert batch("retry", "batch_1", *options).exit_code == 0
        assert sent_json(network, -1) == content


def test_a_list_ends_at_its_limit(network: Network) -> None:
    items = [{**BATCH, "id": f"b{i}", "status": "failed" if i % 2 else "expired"} for i in range(9)]
    network.answer(200, {"data": items, "has_more": True, "last_id": "b8"})
    result = batch("list", "--state", "failed", "--limit", "3", "--json")
    assert [each["id"] for each in json.loads(result.stdout)] == ["b1", "b3", "b5"]
    network.answer(200, PAGE)
    assert batch("list").stdout == "there is no batch\n"
