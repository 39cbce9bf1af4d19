"""`headrace models` as its user runs it, against a running platform."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import repositories
from tests.support.archives import zipped
from tests.support.process import Server, eventually, run_cli, serving

TOKEN = "a-token-that-nobody-may-read"
X = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}]}
UNUSED = "http://127.0.0.1:1"


class Cli:
    """Runs commands against one platform, and keeps all that they print."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._folder = folder
        self.printed = ""

    def __call__(
        self, *arguments: str | Path, code: int = 0, token: str = TOKEN, url: str = ""
    ) -> subprocess.CompletedProcess[str]:
        result = run_cli(
            ["models", *map(str, arguments)],
            environment={"HEADRACE_URL": url or self._url, "HEADRACE_TOKEN": token},
            cwd=self._folder,
        )
        assert result.returncode == code, result.stderr
        self.printed += result.stdout + result.stderr
        return result

    def json(self, *arguments: str | Path, code: int = 0) -> Any:
        """What a command prints with --json."""
        return json.loads(self(*arguments, "--json", code=code).stdout)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("platform")
    models = folder / "models"
    models.mkdir()
    tokens = {"ci": hashlib.sha256(TOKEN.encode()).hexdigest()}
    environment = {
        "HEADRACE_STORAGE__DATA_DIR": str(folder / "data"),
        "HEADRACE_AUTHENTICATION__TOKENS": json.dumps(tokens),
        "HEADRACE_ARTIFACTS__MAX_ARTIFACT_BYTES": "4000000",
        # which are the client's, and must not stop a platform
        "HEADRACE_URL": UNUSED,
        "HEADRACE_TOKEN": TOKEN,
    }
    with serving(models, folder / "log", environment=environment) as running:
        yield running


@pytest.fixture
def cli(server: Server, tmp_path: Path) -> Cli:
    return Cli(server.url, tmp_path)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A model of the test's own."""
    return "m-" + hashlib.sha256(request.node.name.encode()).hexdigest()[:12]


def plus(folder: Path, amount: float) -> Path:
    """A file whose answer is its input and `amount`."""
    return repositories.plus(folder / str(amount), "plus", amount=amount) / "1" / "model.onnx"


def answer(server: Server, path: str) -> float:
    """What the model says to 1."""
    found = server.infer(path, X, Authorization=f"Bearer {TOKEN}")
    assert found.status == 200, found.body
    return float(found.json()["outputs"][0]["data"][0])


# Push


def test_a_pushed_model_answers_as_the_printed_curl_asks_it(
    cli: Cli, server: Server, name: str, tmp_path: Path
) -> None:
    result = cli("push", plus(tmp_path, 10), "--name", name, "--alias", "champion")
    assert f"registered {name}" in result.stdout
    assert f"{name} version 1 is ready" in result.stdout
    assert "input        x FP32 [-1, 1]" in result.stdout
    assert f"champion of {name} points at version 1" in result.stdout
    command = result.stdout[result.stdout.index("curl ") :]
    printed = subprocess.run(
        ["sh", "-c", command],
        capture_output=True,
        check=True,
        env={"PATH": "/usr/bin:/bin", "HEADRACE_TOKEN": TOKEN},
    )
    assert json.loads(printed.stdout)["outputs"][0]["data"] == [10.0]
    assert answer(server, name) == 11.0


def test_what_was_said_of_a_version_is_kept(cli: Cli, name: str, tmp_path: Path) -> None:
    file = plus(tmp_path, 1)
    said = ("--tag", "b", "--tag", "a", "--version", "7", "--description", "the seventh")
    made = cli.json("push", file, "--name", name, *said, "--metric", "accuracy=0.97")
    version = made["version"]
    assert made["promotion"] is None
    assert version["version"] == "7"
    assert version["tags"] == ["a", "b"]
    assert version["description"] == "the seventh"
    assert version["metrics"] == {"accuracy": 0.97}
    assert version["artifact"]["digest"] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_same_name_again_is_the_next_version(cli: Cli, name: str, tmp_path: Path) -> None:
    for number in ("1", "2"):
        pushed = cli.json("push", plus(tmp_path, 1), "--name", name)
        assert pushed["version"]["version"] == number
    result = cli("push", plus(tmp_path, 1), "--name", name, "--version", "2", code=1)
    assert result.stderr.count("\n") == 1
    assert "is there already" in result.stderr


