from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner, Result

from headrace.cli import main
from headrace.compose import run as serving
from headrace.domain.calls import Principal
from headrace.domain.errors import InvalidSettings
from headrace.domain.scopes import EVERYTHING
from headrace.gateway.authentication import Authentication
from headrace.gateway.static_tokens import StaticToken
from headrace.settings import Settings, load

DIGEST = "0" * 64


def _run(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(main, arguments, env=environment)


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    return tmp_path / "my.toml"


def _load_printed(result: Result, folder: Path) -> Settings:
    printed = folder / "printed.toml"
    printed.write_text(result.stdout)
    return load(printed)


# Help


@pytest.mark.parametrize("command", sorted(main.commands))
def test_the_help_of_every_command_has_an_example_of_it(command: str) -> None:
    result = _run(command, "--help")
    assert result.exit_code == 0
    _, _, examples = result.stdout.partition("Examples:\n")
    assert f"headrace {command}" in examples


def test_the_help_of_the_program_shows_how_to_begin() -> None:
    for flag in ("-h", "--help"):
        result = _run(flag)
        assert result.exit_code == 0
        assert "headrace demo" in result.stdout
        assert all(f"\n  {command} " in result.stdout for command in main.commands)


def test_every_option_is_explained_or_lists_its_choices() -> None:
    for command in main.commands.values():
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help or isinstance(option.type, click.Choice), option.name


def test_the_version_is_told() -> None:
    result = _run("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("headrace, version ")


@pytest.mark.parametrize(
    "arguments", [["fly"], ["serve", "a", "b"], ["token"], ["demo", "/no/such/file"]]
)
def test_a_wrong_call_is_a_usage_error(arguments: list[str]) -> None:
    result = _run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Error: " in result.stderr


# check-settings


def test_settings_that_would_start_are_printed_whole(settings_file: Path) -> None:
    settings_file.write_text("[server]\nhttp_port = 9000\n[log]\nlevel = 'debug'")
    result = _run("check-settings", str(settings_file), HEADRACE_SERVER__GRPC_PORT="9001")
    assert (result.exit_code, result.stderr) == (0, "")
    printed = tomllib.loads(result.stdout)
    assert printed["server"]["http_port"] == 9000
    assert printed["server"]["grpc_port"] == 9001
    assert printed["log"]["level"] == "debug"
    assert _load_printed(result, settings_file.parent) == load(
        settings_file, environment={"HEADRACE_SERVER__GRPC_PORT": "9001"}
    )


def test_without_a_file_the_defaults_are_checked(tmp_path: Path) -> None:
    result = _run("check-settings")
    assert result.exit_code == 0
    assert _load_printed(result, tmp_path) == Settings()


def test_settings_with_tokens_are_printed_as_toml_too(settings_file: Path) -> None:
    settings_file.write_text(f"[authentication.tokens]\nalice = '{DIGEST}'")
    result = _run("check-settings", str(settings_file))
    assert result.exit_code == 0
    assert _load_printed(result, settings_file.parent) == load(settings_file)


def test_a_password_in_the_settings_is_not_printed(settings_file: Path) -> None:
    settings_file.write_text(
        "[database]\nkind = 'postgres'\ndsn = 'postgresql://app:of-mine@db/headrace'\n"
        "[cache]\nkind = 'redis'\nurl = 'redis://:of-mine@cache:6379/0'"
    )
    result = _run("check-settings", str(settings_file))
    assert result.exit_code == 0
    assert "of-mine" not in result.stdout
    assert "postgresql://app:***@db/headrace" in result.stdout


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[server]\nhttp_prt = 1", "server.http_prt is not a setting; did you mean 'http_port'?"),
        ("[server]\nhttp_port = 'x'", "server.http_port: Expected `int`, got `str`"),
        ("[server]\nhttp_port = 65536", "server.http_port: expected a port from 0 to 65535"),
        ("[server]\nhost = '0.0.0.0'", "server.host is 0.0.0.0, which other machines can reach"),
        ("[server", "is not TOML"),
    ],
)
def test_settings_that_would_not_start_are_refused_in_one_line(
    settings_file: Path, text: str, problem: str
) -> None:
    settings_file.write_text(text)
    result = _run("check-settings", str(settings_file))
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("headrace: ")
    assert problem in line


def test_a_half_configured_token_would_not_start_either(settings_file: Path) -> None:
    settings_file.write_text("[authentication.tokens]\nalice = 'her password'")
    assert _run("check-settings", str(settings_file)).exit_code == 2


def test_a_mistake_in_the_environment_is_refused_in_one_line() -> None:
    result = _run("check-settings", HEADRACE_SERVER__HTTP_PORT="http")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "headrace: environment variable HEADRACE_SERVER__HTTP_PORT: Expected `int`, got `str`\n"
    )


# token


