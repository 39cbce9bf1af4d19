"""The commands of `headrace keys`: their arguments. What they do is imported when one is run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
from click.core import ParameterSource

from headrace.compose.access_options import require_scopes, require_tenant
from headrace.compose.keys_expiry import FORMS, expiry
from headrace.compose.remote_command import Session, errors_told, remote_options
from headrace.compose.settings_options import (
    data_option,
    environment,
    overrides,
    settings_option,
)

if TYPE_CHECKING:
    from headrace.compose.keys_commands import Keyring
    from headrace.compose.models_output import Output
    from headrace.settings import Settings

_F = TypeVar("_F", bound=Callable[..., Any])
_REMOTE: Final = ("url", "token")
_LOCAL: Final = ("settings_file", "data_dir", "tenant")


@click.group(short_help="Create, list and revoke the keys of callers.")
def keys() -> None:
    """Work with the keys by which callers show who they are.

    The platform is the one at --url, or HEADRACE_URL; it asks for the scope admin. With --local
    its database is written to instead, for which no key is needed: the first one is made so. Run
    that as the user who runs the platform, with its settings. Exit codes: 1 where it is refused,
    2 where nothing can be reached or the call is wrong.

    \b
    Examples:
      headrace keys create admin --scope admin --local
      KEY=$(headrace keys create ci --scope infer)
      headrace keys list --all
      headrace keys revoke ci
    """  # noqa: D301 - \b is click's mark of a paragraph to keep


class _Session:
    """Whose keys, where, and how to tell of them; `local` is the settings of the database."""

    def __init__(
        self, remote: Session, *, local: Settings | None, tenant: str, as_json: bool
    ) -> None:
        self._remote = remote
        self._local = local
        self._tenant = tenant
        self._as_json = as_json

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple[Keyring, Output]]:
        if self._local is None:
            with self._remote.opened() as opened:
                yield opened
            return
        from headrace.compose import local_keys
        from headrace.compose.models_output import Output

        with local_keys.opened(self._local, tenant=self._tenant) as keyring:
            output = Output(as_json=self._as_json)
            # another directory than the platform's would be a registry that nobody serves
            output.note(f"the registry in {local_keys.place(self._local)}:")
            yield keyring, output


def _command(command: _F) -> _F:
    """Give a command the options that all have, and tell of errors in a line each."""

    @wraps(command)
    def wrapped(
        *,
        url: str,
        token: str | None,
        as_json: bool,
        local: bool,
        settings_file: Path | None,
        data_dir: str | None,
        tenant: str,
        **given: Any,
    ) -> None:
        _require_one_place(local=local)
        with errors_told():
            session = _Session(
                Session(url=url, token=token, as_json=as_json),
                local=_settings(settings_file, data_dir) if local else None,
                tenant=tenant,
                as_json=as_json,
            )
            command(session=session, **given)

    made = remote_options(wrapped)
    for option in (
        click.option(
            "--tenant",
            default="default",
            callback=require_tenant,
            help="With --local, whose keys.  [default: default]",
        ),
        data_option,
        settings_option,
        click.option(
            "--local",
            is_flag=True,
            help="Work on the platform's database itself; --settings or --data-dir says where.",
        ),
    ):
        made = option(made)
    return made  # type: ignore[return-value]


def _require_one_place(*, local: bool) -> None:
    """Refuse options that would say nothing, as if they had been obeyed."""
    context = click.get_current_context()
    for option in context.command.params:
        odd = option.name in (_REMOTE if local else _LOCAL)
        source = context.get_parameter_source(option.name or "")
        if odd and source is ParameterSource.COMMANDLINE:
            how = "does not go with --local" if local else "goes with --local only"
            raise click.UsageError(f"{option.opts[0]} {how}")


def _settings(file: Path | None, data_dir: str | None) -> Settings:
    from headrace.settings import load

    return load(
        file, environment=environment(), overrides=overrides(("storage", "data_dir", data_dir))
    )


def _expiry(_: click.Context, __: click.Parameter, given: str | None) -> datetime | None:
    try:
        return None if given is None else expiry(given, datetime.now(UTC))
    except ValueError as error:
        raise click.BadParameter(f"{given!a} is no time: {error}") from None


@keys.command(short_help="Make a key, and print its secret once.")
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    required=True,
    multiple=True,
    callback=require_scopes,
    help="What it may do: infer, infer:MODEL*, batch, models:read, models:write, admin.",
)
@click.option("--expires", "expires_at", metavar="WHEN", callback=_expiry, help=f"As {FORMS}.")
@_command
def create(
    *, session: _Session, name: str, scopes: tuple[str, ...], expires_at: datetime | None
) -> None:
    """Make a key called NAME. Its secret is printed once, alone on stdout; only a hash is kept.

    \b
    Examples:
      headrace keys create ci --scope infer --expires 30d
      KEY=$(headrace keys create shop --scope 'infer:fraud-*' --scope models:read)
      headrace keys create admin --scope admin --local --settings prod.toml
    """  # noqa: D301 - \b is click's mark of a paragraph to keep
    from headrace.compose import keys_commands as commands

    with session.opened() as (keyring, output):
        commands.create(keyring, output, name=name, scopes=scopes, expires_at=expires_at)


@keys.command("list", short_help="List keys, without their secrets.")
@click.option("--all", "everything", is_flag=True, help="Revoked and expired ones too.")
@_command
def list_(*, session: _Session, everything: bool) -> None:
    """List the keys that are accepted. Secrets are shown by nobody.

    \b
    Examples:
      headrace keys list
      headrace keys list --all --json
      headrace keys list --local --tenant acme
    """  # noqa: D301 - \b is click's mark of a paragraph to keep
    from headrace.compose import keys_commands as commands

    with session.opened() as (keyring, output):
        commands.list_keys(keyring, output, everything=everything, now=datetime.now(UTC))


@keys.command(short_help="Refuse a key from now on.")
@click.argument("wanted", metavar="ID|NAME")
@_command
def revoke(*, session: _Session, wanted: str) -> None:
    """Refuse a key from now on, within 5 s on every process. Once more changes nothing.

    A name will do where one active key has it.

    \b
    Examples:
      headrace keys revoke ci
      headrace keys revoke key_01kahsw60a0e4s3v2w5jqkb7xn
      headrace keys revoke ci --local
    """  # noqa: D301 - \b is click's mark of a paragraph to keep
    from headrace.compose import keys_commands as commands

    with session.opened() as (keyring, output):
        commands.revoke(keyring, output, wanted=wanted, now=datetime.now(UTC))
