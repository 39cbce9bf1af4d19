"""`headrace batch` as its user runs it, against a running platform."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from headrace.cli import main
from tests.support.process import Server, eventually, serving

TOKENS = {"ci": ["admin"], "reader": ["models:read"], "narrow": ["batch", "infer:other"]}
URL = "/v2/models/double/infer"
GATED, FAILING = 7777.0, -1.0
MODEL = f"""
import os, time
from pathlib import Path
from headrace import Model, TensorSpec


class Double(Model):
    inputs = [TensorSpec("x", "FP32", (2,))]
    outputs = [TensorSpec("y", "FP32", (2,))]
    max_batch_size = 8

    def predict(self, inputs):
        x = inputs["x"]
        if (x == {FAILING}).any():
            raise ValueError("it is negative")
        if (x == {GATED}).any():
            gate = Path(os.environ["TEST_GATE"])
            while not gate.exists():
                time.sleep(0.01)
        return {{"y": x * 2}}
"""


class Platform:
    """A platform whose model waits for `gate` where a row says GATED; it can be started again."""

    def __init__(self, folder: Path) -> None:
        self.gate = folder / "gate"
        self.models = folder / "models"
        version = self.models / "double" / "1"
        version.mkdir(parents=True)
        (version / "model.py").write_text(MODEL)
        self._folder = folder
        tokens = {
            name: {"sha256": hashlib.sha256(name.encode()).hexdigest(), "scopes": scopes}
            for name, scopes in TOKENS.items()
        }
        self._environment = {
            "HEADRACE_STORAGE__DATA_DIR": str(folder / "data"),
            "HEADRACE_AUTHENTICATION__TOKENS": json.dumps(tokens),
            "HEADRACE_BATCH__LEASE_S": "1",
            "HEADRACE_BATCH__FOLLOW_POLL_S": "0.05",
            "HEADRACE_BATCH__ROWS__RETRY_BASE_S": "0.01",
            "TEST_GATE": str(self.gate),
        }

    @contextlib.contextmanager
    def running(self, *, port: int = 0) -> Iterator[Server]:
        with serving(
            self.models,
            self._folder / "log",
            f"--http-port={port}",
            environment=self._environment,
        ) as server:
            yield server


class Cli:
    """Runs commands in the present folder, in this process or in one of their own."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.folder = folder
        self._server = server
        self.environment = {"HEADRACE_URL": server.url, "HEADRACE_TOKEN": "ci"}

    def __call__(self, *arguments: str, code: int = 0, caller: str = "ci") -> Result:
        environment = {**self.environment, "HEADRACE_TOKEN": caller}
        result = CliRunner().invoke(main, ["batch", *arguments], env=environment)
        assert result.exit_code == code, (result.stdout, result.stderr)
        assert isinstance(result.exception, SystemExit | None)
        return result

    def json(self, *arguments: str, code: int = 0) -> Any:
        """What a command prints with --json."""
        return json.loads(self(*arguments, "--json", code=code).stdout)

    def begun(self, *arguments: str, **given: Any) -> subprocess.Popen[str]:
        """A command in a process of its own, which is not waited for."""
        return subprocess.Popen(
            [sys.executable, "-m", "headrace", "batch", *arguments],
            cwd=self.folder,
            env={**os.environ, **self.environment},
            text=True,
            stdin=subprocess.DEVNULL,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **given},
        )

    def get(self, path: str) -> Any:
        """What the platform answers, asked without a command."""
        headers = {"Authorization": "Bearer ci"}
        return self._server.request("GET", path, headers=headers).json()

    def kept(self) -> list[Any]:
        """All batches and files of the platform."""
        return [self.get(f"/v1/{what}?limit=100")["data"] for what in ("batches", "files")]

    def write(self, name: str, lines: Sequence[Any]) -> str:
        """A file with a line for each value, in JSON but for what is text."""
        text = [each if isinstance(each, str) else json.dumps(each) for each in lines]
        (self.folder / name).write_text("\n".join(text) + "\n")
        return name

    def read(self, name: str) -> list[Any]:
        """The lines of a file, out of JSON."""
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]

    def ids(self, name: str) -> list[str]:
        """The custom_ids of a file."""
        return [row["custom_id"] for row in self.read(name)]