@pytest.mark.parametrize("name", ["alice", "ci@build.example.org", 'o"dd \\ näme', "a.b"])
def test_a_token_is_admitted_by_the_setting_printed_with_it(tmp_path: Path, name: str) -> None:
    result = _run("token", name)
    assert result.exit_code == 0
    told, _, setting = result.stdout.partition("setting:")
    secret = told.removeprefix("token:").strip()
    file = tmp_path / "my.toml"
    file.write_text("\n".join(line.strip() for line in setting.splitlines()))
    authenticate = Authentication(load(file).authentication)
    caller = Principal(name, grants=EVERYTHING)
    assert authenticate({b"authorization": f"Bearer {secret}".encode()}) == caller
    assert secret not in file.read_text()


def test_no_token_is_made_twice() -> None:
    assert _run("token", "alice").stdout != _run("token", "alice").stdout


def _static_token(result: Result, name: str) -> tuple[str, StaticToken]:
    """The token that was printed, and the setting with it."""
    told, _, setting = result.stdout.partition("setting:")
    table = tomllib.loads("\n".join(line.strip() for line in setting.splitlines()))
    written = table["authentication"]["tokens"][name]
    return told.removeprefix("token:").strip(), msgspec.convert(written, StaticToken)


@pytest.mark.parametrize("name", ["shop", "ci@build.example.org", "a.b"])
def test_a_token_with_scopes_and_a_tenant_is_printed_as_a_table(name: str) -> None:
    scopes = ("--scope", "infer:fraud-*", "--scope", "models:read")
    secret, setting = _static_token(_run("token", name, *scopes, "--tenant", "acme"), name)
    assert setting == StaticToken(
        sha256=hashlib.sha256(secret.encode()).hexdigest(),
        scopes=["infer:fraud-*", "models:read"],
        tenant="acme",
    )


def test_a_token_without_scopes_may_do_everything_for_its_tenant() -> None:
    _, setting = _static_token(_run("token", "shop", "--tenant", "acme"), "shop")
    assert (setting.scopes, setting.tenant) == (["admin"], "acme")
    result = _run("token", "shop", "--scope", "infer")
    assert "tenant" not in result.stdout
    assert _static_token(result, "shop")[1].scopes == ["infer"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--scope", "inference"], "'inference' is not one of infer, batch"),
        (["--tenant", "a b"], "'a b' must be 1 to 128 letters"),
    ],
)
def test_a_token_that_no_setting_admits_is_a_usage_error(arguments: list[str], told: str) -> None:
    result = _run("token", "shop", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr


# serve


class Served:
    """What `serve` was called with, in place of serving."""

    settings: Settings
    models: Path

    def __call__(self, settings: Settings, models: Path, **_: Any) -> None:
        self.settings, self.models = settings, models


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    spy = Served()
    monkeypatch.setattr(serving, "serve", spy)
    return spy


def test_an_option_beats_the_environment_and_the_file(served: Served, settings_file: Path) -> None:
    settings_file.write_text("[server]\nhttp_port = 1\ngrpc_port = 1\n[orchestrator]\npoll_s = 1")
    result = _run(
        *("serve", "models", "--settings", str(settings_file), "--http-port", "3"),
        HEADRACE_SERVER__HTTP_PORT="2",
        HEADRACE_SERVER__GRPC_PORT="2",
    )
    assert (result.exit_code, result.stderr) == (0, "")
    assert served.models == Path("models")
    server = served.settings.server
    assert (server.http_port, server.grpc_port) == (3, 2)
    assert served.settings.orchestrator.poll_s == 1.0


def test_every_option_of_serve_reaches_its_setting(served: Served) -> None:
    options = {
        "--host": "::1",
        "--http-port": "1",
        "--grpc-port": "2",
        "--poll": "3",
        "--log-level": "debug",
        "--log-format": "json",
    }
    result = _run("serve", "models", *(word for pair in options.items() for word in pair))
    assert result.exit_code == 0
    settings = served.settings
    assert settings == load(
        overrides={
            "server": {"host": "::1", "http_port": 1, "grpc_port": 2},
            "orchestrator": {"poll_s": 3.0},
            "log": {"level": "debug", "format": "json"},
        }
    )


def test_the_settings_file_may_be_named_by_a_variable(served: Served, settings_file: Path) -> None:
    settings_file.write_text("[server]\nhttp_port = 1")
    result = _run("serve", "models", HEADRACE_SETTINGS=str(settings_file))
    assert result.exit_code == 0
    assert served.settings.server.http_port == 1


@pytest.mark.parametrize(
    "error",
    [
        InvalidSettings("the port is taken"),
        ExceptionGroup("tasks", [InvalidSettings("the port is taken")]),
        ExceptionGroup("x", [ExceptionGroup("y", [InvalidSettings("the port is taken")])]),
    ],
    ids=["alone", "in a group", "in a group in a group"],
)
def test_what_the_user_can_mend_is_one_line_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def serve(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(serving, "serve", serve)
    result = _run("serve", "models")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "headrace: the port is taken\n"


def test_a_fault_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(serving, "serve", serve)
    result = _run("serve", "models")
    assert isinstance(result.exception, ZeroDivisionError)
