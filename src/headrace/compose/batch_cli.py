"""The commands of `headrace batch`: their arguments. What they do is imported when one is run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from headrace.compose.interrupts import interruptible
from headrace.compose.remote_command import Session, remote_command

if TYPE_CHECKING:
    from headrace.compose.batch_results import Places

_F = TypeVar("_F", bound=Callable[..., Any])
_STATES: Final = (
    "validating", "in_progress", "finalizing", "cancelling",
    "completed", "failed", "expired", "cancelled",
)  # fmt: skip
_WINDOW: Final = "24h"
_STREAM: Final = Path("-")
_source = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)
_place = click.Path(dir_okay=False, allow_dash=True, path_type=Path)


@click.group(short_help="Run files of rows through models, and take their answers.")
def batch() -> None:
    """Run files of rows, lines of JSON, through the models of a running platform.

    The platform is the one at --url, or HEADRACE_URL; it asks for the scope batch, and infer for
    the model. A batch goes on without the command that began it. Exit codes: 0 every row
    completed; 3 some rows failed; 1 the batch failed, expired or was cancelled, or the platform
    refuses; 2 it cannot be reached or the call is wrong; 130 interrupted.

    \b
    Examples:
      headrace batch run --model magika --input rows.jsonl --output out.jsonl
      headrace batch list
      headrace batch show batch_01kahsw60a0e4s3v2w5jqkb7xn
      headrace batch results batch_01kahsw60a0e4s3v2w5jqkb7xn --output out.jsonl
      headrace batch retry batch_01kahsw60a0e4s3v2w5jqkb7xn --wait
    """  # noqa: D301 - \b is click's mark of a paragraph to keep


def _command(command: _F) -> _F:
    """As the other commands that call a platform; and Ctrl-C is told as that."""

    @wraps(command)
    def wrapped(**given: Any) -> None:
        with interruptible():
            command(**given)

    return remote_command(wrapped)  # type: ignore[return-value]


def _pairs(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"{each!r} is not as team=search")
        found[name] = value
    return found


def _options(*options: Callable[[_F], _F]) -> Callable[[_F], _F]:
    def decorate(command: _F) -> _F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_output_option = click.option("-o", "--output", type=_place, metavar="FILE", help="Of the answers.")
_errors_option = click.option("--errors", type=_place, metavar="FILE", help="Of the failed rows.")
_creation_options = _options(
    click.option(
        "--completion-window",
        metavar="TIME",
        help="Rows that have not begun by then fail: 24h, 7d.",
    ),
    click.option("--priority", type=int, help="-10 to 10: its share beside your other batches."),
    click.option("--max-attempts", type=int, help="Of a row whose failure may pass."),
    click.option(
        "--metadata",
        multiple=True,
        metavar="NAME=VALUE",
        callback=_pairs,
        help="A pair of your own, kept with the batch.",
    ),
)


def _said(**options: Any) -> dict[str, Any]:
    """What of a creation is said."""
    return {name: value for name, value in options.items() if value not in (None, {}, ())}


@batch.command(short_help="Run the rows of a file, wait, and save their answers.")
@click.option(
    "-i", "--input", "source", type=_source, required=True, metavar="FILE", help="Rows; - is stdin."
)
@click.option(
    "-o", "--output", type=_place, metavar="FILE", help="Answers.  [default: beside the input]"
)
@click.option(
    "--errors",
    type=_place,
    metavar="FILE",
    help="Failed rows, where there are any.  [default: OUTPUT.errors.jsonl]",
)
@click.option("-m", "--model", default="", help="Whose inputs the rows are.")
@click.option("--version", default="", help="Of the model.  [default: as its route says]")
@_creation_options
@click.option("--fresh", is_flag=True, help="Begin anew, and overwrite what is there.")
@click.option("--no-wait", is_flag=True, help="Print the batch's id, and leave it to itself.")
@_command
def run(
    *,
    session: Session,
    source: Path,
    output: Path | None,
    errors: Path | None,
    model: str,
    version: str,
    completion_window: str | None,
    priority: int | None,
    max_attempts: int | None,
    metadata: dict[str, str],
    fresh: bool,
    no_wait: bool,
) -> None:
    """Run the rows of a file: upload them, wait for the batch, and save the answers.

    With --model a row is what the model is asked, {"inputs": [...]}, alone or with a "custom_id"
    beside it; who has none is called by its line's number. Lines of an OpenAI batch file, with
    "custom_id", "method", "url" and "body", are taken as they are, and need no --model.

    Answers and errors are lines as OpenAI writes them, in the order of the input. rows.jsonl has
    its answers in rows.output.jsonl by default. Until they are saved, OUTPUT.headrace-batch.json
    beside them tells which batch they come from: after Ctrl-C, or wherever the command ended, the
    same command again goes on with that batch instead of beginning another.

    Exit codes: 0 every row completed; 3 some rows failed, the others are saved; 1 the file was
    refused, the batch expired or was cancelled, or the platform refuses; 2 the platform cannot be
    reached, or the call is wrong; 130 interrupted, and the batch goes on.

    \b
    Examples:
      headrace batch run --model magika --input rows.jsonl --output out.jsonl
      headrace batch run --model iris --version 2 -i rows.jsonl --metadata team=search
      headrace batch run --input openai-lines.jsonl --priority -5 --completion-window 7d
      zcat rows.jsonl.gz | headrace batch run --model magika -i - -o out.jsonl
      ID=$(headrace batch run --model magika -i rows.jsonl --no-wait)
    """  # noqa: D301 - \b is click's mark of a paragraph to keep
    from headrace.compose.batch_client import BatchClient
    from headrace.compose.batch_results import Places
    from headrace.compose.batch_run import Wanted
    from headrace.compose.batch_run import run as carry_out

    if version and not model:
        raise click.UsageError("--version is of a model: name it with --model")
    if _STREAM in (output, errors):
        raise click.UsageError("a run resumes by its output, which has to be a file")
    stream = source == _STREAM
    if output is None and not (stream and no_wait):
        if stream:
            raise click.UsageError("name a file for the answers with --output")
        output = source.with_suffix(f".output{source.suffix}")
    if errors is None and output is not None:
        errors = output.with_name(f"{output.name}.errors.jsonl")
    wanted = Wanted(
        input=None if stream else source,
        model=model,
        version=version,
        places=Places(output, errors),
        said=_said(
            completion_window=completion_window or _WINDOW,
            priority=priority,
            max_attempts=max_attempts,
            metadata=metadata,
        ),
        fresh=fresh,
        waits=not no_wait,
    )
    with session.connected(BatchClient) as (client, printed):
        sys.exit(carry_out(client, printed, wanted))


_tenant_option = click.option(
    "--tenant",
    default="",
    metavar="NAME",
    help="Whose batches, '*' for all: for admins of the tenant default.  [default: your own]",
)


@batch.command("list", short_help="List batches, the newest first.")
@click.option("--state", "states", multiple=True, type=click.Choice(_STATES))
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=20,
    metavar="NUMBER",
    help="Most batches that are listed.  [default: 20]",
)
@click.option("--all", "all_", is_flag=True, help="However many there are.")
@_tenant_option
@_command
def list_(
    *, session: Session, states: tuple[str, ...], limit: int, all_: bool, tenant: str
) -> None:
    """List batches, the newest first.

    \b
    Examples:
      headrace batch list
      headrace batch list --state in_progress --state validating --all
      headrace batch list --limit 100 --json
    """  # noqa: D301 - \b is click's mark of a paragraph to keep
    from headrace.compose import batch_commands as commands
    from headrace.compose.batch_client import BatchClient

    most = None if all_ else limit
    with session.connected(BatchClient) as (client, output):
        commands.list_batches(
            client, output, states=states, limit=most, now=time.time(), tenant=tenant
        )


@batch.command(short_help="Show a batch: its rows, times, files, and what is wrong.")
@click.argument("id_", metavar="ID")
@_tenant_option
@_command
def show(*, session: Session, id_: str, tenant: str) -> None:
    """Show a batch: its rows, its times, its files, and what is wrong with its input.

    \b
    Examples:
      headrace batch show batch_01kahsw60a0e4s3v2w5jqkb7xn
      headrace batch show batch_01kahsw60a0e4s3v2w5jqkb7xn --json
    """  # noqa: D301 - \b is click's mark of a paragraph to keep
    from headrace.compose import batch_commands as commands
    from headrace.compose.batch_client import BatchClient

    with session.connected(BatchClient) as (client, output):
        commands.show(client, output, id_=id_, tenant=tenant)


@batch.command(short_help="Run no more rows of batches.")
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--all-open", is_flag=True, help="All batches that have not ended.")
@_tenant_option
@_command
def cancel(*, session: Session, ids: tuple[str, ...], all_open: bool, tenant: str) -> None:
    """Run no more rows of a batch. Those that were run keep their answers.

    Of several, those that have ended by now are told and are no error.

    \b
    Examples:
      headrace batch cancel batch_01kahsw60a0e4s3v2w5jqkb7xn
      headrace batch cancel --all-open
      headrace batch cancel --all-open --tenant '*'
    """  # noqa: D301 - \b is click's mark of a paragraph to keep
    from headrace.compose import batch_commands as commands
    from headrace.compose.batch_client import BatchClient

    if bool(ids) is all_open:
        raise click.UsageError("name batches, or all with --all-open")
    with session.connected(BatchClient) as (client, output):
        if len(ids) == 1:
            commands.cancel(client, output, id_=ids[0], tenant=tenant)
        else:
            commands.cancel_all(client, output, ids=ids or None, tenant=tenant)


@batch.command(short_help="Save the answers and the errors of a batch.")
@click.argument("id_", metavar="ID")
@click.option(
    "-o", "--output", type=_place, metavar="FILE", help="Answers.  [default: -, which is stdout]"
)
@_errors_option
@click.option("--wait", is_flag=True, help="For the batch's end, where it goes on.")
@click.option("--force", is_flag=True, help="Overwrite what is there.")
@_command
def results(
    *,
    session: Session,
    id_: str,
    output: Path | None,
    errors: Path | None,
    wait: bool,
    force: bool,
) -> None:
    """Save the answers of a batch that has ended, and the errors of rows that failed.

    With --errors alone only those are saved. Exit codes: 0 every row completed; 3 some rows
    failed; 1 the batch failed, expired, was cancelled or has not ended.

    \b
    Examples:
      headrace batch results batch_01kahsw60a0e4s3v2w5jqkb7xn --output out.jsonl
      headrace batch results batch_01kahsw60a0e4s3v2w5jqkb7xn --errors - | jq .error
      headrace batch results batch_01kahsw60a0e4s3v2w5jqkb7xn --wait > out.jsonl
    """  # noqa: D301 - \b is click's mark of a paragraph to keep
    from headrace.compose import batch_commands as commands
    from headrace.compose.batch_client import BatchClient
    from headrace.compose.batch_results import Places

    if output == _STREAM and errors == _STREAM:
        raise click.UsageError("one of --output and --errors has to be a file")
    if output is None and errors is None:
        output = _STREAM
    with session.connected(BatchClient) as (client, printed):
        places = Places(output, errors)
        sys.exit(commands.results(client, printed, id_=id_, places=places, waits=wait, force=force))


_wait_option = click.option(
    "--wait", is_flag=True, help="For its end; --output and --errors do that too."
)


@batch.command(short_help="Begin a batch of the rows that failed in another.")
@click.argument("id_", metavar="ID")
@click.option(
    "--code", "codes", multiple=True, help="Only rows that failed with it: endpoint_timeout."
)
@_creation_options
@_wait_option
@_output_option
@_errors_option
@_command
def retry(
    *,
    session: Session,
    id_: str,
    codes: tuple[str, ...],
    completion_window: str | None,
    priority: int | None,
    max_attempts: int | None,
    metadata: dict[str, str],
    wait: bool,
    output: Path | None,
    errors: Path | None,
) -> None:
    """Begin a batch of the rows that failed in one that has ended, and print its id.

    What is not said is as in that batch. With --wait it exits as `headrace batch run` does.

    \b
    Examples:
      headrace batch retry batch_01kahsw60a0e4s3v2w5jqkb7xn
      headrace batch retry batch_01kahsw60a0e4s3v2w5jqkb7xn --output rest.jsonl
      headrace batch retry batch_01kahsw60a0e4s3v2w5jqkb7xn --code endpoint_timeout --wait
    """  # noqa: D301 - \b is click's mark of a paragraph to keep
    said = _said(
        codes=codes,
        completion_window=completion_window,
        priority=priority,
        max_attempts=max_attempts,
        metadata=metadata,
    )
    _again(session, id_, said, wait=wait, output=output, errors=errors)


@batch.command(short_help="Run again the rows of chunks that were given up.")
@click.argument("id_", metavar="ID")
@_wait_option
@_output_option
@_errors_option
@_command
def replay(
    *, session: Session, id_: str, wait: bool, output: Path | None, errors: Path | None
) -> None:
    """Begin a batch of the rows whose chunk was given up (`chunk_dead`), and print its id.

    A chunk, some thousand rows that are worked on together, is given up when whoever worked on it
    failed again and again. Replay it once the reason is mended: rows that failed by themselves
    are not run again.

    \b
    Examples:
      headrace batch replay batch_01kahsw60a0e4s3v2w5jqkb7xn
      headrace batch replay batch_01kahsw60a0e4s3v2w5jqkb7xn --output rest.jsonl
    """  # noqa: D301 - \b is click's mark of a paragraph to keep
    from headrace.domain.errors import ChunkDead

    said = {"codes": [ChunkDead.code]}
    _again(session, id_, said, wait=wait, output=output, errors=errors)


def _again(
    session: Session,
    id_: str,
    said: dict[str, Any],
    *,
    wait: bool,
    output: Path | None,
    errors: Path | None,
) -> None:
    from headrace.compose import batch_commands as commands
    from headrace.compose.batch_client import BatchClient
    from headrace.compose.batch_results import Places

    if output == _STREAM and errors == _STREAM:
        raise click.UsageError("one of --output and --errors has to be a file")
    places: Places = Places(output, errors)
    waits = wait or output is not None or errors is not None
    with session.connected(BatchClient) as (client, printed):
        sys.exit(commands.retry(client, printed, id_=id_, content=said, places=places, waits=waits))