def body(value: float) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [value, 1.0]}]}


def openai_line(custom_id: str, value: float, url: str = URL) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body(value)}


def answers(cli: Cli, name: str) -> list[float]:
    """The first number of every answer."""
    return [row["response"]["body"]["outputs"][0]["data"][0] for row in cli.read(name)]


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Platform:
    return Platform(tmp_path_factory.mktemp("platform"))


@pytest.fixture(scope="module")
def server(platform: Platform) -> Iterator[Server]:
    with platform.running() as running:
        yield running


@pytest.fixture
def cli(server: Server, platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.chdir(tmp_path)
    platform.gate.unlink(missing_ok=True)
    return Cli(server, tmp_path)


def state(cli: Cli, output: str) -> Any:
    """What is known of a run that is not over; None where nothing is."""
    try:
        return json.loads((cli.folder / f"{output}.headrace-batch.json").read_text())
    except FileNotFoundError:
        return None


def started(cli: Cli, output: str) -> str:
    """The batch of a run, once its rows are run."""

    def found() -> str | None:
        known = state(cli, output)
        if not known or not known["batch"]:
            return None
        status = cli.get(f"/v1/batches/{known['batch']}")["status"]
        return str(known["batch"]) if status == "in_progress" else None

    return str(eventually(found, timeout_s=30.0))


# Run


def test_bodies_are_run_and_called_by_their_lines(cli: Cli) -> None:
    rows = cli.write("rows.jsonl", [body(1), "", body(2), body(3) | {"custom_id": "mine"}])
    result = cli("run", "--model", "double", "--input", rows, "--output", "out.jsonl")
    assert cli.ids("out.jsonl") == ["1", "3", "mine"]
    assert answers(cli, "out.jsonl") == [2.0, 4.0, 6.0]
    assert "is completed: 3 of 3 rows completed" in result.stdout
    assert "out.jsonl has the answers of 3 rows" in result.stdout
    assert sorted(file.name for file in cli.folder.iterdir()) == ["out.jsonl", "rows.jsonl"]


def test_lines_of_an_openai_file_need_no_model_and_the_output_lies_beside(cli: Cli) -> None:
    rows = cli.write("rows.jsonl", [openai_line("a", 1), openai_line("b", 2)])
    told = cli.json("run", "-i", rows, "--metadata", "team=search", "--priority", "-2")
    assert told["saved"] == {"output": "rows.output.jsonl"}
    assert (told["batch"]["metadata"], told["batch"]["priority"]) == ({"team": "search"}, -2)
    assert cli.ids("rows.output.jsonl") == ["a", "b"]
    version = cli.write("v.jsonl", [openai_line("a", 1)["body"]])
    one = cli.json("run", "-i", version, "-m", "double", "--version", "1")
    assert one["batch"]["endpoint"] == "/v2/models/double/versions/1/infer"


def test_rows_may_come_through_a_pipe(cli: Cli) -> None:
    script = (
        f"echo '{json.dumps(body(5))}' | \"{sys.executable}\" -m headrace batch run "
        "--model double --input - --output out.jsonl"
    )
    environment = {**os.environ, **cli.environment}
    for answer, code in ((True, 0), (False, 2)):
        ran = subprocess.run(
            ["sh", "-c", script], check=False, capture_output=True, cwd=cli.folder, env=environment
        )
        assert ran.returncode == code, ran.stderr
        assert answer is not (b"--fresh overwrites it" in ran.stderr)
    assert answers(cli, "out.jsonl") == [10.0]


def test_rows_that_fail_are_told_by_the_exit_code_and_a_file(cli: Cli) -> None:
    rows = cli.write("rows.jsonl", [body(1), body(FAILING), {"nothing": 1}])
    result = cli("run", "-m", "double", "-i", rows, "-o", "out.jsonl", code=3)
    assert "1 of 3 rows completed, 2 failed" in result.stdout
    assert "headrace batch retry batch_" in result.stdout
    assert cli.ids("out.jsonl") == ["1"]
    assert cli.ids("out.jsonl.errors.jsonl") == ["2", "3"]
    # a later run of good rows leaves no errors of this one
    cli.write("rows.jsonl", [body(1)])
    cli("run", "-m", "double", "-i", rows, "-o", "out.jsonl", "--fresh")
    assert not (cli.folder / "out.jsonl.errors.jsonl").exists()


def test_what_is_wrong_with_a_file_is_told_with_its_lines(cli: Cli) -> None:
    rows = cli.write(
        "rows.jsonl",
        [openai_line("a", 1), "no JSON", openai_line("c", 1, "/v2/x"), openai_line("a", 1)],
    )
    result = cli("run", "-i", rows, code=1)
    assert "is failed: no row was run" in result.stdout
    for line, code in ((2, "invalid_json_line"), (3, "mismatched_url")):
        assert f"rows.jsonl line {line}: " in result.stderr
        assert f"({code})" in result.stderr
    assert list(cli.folder.iterdir()) == [cli.folder / rows]  # so that it can be run once mended
    batch = cli.get("/v1/batches?limit=1")["data"][0]["id"]
    assert "line 2: " in cli("show", batch).stdout


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["-m", "doubel"], "'doubel' is not found; `headrace models list`"),
        (["-m", "double", "--version", "9"], "9"),
        (["-m", "double", "--priority", "11"], "priority: expected -10 to 10"),
    ],
)
def test_a_run_that_cannot_be_leaves_nothing(cli: Cli, options: list[str], told: str) -> None:
    rows = cli.write("rows.jsonl", [body(1)])
    before = cli.kept()
    assert told in cli("run", "-i", rows, *options, code=1).stderr
    assert list(cli.folder.iterdir()) == [cli.folder / rows]
    assert cli.kept() == before


