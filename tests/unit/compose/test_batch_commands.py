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
        (["-i", "rows.jsonl", "-o", "empty.jsonl"], "empty.jsonl is there already; --fresh"),
        (["-i", "rows.jsonl", "-o", "rows.jsonl"], "are the same file"),
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


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["-o", "rows.jsonl"], "--input rows.jsonl and --output rows.jsonl"),
        (["-o", "out", "--errors", "rows.jsonl"], "--input rows.jsonl and --errors rows.jsonl"),
        (["-o", "out", "--errors", "../{folder}/out"], "--output out and --errors ../"),
        (["-o", "out", "--errors", "out.headrace-batch.json"], "and the run's state out.headrace"),
        (["-o", "hard"], "--input rows.jsonl and --output hard"),
        (["-o", "soft"], "--input rows.jsonl and --output soft"),
        (["-o", "out", "--errors", "soft"], "--input rows.jsonl and --errors soft"),
        (["-o", "dangling", "--errors", "later"], "--output dangling and --errors later"),
    ],
)
def test_places_that_are_one_file_are_refused_before_anything_is_sent(
    folder: Path, network: Network, options: list[str], told: str
) -> None:
    (folder / "hard").hardlink_to(folder / "rows.jsonl")
    (folder / "soft").symlink_to("rows.jsonl")
    (folder / "dangling").symlink_to("later")
    before = (sorted(folder.iterdir()), (folder / "rows.jsonl").read_bytes())
    options = [each.format(folder=folder.name) for each in options]
    result = batch("run", "-i", "rows.jsonl", "--fresh", *options)
    assert result.exit_code == 2
    assert told in result.stderr
    assert "are the same file" in result.stderr
    assert network.sent == []
    assert (sorted(folder.iterdir()), (folder / "rows.jsonl").read_bytes()) == before


def test_results_and_retries_have_their_files_apart_too(folder: Path, network: Network) -> None:
    for command in ("results", "retry"):
        result = batch(command, "batch_1", "-o", "one", "--errors", "./one")
        assert (result.exit_code, "are the same file" in result.stderr) == (2, True)
    assert (network.sent, list(folder.iterdir())) == ([], [folder / "rows.jsonl"])


def test_what_came_to_lie_where_answers_go_stays(folder: Path, network: Network) -> None:
    take_upload(network)
    network.answer(200, BATCH)
    network.answer(200, BATCH)
    batch("run", "-i", "rows.jsonl", "--no-wait")
    for name in ("rows.output.jsonl", "rows.output.jsonl.errors.jsonl"):
        (folder / name).write_text("precious")
    end(network)
    result = batch("run", "-i", "rows.jsonl")
    assert (result.exit_code, "is something else: move it" in result.stderr) == (2, True)
    assert (folder / "rows.output.jsonl").read_text() == "precious"
    (folder / "rows.output.jsonl").write_text("{}")  # as this run left it when it was killed
    end(network)
    result = batch("run", "-i", "rows.jsonl")
    assert (result.exit_code, "is not of this batch" in result.stderr) == (0, True)
    assert (folder / "rows.output.jsonl.errors.jsonl").read_text() == "precious"


def test_a_fresh_run_that_is_gone_on_with_overwrites_as_it_was_told(
    folder: Path, network: Network
) -> None:
    for name in ("rows.output.jsonl", "rows.output.jsonl.errors.jsonl"):
        (folder / name).write_text("of before")
    take_upload(network)
    network.answer(200, BATCH)
    network.answer(200, BATCH)
    batch("run", "-i", "rows.jsonl", "--no-wait", "--fresh")
    end(network)
    result = batch("run", "-i", "rows.jsonl")
    assert (result.exit_code, (folder / "rows.output.jsonl").read_text()) == (0, "{}")
    assert not (folder / "rows.output.jsonl.errors.jsonl").exists()


