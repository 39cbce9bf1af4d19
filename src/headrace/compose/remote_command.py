"""What the commands share that call a running platform: where it is, as whom, how errors are told.

Nothing here is loaded before a command runs but what parses its arguments.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from headrace.domain.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.compose.models_output import Output
    from headrace.compose.platform_client import PlatformClient
    from headrace.compose.registry_client import RegistryClient

_C = TypeVar("_C", bound="PlatformClient")
_F = TypeVar("_F", bound=Callable[..., Any])
_REFUSED = 1
_USAGE_ERROR = 2


class Session:
    """Where to, as whom, and how to tell of it."""

    def __init__(self, *, url: str, token: str | None, as_json: bool) -> None:
        self._url = url
        self._token = token or ""
        self._as_json = as_json
        self.with_token = bool(token)

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple[RegistryClient, Output]]:
        """A client of the platform's registry, and where to write."""
        from headrace.compose.registry_client import RegistryClient

        with self.connected(RegistryClient) as opened:
            yield opened

    @contextlib.contextmanager
    def connected(self, kind: type[_C]) -> Iterator[tuple[_C, Output]]:
        """A client of the platform, and where to write."""
        from headrace.compose.models_output import Output

        client = kind(self._url, token=self._token)
        try:
            yield client, Output(as_json=self._as_json)
        finally:
            client.close()


def remote_command(command: _F) -> _F:
    """Hand a command its `session`, and tell of errors in a line each."""

    @wraps(command)
    def wrapped(*, url: str, token: str | None, as_json: bool, **given: Any) -> None:
        with errors_told():
            command(session=Session(url=url, token=token, as_json=as_json), **given)

    return remote_options(wrapped)  # type: ignore[return-value]


def remote_options(command: _F) -> _F:
    """Give a command the options `url`, `token` and `as_json`."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else."),
        click.option(
            "--token", envvar="HEADRACE_TOKEN", help="Token of the caller; or HEADRACE_TOKEN."
        ),
        click.option(
            "--url",
            envvar="HEADRACE_URL",
            default="http://127.0.0.1:8080",
            help="Where the platform is; or HEADRACE_URL.  [default: http://127.0.0.1:8080]",
        ),
    ):
        command = option(command)
    return command


@contextlib.contextmanager
def errors_told() -> Iterator[None]:
    """Tell of an error on stderr, a line each, and exit: 1 for a refusal, 2 for the rest."""
    try:
        yield
    except HeadraceError as error:
        from headrace.compose.model_file import Damaged
        from headrace.compose.platform_client import Refused
        from headrace.telemetry.logs import one_line

        for line in error.lines if isinstance(error, Refused) else (error.message,):
            click.echo(f"headrace: {one_line(line)}", err=True)
        sys.exit(_REFUSED if isinstance(error, Refused | Damaged) else _USAGE_ERROR)