def test_an_archive_is_pushed_as_one(cli: Cli, server: Server, name: str, tmp_path: Path) -> None:
    archive = tmp_path / "iris.bin"  # told by its content
    archive.write_bytes(zipped({"model.onnx": plus(tmp_path, 5).read_bytes()}))
    pushed = cli.json("push", archive, "--name", name)
    assert pushed["version"]["artifact"]["format"] == "zip"
    eventually(lambda: answer(server, name) == 6.0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"this is no ONNX file\n", "ONNX"), (pickle.dumps({"a": 1}), "pickle")],
    ids=["text", "pickle"],
)
def test_a_file_that_is_no_model_fails_with_the_reason(
    cli: Cli, name: str, tmp_path: Path, content: bytes, reason: str
) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    result = cli("push", file, "--name", name, code=1)
    assert result.stderr.startswith(f"headrace: {name} version 1 is failed: ")
    assert reason in result.stderr
    assert "curl" not in result.stdout
    (version,) = cli.json("show", name)["versions"]
    assert version["status"] == "failed"
    assert version["reason"] in result.stderr
    assert [each["reason"] for each in cli.json("list", "--name", name, "--status", "failed")] == [
        version["reason"]
    ]


def test_a_file_over_the_limit_is_refused_and_its_version_can_be_pushed_again(
    cli: Cli, server: Server, name: str, tmp_path: Path
) -> None:
    file = tmp_path / "model.onnx"
    with file.open("wb") as opened:
        opened.truncate(32_000_000)
    result = cli("push", file, "--name", name, code=1)
    assert "4000000" in result.stderr
    assert "push again with --version 1" in result.stderr
    cli("push", plus(tmp_path, 2), "--name", name, "--version", "1")
    eventually(lambda: answer(server, name) == 3.0)


# Look


def test_a_list_has_what_the_filters_let_through(cli: Cli, name: str, tmp_path: Path) -> None:
    cli("push", plus(tmp_path, 1), "--name", f"{name}-a", "--tag", name)
    cli("push", plus(tmp_path, 1), "--name", f"{name}-b")
    assert [each["name"] for each in cli.json("list", "--name", name)] == [
        f"{name}-a",
        f"{name}-b",
    ]
    assert [each["name"] for each in cli.json("list", "--tag", name)] == [f"{name}-a"]
    cli("push", plus(tmp_path, 1), "--name", f"{name}-b", "--tag", name)
    versions = cli.json("list", "--tag", name, "--status", "ready")
    assert [(each["model"], each["version"]) for each in versions] == [
        (f"{name}-a", "1"),
        (f"{name}-b", "2"),
    ]
    assert f"{name}-a" in cli("list").stdout
    assert cli.json("list", "--name", f"{name}-c") == []
    assert cli("list", "--name", f"{name}-c").stdout == "no model is registered that is so\n"


def test_a_version_is_shown_with_its_signature_and_statistics(
    cli: Cli, server: Server, name: str, tmp_path: Path
) -> None:
    cli("push", plus(tmp_path, 1), "--name", name, "--alias", "champion")
    answer(server, name)
    shown = cli.json("show", name, "champion")
    assert shown["aliases"] == ["champion"]
    assert shown["version"]["signature"]["inputs"][0]["name"] == "x"
    assert shown["statistics"]["requests"] == 1
    text = cli("show", name, "1").stdout
    assert "requests     1, of which 0 failed" in text
    assert "output       y FP32 [-1, 1]" in text
    assert "champion" in cli("show", name).stdout


# Move


def test_traffic_follows_a_promotion_and_a_rollback(
    cli: Cli, server: Server, name: str, tmp_path: Path
) -> None:
    cli("push", plus(tmp_path, 10), "--name", name, "--alias", "champion")
    cli("push", plus(tmp_path, 20), "--name", name)
    smoke = tmp_path / "smoke.json"
    smoke.write_text('{"x": [[2]]}')
    result = cli("promote", name, "2", "--alias", "champion", "--smoke", smoke)
    for check in ("status", "signature", "warm up", "smoke inputs"):
        assert f"\n{check} " in f"\n{result.stdout}"
    assert "smoke input 1: y [1, 1] [22.0]" in result.stdout
    assert f"champion of {name} points at version 2, before at 1" in result.stdout
    eventually(lambda: answer(server, name) == 21.0)
    assert "version 1, before at 2" in cli("rollback", name, "--alias", "champion").stdout
    eventually(lambda: answer(server, name) == 11.0)


def test_a_version_with_another_signature_is_promoted_by_force_only(
    cli: Cli, name: str, tmp_path: Path
) -> None:
    other = repositories.add_sub(tmp_path) / "1" / "model.onnx"
    cli("push", plus(tmp_path, 1), "--name", name, "--alias", "champion")
    result = cli("push", other, "--name", name, "--alias", "champion", code=1)
    assert "input 'x' is no longer taken" in result.stderr
    assert "signature" in result.stdout
    forced = cli.json("promote", name, "2", "--alias", "champion", "--force")
    assert forced["alias"]["version"] == "2"
    assert "forced" in {check["outcome"] for check in forced["checks"]}


def test_smoke_inputs_that_do_not_fit_stop_a_promotion(cli: Cli, name: str, tmp_path: Path) -> None:
    cli("push", plus(tmp_path, 1), "--name", name)
    smoke = tmp_path / "smoke.json"
    smoke.write_text('{"y": [[2]]}')
    refused = cli.json("promote", name, "1", "--alias", "champion", "--smoke", smoke, code=1)
    outcomes = {check["name"]: check["outcome"] for check in refused["checks"]}
    assert outcomes["smoke_inputs"] == "failed"
    assert refused["alias"] is None
    assert cli.json("show", name)["aliases"] == []