def test_a_state_that_was_tampered_with_is_told(folder: Path, network: Network) -> None:
    take_upload(network)
    network.answer(200, BATCH)
    network.answer(200, BATCH)
    batch("run", "-i", "rows.jsonl", "--no-wait")
    file = folder / "rows.output.jsonl.headrace-batch.json"
    state, before = json.loads(file.read_text()), len(network.sent)
    for change in (
        {"content": {"input_file_id": "file-1"}},
        {"content": {**state["content"], "endpoint": None}},
        {"content": {**state["content"], "model": "other"}},
        {"content": {**state["content"], "priority": "high"}},
        {"once": "0\r\nX: y"},
        {"once": state["once"] + "\n"},
    ):
        file.write_text(json.dumps({**state, "batch": "", **change}))
        result = batch("run", "-i", "rows.jsonl")
        assert (result.exit_code, len(network.sent)) == (2, before)
        assert "is not the state of a run: begin anew with --fresh" in result.stderr


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


def test_a_run_is_gone_on_with_as_it_was_asked_for_only(folder: Path, network: Network) -> None:
    def run(*options: str) -> Result:
        return batch("run", "-i", "rows.jsonl", "--no-wait", *options)

    take_upload(network)
    network.answer(200, BATCH)
    network.answer(200, BATCH)
    said = ("--priority", "5", "--metadata", "a=b", "--metadata", "c=d")
    assert run(*said).exit_code == 0
    before = len(network.sent)
    for options, told in (
        ((*said[2:], "--priority", "-5"), "with --priority 5, and this has --priority -5: "),
        ((*said, "--max-attempts", "4"), "no --max-attempts, and this has --max-attempts 4"),
        (said[:2], "with --metadata a=b --metadata c=d, and this has no --metadata"),
        ((*said, "--completion-window", "7d"), "window 24h, and this has --completion-window 7d"),
        ((), "--priority 5, --metadata a=b --metadata c=d, and this has no --priority, no --meta"),
    ):
        result = run(*options)
        assert result.exit_code == 2
        assert told in result.stderr
        assert "begin anew with --fresh, or name another --output" in result.stderr
    assert len(network.sent) == before
    (folder / "rows.jsonl").write_text('{"inputs": []}\n')  # as for a run with --model
    assert "say with --model whose inputs" in run(*said).stderr
    assert len(network.sent) == before


@pytest.mark.parametrize(
    ("code", "begins"), [("model_not_found", False), ("not_found", True), (None, True)]
)
def test_whether_a_model_that_is_not_here_may_be_run_is_for_the_platform_to_say(
    folder: Path, network: Network, code: str | None, *, begins: bool
) -> None:
    network.answer(200, PAGE)
    network.answer(404, {"error": "model 'm' is not found"})
    network.answer(404, {"error": {"message": "no", "code": code}} if code else b"<html>")
    for answer in (FILE, BATCH, BATCH):
        network.answer(200, answer)
    result = batch("run", "-i", "rows.jsonl", "--no-wait")
    assert (result.stdout, result.exit_code) == (("batch_1\n", 0) if begins else ("", 1))
    assert ("'m' is not found; `headrace models list`" in result.stderr) is not begins
    assert sent_json(network, 2) == {
        "input_file_id": "", "endpoint": URL, "completion_window": "24h",
    }  # fmt: skip
    assert ("POST /v1/files" in network.lines()) is begins
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


@pytest.mark.parametrize(
    ("content", "size", "told"),
    [
        (b"five\n", 10, "file file-1o has 10 bytes, and 5 came"),
        (b"one\ntwo\n", 4, "file file-1o has 4 bytes, and 8 or more came"),
        (b"one\ntwo\n", 8, "file file-1o should tell of 1 row, and it has 2 lines"),
        (b"", 0, "file file-1o should tell of 1 row, and it has 0 lines"),
    ],
)
def test_a_download_that_is_not_the_whole_file_is_not_taken_for_it(
    folder: Path, network: Network, content: bytes, size: int, told: str
) -> None:
    for options in (["--output", "out.jsonl"], []):
        network.answer(200, ENDED)
        network.answer(200, {"id": "file-1o", "bytes": size})
        network.answer(200, content)
        result = batch("results", "batch_1", *options)
        assert (result.exit_code, told in result.stderr) == (1, True), result.stderr
    assert list(folder.iterdir()) == [folder / "rows.jsonl"]


