"""What the commands say and ask, where the platform answers as no test could make it answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from headrace.cli import main
from tests.support.prepared_http import Network, prepared

ALIAS = {"model": "iris", "alias": "champion", "version": "1", "previous": ""}
MOVED = {**ALIAS, "version": "2", "previous": "1"}
PENDING = {"model": "iris", "version": "3", "status": "pending"}
READY = {**PENDING, "status": "ready"}
MODEL = {"name": "iris"}
PASSED = {"name": "status", "outcome": "passed", "detail": ""}
FAILED = {"name": "signature", "outcome": "failed", "detail": "input 'x' is no longer taken"}


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    return prepared(monkeypatch)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    found = tmp_path / "model.onnx"
    found.write_bytes(b"model")
    return found


def models(*arguments: str | Path, **environment: str) -> Result:
    return CliRunner().invoke(main, ["models", *map(str, arguments)], env=environment)


def sent_json(network: Network, place: int) -> Any:
    return json.loads(network.sent[place].partition(b"\r\n\r\n")[2])


# Promote and roll back


def test_a_promotion_names_the_state_of_the_alias_that_was_read(network: Network) -> None:
    network.answer(200, ALIAS, {"ETag": '"5"'})
    network.answer(200, {"alias": MOVED, "checks": [PASSED]})
    result = models("promote", "iris", "2", "--alias", "champion")
    assert result.exit_code == 0
    assert "champion of iris points at version 2, before at 1" in result.stdout
    assert b'\r\nIf-Match: "5"\r\n' in network.sent[1]


def test_the_first_promotion_to_an_alias_names_no_state(network: Network) -> None:
    network.problem(404, "no such alias")
    network.answer(200, {"alias": ALIAS, "checks": [PASSED]})
    result = models("promote", "iris", "1", "--alias", "champion")
    assert result.exit_code == 0
    assert b"If-Match" not in network.sent[1]


def test_an_alias_that_somebody_moved_meanwhile_is_told_as_that(network: Network) -> None:
    network.answer(200, ALIAS, {"ETag": '"5"'})
    network.problem(412, "alias 'champion' was changed")
    result = models("promote", "iris", "2", "--alias", "champion")
    assert result.exit_code == 1
    assert result.stderr == (
        "headrace: alias 'champion' was changed; somebody changed it meanwhile; "
        "look and try again\n"
    )


def test_a_refused_promotion_tells_every_check(network: Network) -> None:
    network.answer(200, ALIAS, {"ETag": '"5"'})
    network.problem(409, "it was not promoted", checks=[PASSED, FAILED])
    result = models("promote", "iris", "2", "--alias", "champion")
    assert result.exit_code == 1
    assert "input 'x' is no longer taken" in result.stdout
    assert result.stderr == "headrace: it was not promoted\n"


def test_smoke_inputs_are_one_object_or_a_list_of_them(network: Network, tmp_path: Path) -> None:
    smoke = tmp_path / "smoke.json"
    for written in ('{"x": [[1]]}', '[{"x": [[1]]}]'):
        smoke.write_text(written)
        network.problem(404, "no such alias")
        network.answer(200, {"alias": ALIAS, "checks": []})
        result = models("promote", "iris", "1", "--alias", "champion", "--smoke", smoke)
        assert result.exit_code == 0
        assert sent_json(network, -1)["smoke_inputs"] == [{"x": [[1]]}]
    smoke.write_text("[1]")
    result = models("promote", "iris", "1", "--alias", "champion", "--smoke", smoke)
    assert result.exit_code == 2
    assert "expected an object with the inputs by name" in result.stderr


def test_a_rollback_names_the_state_of_the_alias_that_was_read(network: Network) -> None:
    network.answer(200, MOVED, {"ETag": '"6"'})
    network.answer(200, {**ALIAS, "previous": "2"})
    result = models("rollback", "iris", "--alias", "champion")
    assert result.stdout == "champion of iris points at version 1, before at 2\n"
    assert network.lines()[1] == "POST /api/v1/models/iris/aliases/champion/rollback"
    assert b'\r\nIf-Match: "6"\r\n' in network.sent[1]


# Push


def test_a_model_that_somebody_registers_meanwhile_is_as_good(network: Network, file: Path) -> None:
    network.problem(404, "it is not registered")
    network.problem(409, "it is there already")
    network.answer(201, PENDING, {"ETag": '"7"'})
    network.answer(200, READY)
    result = models("push", file, "--name", "iris")
    assert result.exit_code == 0
    assert "iris version 3 is ready" in result.stdout


def test_a_version_that_still_waits_for_its_artifact_gets_it(network: Network, file: Path) -> None:
    network.answer(200, MODEL)
    network.problem(409, "version '3' is there already")
    network.answer(200, PENDING, {"ETag": '"7"'})
    network.answer(200, PENDING, {"ETag": '"8"'})
    network.answer(200, READY)
    result = models("push", file, "--name", "iris", "--version", "3", "--tag", "new")
    assert result.exit_code == 0
    assert sent_json(network, 3) == {"tags": ["new"]}
    assert b'\r\nIf-Match: "8"\r\n' in network.sent[4]
    assert network.lines()[4] == "PUT /api/v1/models/iris/versions/3/artifact"


def test_a_number_that_is_taken_is_refused(network: Network, file: Path) -> None:
    network.answer(200, MODEL)
    network.problem(409, "version '3' is there already")
    network.answer(200, READY)
    result = models("push", file, "--name", "iris", "--version", "3")
    assert result.exit_code == 1
    assert result.stderr == "headrace: version '3' is there already\n"


def test_an_upload_that_breaks_off_tells_how_to_go_on(network: Network, file: Path) -> None:
    network.answer(200, MODEL)
    network.answer(201, PENDING)
    network.raw(b"")
    result = models("push", file, "--name", "iris")
    assert result.exit_code == 2
    assert "closed the connection" in result.stderr
    assert "push again with --version 3" in result.stderr


def test_a_push_that_is_not_promoted_has_its_version_and_checks_in_json(
    network: Network, file: Path
) -> None:
    network.answer(200, MODEL)
    network.answer(200, ALIAS)
    network.answer(201, PENDING)
    network.answer(200, READY)
    network.answer(200, ALIAS)
    network.problem(409, "it was not promoted", checks=[FAILED])
    result = models("push", file, "--name", "iris", "--alias", "champion", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"version": READY, "promotion": None, "checks": [FAILED]}


def test_an_alias_that_cannot_be_is_refused_before_a_version_is_made(
    network: Network, file: Path
) -> None:
    network.answer(200, MODEL)
    network.problem(400, "alias: it begins with a digit")
    result = models("push", file, "--name", "iris", "--alias", "9x")
    assert result.exit_code == 1
    assert [line.split()[0] for line in network.lines()] == ["GET", "GET"]


def test_metrics_go_as_numbers_by_name(network: Network, file: Path) -> None:
    network.answer(200, MODEL)
    network.answer(201, PENDING)
    network.answer(200, READY)
    result = models("push", file, "--name", "iris", "--metric", "loss=1e-3", "--metric", "f1=0.5")
    assert result.exit_code == 0
    assert sent_json(network, 1) == {"metrics": {"loss": 0.001, "f1": 0.5}}


@pytest.mark.parametrize("metric", ["loss", "=1", "loss=", "loss=nan", "a=b=2"])
def test_a_metric_that_is_no_number_is_a_usage_error(file: Path, metric: str) -> None:
    result = models("push", file, "--name", "iris", "--metric", metric)
    assert result.exit_code == 2
    assert "is not as accuracy=0.97" in result.stderr


# The rest


def test_the_url_and_the_token_come_from_the_environment(network: Network) -> None:
    network.answer(200, {"items": [], "next_cursor": None})
    result = models("list", HEADRACE_URL="http://other:9", HEADRACE_TOKEN="secret")
    assert result.exit_code == 0
    assert b"\r\nHost: other:9\r\n" in network.sent[0]
    assert b"\r\nAuthorization: Bearer secret\r\n" in network.sent[0]


def test_a_file_with_another_digest_is_not_saved(network: Network, tmp_path: Path) -> None:
    artifact = {"digest": "00" * 32, "size_bytes": 5, "format": "onnx"}
    network.answer(200, {**READY, "artifact": artifact})
    network.answer(200, b"other")
    result = models("pull", "iris", "3", "-o", tmp_path)
    assert result.exit_code == 1
    assert "nothing was saved" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_whole_model_is_removed_only_when_that_is_meant(network: Network) -> None:
    result = models("delete", "iris")
    assert result.exit_code == 2
    assert "say --yes" in result.stderr
    assert network.sent == []


def models_group() -> Any:
    return main.commands["models"]


@pytest.mark.parametrize("command", sorted(models_group().commands))
def test_the_help_of_every_command_has_an_example_of_it(command: str) -> None:
    result = models(command, "--help")
    assert result.exit_code == 0
    assert f"headrace models {command} " in result.stdout.partition("Examples:\n")[2]


def test_the_token_is_never_shown_in_help() -> None:
    result = models("list", "--help", HEADRACE_TOKEN="secret-of-mine")
    assert "secret-of-mine" not in result.stdout
