"""What the commands send and say, where the platform answers as no test could make it answer."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner, Result

from headrace.cli import main
from tests.support.prepared_http import Network, prepared

ID = "key_01m8360fg1apfx9gehfh09c4ng"
OTHER_ID = "key_01m8360g841gm16xyy7q05k3a5"
SECRET = "hr_TmUQAfv66hxVI343d1BXSH2NJN5NrnJl"
KEY = {
    "id": ID,
    "name": "ci",
    "scopes": ["infer"],
    "expires_at": None,
    "revoked_at": None,
    "created_at": "2026-01-01T00:00:00Z",
}
REVOKED = {**KEY, "revoked_at": "2026-02-01T00:00:00Z"}
EXPIRED = {**KEY, "id": OTHER_ID, "expires_at": "2026-02-01T00:00:00Z"}


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    return prepared(monkeypatch)


def keys(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(main, ["keys", *arguments], env=environment)


def sent_json(network: Network, place: int = -1) -> Any:
    return json.loads(network.sent[place].partition(b"\r\n\r\n")[2])


def listed(network: Network, *found: dict[str, Any]) -> None:
    network.answer(200, {"items": list(found), "next_cursor": None})


# Create


def test_the_secret_stands_alone_on_stdout_for_a_shell_to_take(network: Network) -> None:
    network.answer(201, {**KEY, "secret": SECRET})
    result = keys("create", "ci", "--scope", "infer")
    assert result.exit_code == 0
    assert result.stdout == f"{SECRET}\n"
    assert "shown once" in result.stderr
    assert ID in result.stderr
    assert SECRET not in result.stderr


def test_with_json_there_is_json_and_nothing_else(network: Network) -> None:
    network.answer(201, {**KEY, "secret": SECRET})
    result = keys("create", "ci", "--scope", "infer", "--json")
    assert json.loads(result.stdout) == {**KEY, "secret": SECRET}
    assert result.stderr == ""


def test_scopes_go_as_they_were_given_each_once(network: Network) -> None:
    network.answer(201, {**KEY, "secret": SECRET})
    scopes = ("infer:fraud-*", "batch", "infer:fraud-*")
    keys("create", "ci", *(word for scope in scopes for word in ("--scope", scope)))
    assert network.lines() == ["POST /api/v1/keys"]
    assert sent_json(network) == {"name": "ci", "scopes": ["infer:fraud-*", "batch"]}


def test_a_span_goes_as_the_moment_that_it_ends(network: Network) -> None:
    network.answer(201, {**KEY, "secret": SECRET})
    keys("create", "ci", "--scope", "infer", "--expires", "30d")
    ends = datetime.fromisoformat(sent_json(network)["expires_at"])
    assert abs(ends - datetime.now(UTC) - timedelta(days=30)) < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "Missing option '--scope'"),
        (["--scope", "inference"], "'inference' is not one of infer, batch, models:read"),
        (["--scope", "infer", "--scope", "infer:a/b"], "'infer:a/b' is not one of"),
        (["--scope", "infer", "--expires", "soon"], "'soon' is no time: expected 30d"),
    ],
)
def test_what_no_key_can_have_is_a_usage_error_before_anything_is_sent(
    network: Network, arguments: list[str], told: str
) -> None:
    result = keys("create", "ci", *arguments)
    assert result.exit_code == 2
    assert told in result.stderr
    assert result.stdout == ""
    assert network.sent == []


# List


def test_only_active_keys_are_listed_and_the_rest_is_counted(network: Network) -> None:
    listed(network, KEY, EXPIRED)
    result = keys("list")
    assert ID in result.stdout
    assert OTHER_ID not in result.stdout
    assert result.stderr == "revoked or expired: 1 more; --all shows them too\n"


def test_with_all_every_key_is_listed_with_its_status(network: Network) -> None:
    listed(network, {**KEY, "name": "new"}, EXPIRED, {**REVOKED, "name": "old"})
    result = keys("list", "--all")
    statuses = [line.split()[-1] for line in result.stdout.splitlines() if "key_" in line]
    assert statuses == ["active", "expired", "revoked"]
    assert result.stderr == ""


def test_a_list_in_json_has_what_the_platform_said(network: Network) -> None:
    told = {**KEY, "last_used_at": "2026-03-01T00:00:00Z", "new_field": 1}
    listed(network, told, REVOKED)
    result = keys("list", "--json")
    assert json.loads(result.stdout) == [told]
    assert result.stderr == ""


def test_an_empty_list_says_whether_there_are_keys_at_all(network: Network) -> None:
    listed(network)
    assert keys("list").stdout == "there is no key\n"
    listed(network, REVOKED)
    assert keys("list").stdout == "there is no key that is active\n"


# Revoke


def test_a_key_is_revoked_by_its_id_and_it_is_told_when_that_takes_effect(
    network: Network,
) -> None:
    network.answer(200, REVOKED)
    result = keys("revoke", ID)
    assert network.lines() == [f"POST /api/v1/keys/{ID}/revoke"]
    assert f"key 'ci' ({ID}) is revoked: within 5 s" in result.stdout


def test_a_name_is_the_one_active_key_that_has_it(network: Network) -> None:
    newer = {**REVOKED, "id": OTHER_ID, "created_at": "2026-01-02T00:00:00Z"}
    listed(network, KEY, newer, {**KEY, "id": OTHER_ID, "name": "ci-nightly"})
    network.answer(200, REVOKED)
    assert keys("revoke", "ci").exit_code == 0
    assert network.lines() == [
        "GET /api/v1/keys?name=ci&limit=500",
        f"POST /api/v1/keys/{ID}/revoke",
    ]


def test_a_name_that_several_active_keys_have_lists_their_ids(network: Network) -> None:
    listed(network, KEY, {**KEY, "id": OTHER_ID, "scopes": ["batch"]})
    result = keys("revoke", "ci")
    assert result.exit_code == 1
    assert result.stderr == (
        "headrace: 2 active keys have the name 'ci': say which, by its id\n"
        f"headrace: {ID} has the scopes infer\n"
        f"headrace: {OTHER_ID} has the scopes batch\n"
    )
    assert len(network.sent) == 1


def test_revoking_by_name_once_more_is_harmless(network: Network) -> None:
    listed(network, REVOKED, {**REVOKED, "id": OTHER_ID, "created_at": "2025-01-01T00:00:00Z"})
    network.answer(200, REVOKED)
    assert keys("revoke", "ci").exit_code == 0
    assert network.lines()[-1] == f"POST /api/v1/keys/{ID}/revoke"


def test_a_name_that_no_key_has_is_told(network: Network) -> None:
    listed(network, {**KEY, "name": "ci-nightly"})
    result = keys("revoke", "ci")
    assert result.exit_code == 1
    assert result.stderr == "headrace: there is no key with the id or the name 'ci'\n"


# The rest


def test_the_url_and_the_token_come_from_the_environment(network: Network) -> None:
    listed(network)
    keys("list", HEADRACE_URL="http://other:9", HEADRACE_TOKEN="of-mine")
    assert b"\r\nHost: other:9\r\n" in network.sent[0]
    assert b"\r\nAuthorization: Bearer of-mine\r\n" in network.sent[0]


def test_a_missing_scope_is_told_in_one_line(network: Network) -> None:
    network.problem(403, "this needs the scope 'admin'", code="forbidden")
    result = keys("list")
    assert result.exit_code == 1
    assert (result.stdout, result.stderr) == ("", "headrace: this needs the scope 'admin'\n")


def test_a_missing_token_is_told_in_one_line(network: Network) -> None:
    network.problem(401, "this needs a valid token", code="unauthenticated")
    result = keys("create", "ci", "--scope", "infer")
    assert result.exit_code == 1
    assert (result.stdout, result.stderr.count("\n")) == ("", 1)
    assert "--token or HEADRACE_TOKEN" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--tenant", "acme"], "--tenant goes with --local only"),
        (["--data-dir", "data"], "--data-dir goes with --local only"),
        (["--settings", "a.toml"], "--settings goes with --local only"),
        (["--local", "--url", "http://other:9"], "--url does not go with --local"),
        (["--local", "--token", "of-mine"], "--token does not go with --local"),
        (["--local", "--tenant", "a b"], "'a b' must be 1 to 128 letters"),
    ],
)
def test_an_option_that_would_say_nothing_is_a_usage_error(
    network: Network, arguments: list[str], told: str
) -> None:
    result = keys("list", *arguments)
    assert result.exit_code == 2
    assert told in result.stderr
    assert network.sent == []


def test_variables_for_the_platform_itself_do_not_disturb(network: Network) -> None:
    listed(network)
    assert keys("list", HEADRACE_SETTINGS="/no/such/file").exit_code == 0


def keys_group() -> Any:
    return main.commands["keys"]


@pytest.mark.parametrize("command", sorted(keys_group().commands))
def test_the_help_of_every_command_has_an_example_of_it(command: str) -> None:
    result = keys(command, "--help")
    assert result.exit_code == 0
    assert f"headrace keys {command} " in result.stdout.partition("Examples:\n")[2]


def test_the_token_is_never_shown_in_help() -> None:
    assert "secret-of-mine" not in keys("list", "--help", HEADRACE_TOKEN="secret-of-mine").stdout