def test_who_may_not_use_batches_is_told_the_scope(cli: Cli) -> None:
    rows = cli.write("rows.jsonl", [body(1)])
    run = ("run", "-m", "double", "-i", rows)
    assert "lacks the scope batch" in cli(*run, caller="reader", code=1).stderr
    assert "infer" in cli(*run, caller="narrow", code=1).stderr
    assert "HEADRACE_TOKEN" in cli("list", caller="wrong", code=1).stderr


# Go on


def test_after_ctrl_c_the_same_command_goes_on_with_its_batch(cli: Cli, platform: Platform) -> None:
    rows = cli.write("rows.jsonl", [body(1), body(GATED)])
    run = ("run", "-m", "double", "-i", rows, "-o", "out.jsonl")
    first = cli.begun(*run)
    batch = started(cli, "out.jsonl")
    first.send_signal(signal.SIGINT)
    _, told = first.communicate(timeout=20.0)
    assert first.returncode == 130, told
    for line in (f"{batch} goes on", "the same command again", f"headrace batch cancel {batch}"):
        assert line in told
    assert "Traceback" not in told
    assert f"{batch} is in_progress" in cli("results", batch, code=1).stderr
    # another input, or another model, is another run
    cli.write("other.jsonl", [body(1), body(1234)])
    other = cli("run", "-m", "double", "-i", "other.jsonl", "-o", "out.jsonl", code=2)
    assert "another input: begin anew with --fresh" in other.stderr
    platform.gate.touch()
    os.utime(cli.folder / rows, ns=(1, 1))  # a file that was copied is the same by its content
    again = cli(*run)
    assert f"going on with {batch}" in again.stderr
    assert batch in again.stdout
    assert cli.ids("out.jsonl") == ["1", "2"]
    assert state(cli, "out.jsonl") is None


def test_a_run_outlives_a_platform_that_is_killed_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    platform = Platform(tmp_path)
    with platform.running() as server:
        port = server.port
        cli = Cli(server, tmp_path)
        rows = cli.write("rows.jsonl", [body(1), body(GATED)])
        run = cli.begun("run", "-m", "double", "-i", rows, "-o", "out.jsonl")
        started(cli, "out.jsonl")
        server.stop(signal.SIGKILL)
        platform.gate.touch()
    with platform.running(port=port):
        _, told = run.communicate(timeout=60.0)
    assert run.returncode == 0, told
    assert "; trying again" in told
    assert cli.ids("out.jsonl") == ["1", "2"]


