"""`headrace keys` as its user runs it: against a running platform, and on its database."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import pwd
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from headrace.adapters.sql.opening import open_store
from headrace.compose import local_keys
from headrace.ports.registry_store import AuditQuery
from headrace.registry.registry import utc_now
from headrace.settings import load
from tests.support import repositories
from tests.support.postgres import Postgres, running
from tests.support.process import Server, eventually, run_cli, serving

TOKEN = "a-token-that-nobody-may-read"
X = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}]}
UNUSED = "http://127.0.0.1:1"
MODEL = "plus"
_EFFECTIVE_S = 5.0


class Cli:
    """Runs commands with one environment."""

    def __init__(self, **environment: str) -> None:
        self._environment = environment

    def __call__(
        self, *arguments: str | Path, code: int = 0, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        result = run_cli(
            ["keys", *map(str, arguments)], environment={**self._environment, **environment}
        )
        assert result.returncode == code, result.stderr
        return result

    def json(self, *arguments: str | Path) -> Any:
        """What a command prints with --json."""
        return json.loads(self(*arguments, "--json").stdout)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of the platform."""
    return tmp_path_factory.mktemp("platform") / "data"


@pytest.fixture(scope="module")
def server(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models = tmp_path_factory.mktemp("models")
    repositories.plus(models, MODEL, amount=1.0)
    environment = {
        "HEADRACE_STORAGE__DATA_DIR": str(data),
        "HEADRACE_AUTHENTICATION__TOKENS": json.dumps({"ci": _sha256(TOKEN)}),
    }
    with serving(models, data.with_name("log"), environment=environment) as running_server:
        yield running_server


@pytest.fixture
def cli(server: Server) -> Cli:
    return Cli(HEADRACE_URL=server.url, HEADRACE_TOKEN=TOKEN)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with running() as started:
        yield started


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A key's name that is the test's own."""
    return f"k-{_sha256(request.node.name)[:12]}"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def status(server: Server, secret: str) -> int:
    """What the model's answer to a caller with a key is."""
    return server.infer(MODEL, X, Authorization=f"Bearer {secret}").status


# On a running platform


def test_a_key_that_a_shell_took_is_let_in(cli: Cli, server: Server, name: str) -> None:
    made = cli("create", name, "--scope", "infer", "--expires", "30d")
    secret = made.stdout.removesuffix("\n")
    assert secret.startswith("hr_")
    assert "shown once" in made.stderr
    eventually(lambda: status(server, secret) == 200)
    (key,) = [key for key in cli.json("list") if key["name"] == name]
    assert key["scopes"] == ["infer"]
    assert secret not in cli("list", "--all").stdout


def test_a_revoked_key_is_refused_in_time_and_revoking_again_is_harmless(
    cli: Cli, server: Server, name: str
) -> None:
    made = cli.json("create", name, "--scope", "infer")
    eventually(lambda: status(server, made["secret"]) == 200)
    assert "is revoked: within 5 s" in cli("revoke", name).stdout
    eventually(lambda: status(server, made["secret"]) == 401, timeout_s=_EFFECTIVE_S)
    first = cli.json("revoke", name)
    assert first["id"] == made["id"]
    assert cli.json("revoke", made["id"])["revoked_at"] == first["revoked_at"]
    assert made["id"] not in cli("list").stdout
    assert made["id"] in cli("list", "--all").stdout


def test_a_name_of_two_keys_has_to_be_an_id(cli: Cli, name: str) -> None:
    ids = [cli.json("create", name, "--scope", "infer")["id"] for _ in range(2)]
    refused = cli("revoke", name, code=1)
    assert all(id_ in refused.stderr for id_ in ids)
    cli("revoke", ids[0])
    assert cli.json("revoke", name)["id"] == ids[1]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("create", "a b", "--scope", "infer"), "name: expected 1 to 128 letters"),
        (("create", "late", "--scope", "infer", "--expires", "2020-01-01"), "has passed"),
        (("revoke", "nobody"), "there is no key with the id or the name 'nobody'"),
        (("revoke", "key_" + "0" * 26), "there is no key with the id"),
    ],
)
def test_a_refusal_is_one_line_that_names_the_reason(
    cli: Cli, arguments: tuple[str, ...], reason: str
) -> None:
    result = cli(*arguments, code=1)
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert reason in result.stderr


def test_a_caller_who_may_not_is_told_which_scope_is_missing(cli: Cli, name: str) -> None:
    secret = cli("create", name, "--scope", "infer").stdout.strip()
    refused = cli("list", code=1, HEADRACE_TOKEN=secret)
    assert refused.stdout == ""
    assert refused.stderr.count("\n") == 1
    assert "admin" in refused.stderr


def test_a_platform_that_is_not_there_is_told_with_its_address(cli: Cli) -> None:
    result = cli("list", code=2, HEADRACE_URL=UNUSED)
    assert result.stderr.startswith(f"headrace: cannot reach {UNUSED}: connection refused")


# On its database