def test_there_is_no_way_back_from_where_an_alias_always_was(
    cli: Cli, name: str, tmp_path: Path
) -> None:
    cli("push", plus(tmp_path, 1), "--name", name, "--alias", "champion")
    result = cli("rollback", name, "--alias", "champion", code=1)
    assert "there is nothing to go back to" in result.stderr
    assert "no alias 'other'" in cli("rollback", name, "--alias", "other", code=1).stderr


def test_a_version_that_an_alias_needs_is_archived_by_force_only(
    cli: Cli, name: str, tmp_path: Path
) -> None:
    cli("push", plus(tmp_path, 1), "--name", name, "--alias", "champion")
    assert "is deprecated" in cli("deprecate", name, "champion").stdout
    needed = f"models/{name}/aliases/champion"
    assert needed in cli("archive", name, "1", code=1).stderr
    assert needed in cli("delete", name, "1", code=1).stderr
    assert cli.json("archive", name, "1", "--force")["status"] == "archived"
    assert "is gone" in cli("delete", name, "1", "--force").stdout
    assert "is gone" in cli("delete", name, "--yes").stdout
    assert "is not registered" in cli("show", name, code=1).stderr


# Pull


def test_a_pulled_file_is_the_one_that_was_pushed(cli: Cli, name: str, tmp_path: Path) -> None:
    first, second = plus(tmp_path, 1), plus(tmp_path, 2)
    cli("push", first, "--name", name, "--alias", "champion")
    cli("push", second, "--name", name)
    cli("pull", name)
    assert (tmp_path / f"{name}-1.onnx").read_bytes() == first.read_bytes()
    target = tmp_path / "second.onnx"
    pulled = cli.json("pull", name, "2", "-o", target)
    assert pulled["file"] == str(target)
    assert target.read_bytes() == second.read_bytes()
    refused = cli("pull", name, "1", "-o", target, code=2)
    assert refused.stderr == (f"headrace: {target} is there already; overwrite it with --force\n")
    assert target.read_bytes() == second.read_bytes()
    cli("pull", name, "1", "-o", target, "--force")
    assert target.read_bytes() == first.read_bytes()


def test_without_a_champion_the_newest_version_that_is_ready_is_pulled(
    cli: Cli, name: str, tmp_path: Path
) -> None:
    cli("push", plus(tmp_path, 1), "--name", name)
    bad = tmp_path / "bad"
    bad.write_bytes(b"bad")
    cli("push", bad, "--name", name, code=1)
    cli("pull", name)
    assert (tmp_path / f"{name}-1.onnx").exists()
    assert "it has no artifact" in cli("pull", name, "2", code=1).stderr


# Errors


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("show", "nobody"), "model 'nobody' is not registered"),
        (("show", "nobody", "champion"), "model 'nobody' is not registered"),
        (("pull", "nobody"), "model 'nobody' is not registered"),
        (("promote", "nobody", "1", "--alias", "champion"), "model 'nobody' is not registered"),
        (("rollback", "nobody", "--alias", "champion"), "model 'nobody' is not registered"),
        (("show", "a b"), "model: "),
        (("show", "a/../b"), "nothing at"),
    ],
)
def test_a_refusal_is_one_line_that_names_the_reason(
    cli: Cli, arguments: tuple[str, ...], reason: str
) -> None:
    result = cli(*arguments, code=1)
    assert result.stdout == ""
    assert result.stderr.startswith("headrace: ")
    assert result.stderr.count("\n") == 1
    assert reason in result.stderr


def test_a_wrong_token_is_refused(cli: Cli) -> None:
    for token in ("wrong", ""):
        result = cli("list", token=token, code=1)
        assert "give a token with --token or HEADRACE_TOKEN" in result.stderr


def test_a_platform_that_is_not_there_is_told_with_its_address(cli: Cli) -> None:
    result = cli("list", "--json", url=UNUSED, code=2)
    assert result.stdout == ""
    assert result.stderr == (
        f"headrace: cannot reach {UNUSED}: connection refused; is `headrace serve` running?\n"
    )


def test_the_token_is_never_printed(cli: Cli, name: str, tmp_path: Path) -> None:
    cli("push", plus(tmp_path, 1), "--name", name, "--alias", "champion")
    cli("list", url="ftp://nowhere", code=2)
    cli("push", "--help")
    assert cli.printed
    assert TOKEN not in cli.printed


def test_nothing_but_text_is_written_where_nobody_watches(
    cli: Cli, name: str, tmp_path: Path
) -> None:
    result = cli("push", plus(tmp_path, 1), "--name", name)
    assert result.stderr == ""
    assert result.stdout.isprintable() or result.stdout.replace("\n", "").isprintable()