def test_without_waiting_the_id_is_all_that_is_printed(cli: Cli) -> None:
    rows = cli.write("rows.jsonl", [body(4)])
    result = cli("run", "-m", "double", "-i", rows, "-o", "out.jsonl", "--no-wait")
    batch = result.stdout.strip()
    assert batch.startswith("batch_")
    assert cli("run", "-m", "double", "-i", rows, "-o", "out.jsonl", "--no-wait").stdout == (
        result.stdout
    )
    took = cli("results", batch, "--wait")
    assert json.loads(took.stdout)["response"]["body"]["outputs"][0]["data"][0] == 8.0


def test_a_bar_shows_rows_to_whoever_watches(cli: Cli, platform: Platform) -> None:
    rows = cli.write("rows.jsonl", [body(1)] * 20 + [body(GATED)])
    ours, theirs = pty.openpty()
    run = cli.begun("run", "-m", "double", "-i", rows, "-o", "out.jsonl", stderr=theirs)
    os.close(theirs)
    seen = b""
    while b"of 21 rows" not in seen:
        seen += os.read(ours, 4096)
    platform.gate.touch()
    with contextlib.suppress(OSError):  # which is how a terminal ends
        while piece := os.read(ours, 4096):
            seen += piece
    os.close(ours)
    stdout, _ = run.communicate(timeout=20.0)
    assert run.returncode == 0
    assert b"in_progress" in seen
    assert "21 of 21 rows completed" in stdout


# Look, change, take


def test_a_batch_is_listed_shown_and_cancelled(cli: Cli, platform: Platform) -> None:
    rows = cli.write("rows.jsonl", [body(GATED)])
    run = cli.begun("run", "-m", "double", "-i", rows, "-o", "out.jsonl")
    batch = started(cli, "out.jsonl")
    table = cli("list", "--state", "in_progress").stdout
    assert batch in table
    assert "double" in table
    assert batch not in cli("list", "--state", "completed", "--limit", "100").stdout
    shown = cli("show", batch)
    for line in ("rows         1, of which 0 completed", "in progress  20", "input        file-"):
        assert line in shown.stdout
    assert "cancell" in cli("cancel", batch).stdout
    platform.gate.touch()
    stdout, told = run.communicate(timeout=20.0)
    assert run.returncode == 1, told
    assert f"{batch} is cancelled" in stdout
    assert "is completed" in cli("cancel", _completed(cli), code=1).stderr
    assert "there is no batch" in cli("show", "batch_x", code=1).stderr


def _completed(cli: Cli) -> str:
    rows = cli.write("completed.jsonl", [body(1)])
    return str(cli.json("run", "-m", "double", "-i", rows)["batch"]["id"])


def test_failed_rows_are_run_again_and_saved(cli: Cli) -> None:
    rows = cli.write("rows.jsonl", [body(1), body(FAILING), {"nothing": 1}])
    batch = cli.json("run", "-m", "double", "-i", rows, code=3)["batch"]["id"]
    new = cli("retry", batch).stdout.strip()
    shown = cli.json("results", new, "--wait", "--errors", "all.jsonl", code=3)
    assert shown["batch"]["retry_of"] == batch
    assert cli.ids("all.jsonl") == ["2", "3"]
    wanted = cli.read("all.jsonl")[1]["error"]["code"]
    cli("retry", batch, "--code", wanted, "--errors", "one.jsonl", code=3)
    assert cli.ids("one.jsonl") == ["3"]
    assert "failed with chunk_dead" in cli("replay", batch, code=1).stderr
    assert "none failed" in cli("retry", _completed(cli), code=1).stderr


def test_results_go_to_stdout_or_to_files(cli: Cli) -> None:
    rows = cli.write("rows.jsonl", [body(1), body(FAILING)])
    batch = cli.json("run", "-m", "double", "-i", rows, code=3)["batch"]["id"]
    lines = cli("results", batch, code=3).stdout.splitlines()
    assert [json.loads(line)["custom_id"] for line in lines] == ["1"]
    cli("results", batch, "--output", "a.jsonl", "--errors", "b.jsonl", code=3)
    assert (cli.ids("a.jsonl"), cli.ids("b.jsonl")) == (["1"], ["2"])
    again = cli("results", batch, "-o", "a.jsonl", code=2)
    assert "a.jsonl is there already; --force overwrites it" in again.stderr
    cli("results", batch, "-o", "a.jsonl", "--force", code=3)
    assert "stdout is taken" in cli("results", batch, "--json", code=2).stderr