@pytest.fixture
def local(data: Path) -> Cli:
    """On the database of the platform, with no credential at all."""
    return Cli(HEADRACE_STORAGE__DATA_DIR=str(data))


def test_a_key_is_made_beside_the_running_platform_without_any_credential(
    server: Server, local: Cli, data: Path, name: str
) -> None:
    made = local("create", name, "--scope", "admin", "--local")
    secret = made.stdout.removesuffix("\n")
    assert str(data) in made.stderr
    eventually(lambda: status(server, secret) == 200, timeout_s=_EFFECTIVE_S)
    assert name in Cli(HEADRACE_URL=server.url, HEADRACE_TOKEN=secret)("list").stdout
    local("revoke", name, "--local")
    eventually(lambda: status(server, secret) == 401, timeout_s=_EFFECTIVE_S)


@pytest.mark.usefixtures("server")
def test_the_database_lists_what_the_platform_lists(cli: Cli, local: Cli, name: str) -> None:
    cli("create", name, "--scope", "infer", "--expires", "2100-01-31")
    (told,) = [key for key in cli.json("list") if key["name"] == name]
    (found,) = [key for key in local.json("list", "--local") if key["name"] == name]
    assert found == told


def test_the_audit_trail_names_the_unix_user_whatever_the_environment_says(
    server: Server, local: Cli, name: str
) -> None:
    local("create", name, "--scope", "infer", "--local", USER="mallory", LOGNAME="mallory")
    user = pwd.getpwuid(os.getuid()).pw_name
    path = f"/api/v1/audit?principal=local%3A{user}&action=key.create"
    answer = server.request("GET", path, headers={"Authorization": f"Bearer {TOKEN}"})
    (event,) = [each for each in answer.json()["items"] if each["after"]["name"] == name]
    assert event["request_id"]


def test_a_user_without_a_name_is_a_number_in_the_audit_trail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nameless(_: int) -> NoReturn:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", nameless)  # as in a container
    settings = load(overrides={"storage": {"data_dir": str(tmp_path)}})
    with local_keys.opened(settings, tenant="default") as keyring:
        keyring.create_key({"name": "ci", "scopes": ["infer"]})

    async def principals() -> list[str]:
        store = await open_store(settings.database, data_dir=tmp_path, now=utc_now)
        events = await store.audit_trail(AuditQuery(tenant="default"))
        await store.close()
        return [event.principal for event in events.items]

    assert asyncio.run(principals()) == [f"local:{os.getuid()}"]


def test_a_key_of_another_tenant_is_not_ours(local: Cli, name: str) -> None:
    made = local.json("create", name, "--scope", "infer", "--local", "--tenant", name)
    assert made["id"] not in local("list", "--local").stdout
    local("revoke", made["id"], "--local", code=1)
    local("revoke", made["id"], "--local", "--tenant", name)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("create", "a b", "--scope", "infer"), "it must be 1 to 128 letters"),
        (("create", "late", "--scope", "infer", "--expires", "2020-01-01"), "has passed"),
        (("revoke", "nobody"), "there is no key with the id or the name 'nobody'"),
        (("revoke", "key_" + "0" * 26), "there is no key with the id"),
    ],
)
def test_the_database_refuses_what_the_platform_refuses(
    local: Cli, arguments: tuple[str, ...], reason: str
) -> None:
    result = local(*arguments, "--local", code=1)
    assert result.stdout == ""
    assert reason in result.stderr


def test_the_first_key_is_made_before_the_first_start(tmp_path: Path) -> None:
    data = tmp_path / "not" / "there"
    made = Cli().json("create", "admin", "--scope", "admin", "--local", "--data-dir", data)
    environment = {
        "HEADRACE_STORAGE__DATA_DIR": str(data),
        "HEADRACE_AUTHENTICATION__TOKENS": json.dumps({"ci": _sha256(TOKEN)}),
    }
    with serving(None, tmp_path / "log", environment=environment) as server:
        cli = Cli(HEADRACE_URL=server.url, HEADRACE_TOKEN=made["secret"])
        assert [key["id"] for key in cli.json("list")] == [made["id"]]


def test_postgresql_has_to_be_migrated_on_purpose(postgres: Postgres, tmp_path: Path) -> None:
    dsn = postgres.dsn(postgres.create_database()).replace("postgres@", "postgres:of-mine@")
    settings = tmp_path / "prod.toml"
    settings.write_text(f"[database]\nkind = 'postgres'\ndsn = '{dsn}'")
    cli = Cli(HEADRACE_SETTINGS=str(settings), HEADRACE_STORAGE__DATA_DIR=str(tmp_path))
    refused = cli("create", "ci", "--scope", "infer", "--local", code=2)
    assert refused.stdout == ""
    assert "run `headrace migrate`" in refused.stderr
    assert run_cli(["migrate", "--settings", str(settings)]).returncode == 0
    made = cli("create", "ci", "--scope", "infer", "--local")
    assert "of-mine" not in made.stderr
    assert len(cli.json("list", "--local")) == 1