def test_answers_that_are_in_no_file_are_missed(folder: Path, network: Network) -> None:
    network.answer(200, {**ENDED, "output_file_id": None})
    result = batch("results", "batch_1", "--output", "out.jsonl")
    assert (result.exit_code, "1 row for out.jsonl, and no file" in result.stderr) == (1, True)
    assert list(folder.iterdir()) == [folder / "rows.jsonl"]


@pytest.mark.parametrize("field", ["created_at", "in_progress_at", "expires_at"])
def test_a_time_that_no_calendar_has_is_no_platforms(network: Network, field: str) -> None:
    for at in (10**20, -(10**20), 10**12, 10**400):
        network.answer(200, {**BATCH, field: at})
        result = batch("show", "batch_1")
        assert (result.exit_code, "is not a Headrace platform's" in result.stderr) == (2, True)


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


def test_a_list_of_all_goes_on_to_its_end(network: Network) -> None:
    for page in range(3):
        items = [{**BATCH, "id": f"b{page}-{i}"} for i in range(20)]
        network.answer(200, {"data": items, "has_more": page < 2, "last_id": f"b{page}-19"})
    result = batch("list", "--all", "--json")
    assert len({each["id"] for each in json.loads(result.stdout)}) == 60
    assert network.lines()[-1] == "GET /v1/batches?limit=100&after=b1-19"


def test_all_that_goes_on_is_cancelled_by_one_command(network: Network) -> None:
    states = ["validating", "completed", "in_progress", "cancelling", "finalizing"]
    pages = [states[:3], states[3:]]
    for number, page in enumerate(pages):
        items = [{**BATCH, "id": f"b_{state}", "status": state} for state in page]
        last = {"has_more": number == 0, "last_id": items[-1]["id"]}
        network.answer(200, {"data": items, **last})
    network.answer(200, {**BATCH, "id": "b_validating", "status": "cancelling"})
    refuse(network, 503, "the store does not answer")
    refuse(network, 409, "batch 'b_finalizing' is completed")  # meanwhile
    result = batch("cancel", "--all-open")
    assert network.lines()[2:] == [
        f"POST /v1/batches/b_{state}/cancel" for state in (states[0], states[2], states[4])
    ]
    assert result.stdout.startswith("b_validating is cancelling: ")
    assert result.stderr.splitlines() == [
        "batch 'b_finalizing' is completed", "headrace: the store does not answer",
    ]  # fmt: skip
    assert result.exit_code == 1
    network.answer(200, PAGE)
    result = batch("cancel", "--all-open")
    assert (result.stdout, result.exit_code) == ("there is no batch that goes on\n", 0)


def test_of_several_batches_those_that_have_ended_are_no_error(network: Network) -> None:
    refuse(network, 409, "batch 'a' is completed")
    network.answer(200, {**BATCH, "id": "b", "status": "cancelling"})
    result = batch("cancel", "a", "b", "--json")
    assert [each["id"] for each in json.loads(result.stdout)] == ["b"]
    assert result.exit_code == 0
    for wrong in ((), ("a", "--all-open")):
        assert "name batches, or all with --all-open" in batch("cancel", *wrong).stderr


def test_an_operator_names_the_tenant(network: Network) -> None:
    items = [{**BATCH, "id": f"b_{name}", "tenant": name} for name in ("a", "b")]
    page = {"data": items, "has_more": False}
    network.answer(200, page)
    listed = batch("list", "--tenant", "*").stdout
    assert "tenant" in listed
    assert "b_a" in listed
    network.answer(200, page)
    for item in items:
        network.answer(200, item)
    assert batch("cancel", "--all-open", "--tenant", "*").exit_code == 0
    network.answer(200, items[0])
    assert batch("cancel", "b_a", "--tenant", "a").exit_code == 0
    network.answer(200, items[0])
    refuse(network, 404, "there is no file")
    assert "tenant       a" in batch("show", "b_a", "--tenant", "a").stdout
    assert network.lines()[1:-1] == [
        "GET /v1/batches?limit=100&tenant=%2A",
        "POST /v1/batches/b_a/cancel?tenant=a",
        "POST /v1/batches/b_b/cancel?tenant=b",
        "POST /v1/batches/b_a/cancel?tenant=a",
        "GET /v1/batches/b_a?tenant=a",
    ]
