"""The program `headrace`."""

from __future__ import annotations

import hashlib
import secrets
import sys
from collections.abc import Callable
from functools import wraps
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, TypeVar

import click

from headrace.compose.access_options import require_scopes, require_tenant
from headrace.compose.batch_cli import batch
from headrace.compose.keys_cli import keys
from headrace.compose.models_cli import models
from headrace.compose.settings_options import (
    data_option,
    environment,
    overrides,
    settings_option,
)
from headrace.compose.settings_text import as_toml, toml_key, toml_value
from headrace.domain.errors import HeadraceError, InvalidSettings
from headrace.domain.scopes import ADMIN
from headrace.gateway.static_tokens import require_free
from headrace.settings import load

_F = TypeVar("_F", bound=Callable[..., Any])
_USAGE_ERROR = 2


def _plain_errors(command: _F) -> _F:
    """What the user can mend is one line on stderr and exit code 2."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except* HeadraceError as group:
            for error in _leaves(group):
                click.echo(f"headrace: {error}", err=True)
            sys.exit(_USAGE_ERROR)

    return wrapped  # type: ignore[return-value]


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(installed_version("headrace"), prog_name="headrace")
def main() -> None:
    """Headrace serves models over the Open Inference Protocol.

    \b
    Examples:
      headrace demo                      classify files with a real model
      headrace serve ./models            serve a model repository on 127.0.0.1:8080
      headrace check-settings my.toml    say whether a settings file would start
    """  # noqa: D301 - \b is click's mark of a paragraph to keep


main.add_command(models)
main.add_command(keys)
main.add_command(batch)


@main.command()
@click.argument("models_dir", type=click.Path(path_type=Path), required=False)
@settings_option
@data_option
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--http-port", type=int, help="HTTP port; 0 takes a free one.  [default: 8080]")
@click.option("--grpc-port", type=int, help="gRPC port; 0 takes a free one.  [default: 8081]")
@click.option("--poll", type=float, metavar="SECONDS", help="Look for changed models this often.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="Write lines of this level and above.  [default: info]",
)
@click.option(
    "--log-format",
    type=click.Choice(["auto", "json", "pretty"]),
    help="auto is pretty on a terminal, else json.  [default: auto]",
)
@_plain_errors
def serve(
    *,
    models_dir: Path | None,
    settings_file: Path | None,
    data_dir: str | None,
    host: str | None,
    http_port: int | None,
    grpc_port: int | None,
    poll: float | None,
    log_level: str | None,
    log_format: str | None,
) -> None:
    """Serve every model of the repository MODELS_DIR, and those that are pushed.

    The repository is laid out as Triton's: MODELS_DIR/<model>/<version>/model.onnx or model.py,
    with an optional config.toml or config.pbtxt beside the versions. Without one, models come
    from the registry alone: `headrace models push` brings them there.

    \b
    Examples:
      headrace serve ./models
      headrace serve ./models --http-port 9000 --poll 5
      HEADRACE_LOG__LEVEL=debug headrace serve ./models --settings prod.toml
    """  # noqa: D301 - \b is click's mark of a paragraph to keep
    from headrace.compose.run import serve as run

    settings = load(
        settings_file,
        environment=environment(),
        overrides=overrides(
            ("server", "host", host),
            ("storage", "data_dir", data_dir),
            ("server", "http_port", http_port),
            ("server", "grpc_port", grpc_port),
            ("orchestrator", "poll_s", poll),
            ("log", "level", log_level),
            ("log", "format", log_format),
        ),
    )
    run(settings, models_dir, version=installed_version("headrace"))


@main.command(short_help="Bring the registry's database up to date.")
@settings_option
@data_option
@click.option("--check", is_flag=True, help="Change nothing; exit with 1 where there is something.")
@_plain_errors
def migrate(*, settings_file: Path | None, data_dir: str | None, check: bool) -> None:
    """Bring the registry's database up to the schema of this release.

    An embedded database does this by itself at the start; PostgreSQL, which several processes
    share, is migrated on purpose, before the new release starts.

    \b
    Examples:
      headrace migrate --settings prod.toml --check
      HEADRACE_DATABASE__KIND=postgres HEADRACE_DATABASE__DSN=postgresql://… headrace migrate
    """  # noqa: D301 - \b is click's mark of a paragraph to keep
    from headrace.compose.migrate import run
    from headrace.compose.registry import data_dir as folder

    settings = load(
        settings_file,
        environment=environment(),
        overrides=overrides(("storage", "data_dir", data_dir)),
    )
    if not run(settings.database, data_dir=folder(settings), check=check, say=click.echo):
        sys.exit(1)


@main.command("check-settings", short_help="Say whether settings would start, and print them.")
@click.argument("file", type=click.Path(path_type=Path), required=False, envvar="HEADRACE_SETTINGS")
@_plain_errors
def check_settings(file: Path | None) -> None:
    """Say whether FILE and the environment are settings that would start, and print them all.

    What is secret in them, passwords in URLs too, is printed as ***.

    \b
    Examples:
      headrace check-settings prod.toml
      HEADRACE_SERVER__HTTP_PORT=80 headrace check-settings
    """  # noqa: D301 - \b is click's mark of a paragraph to keep
    from headrace.compose.checks import check

    settings = load(file, environment=environment())
    check(settings)
    click.echo(as_toml(settings))


@main.command(short_help="Make a token for a caller.")
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    callback=require_scopes,
    help="What it may do: infer, infer:MODEL*, batch, models:read, …  [default: everything]",
)
@click.option("--tenant", callback=require_tenant, help="Whose it is.  [default: default]")
@_plain_errors
def token(*, name: str, scopes: tuple[str, ...], tenant: str | None) -> None:
    """Make a token for the caller NAME and print the setting that admits it.

    The token is printed once and stored nowhere; the setting holds its SHA-256 only. A key, which
    `headrace keys create` makes, needs no setting and can be revoked while the platform runs.

    \b
    Examples:
      headrace token nightly-job
      headrace token shop --scope infer --scope models:read
      headrace token shop --scope 'infer:fraud-*' --tenant acme
    """  # noqa: D301 - \b is click's mark of a paragraph to keep
    if not name.strip():
        msg = "a caller needs a name"
        raise InvalidSettings(msg)
    secret = secrets.token_urlsafe(32)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    require_free(name)
    # a table of its own, so that several can be pasted one after the other
    lines = [
        f"[authentication.tokens.{toml_key(name)}]",
        f"sha256 = {toml_value(digest)}",
        f"scopes = {toml_value(list(dict.fromkeys(scopes)) or [ADMIN])}",
    ]
    lines += [f"tenant = {toml_value(tenant)}"] if tenant else []
    click.echo(f"token:   {secret}")
    click.echo("setting: " + "\n         ".join(lines))


@main.command(short_help="Classify files with a real model.")
@click.option("--keep", is_flag=True, help="Leave the platform running and print how to call it.")
@click.option("--http-port", type=int, default=0, help="HTTP port.  [default: a free one]")
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_plain_errors
def demo(*, keep: bool, http_port: int, files: tuple[Path, ...]) -> None:
    """Serve a real file-type classifier and ask it about FILES (this folder's, if none).

    \b
    Examples:
      headrace demo
      headrace demo ~/Downloads/*
      headrace demo --keep --http-port 8080
    """  # noqa: D301 - \b is click's mark of a paragraph to keep
    from headrace.compose.demo import run

    run(files, keep=keep, http_port=http_port, version=installed_version("headrace"))
