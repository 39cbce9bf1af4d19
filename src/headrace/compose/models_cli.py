"""The commands of `headrace models`: their arguments. What they do is imported when one is run."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import click

from headrace.compose.remote_command import Session, remote_command

_STATUSES = ("pending", "ready", "deprecated", "archived", "failed")


@click.group(short_help="Push, promote, roll back and pull models of a running platform.")
def models() -> None:
    """Work with the registry of a running platform, by its management API.

    The platform is the one at --url, or HEADRACE_URL. Exit codes: 1 where the platform refuses,
    2 where it cannot be reached or the call is wrong.

    \b
    Examples:
      headrace models push model.onnx --name iris --tag nightly --alias champion
      headrace models list --tag nightly
      headrace models show iris champion
      headrace models promote iris 2 --alias champion --smoke request.json
      headrace models rollback iris --alias champion
      headrace models pull iris -o iris.onnx
    """  # noqa: D301 - \b is click's mark of a paragraph to keep


def _metrics(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> dict[str, float]:
    found = {}
    for each in given:
        name, equals, number = each.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not (name and equals and math.isfinite(value)):
            raise click.BadParameter(f"{each!r} is not as accuracy=0.97")
        found[name] = value
    return found


_alias_option = click.option("--alias", required=True, metavar="ALIAS", help="As champion.")
_force_option = click.option("--force", is_flag=True, help="Though an alias or a route needs it.")
_file = click.Path(exists=True, dir_okay=False, path_type=Path)


@models.command(short_help="Publish a model file as a new version.")
@click.argument("file", type=_file)
@click.option("--name", required=True, help="Of the model; it is registered where it is not.")
@click.option("--tag", "tags", multiple=True, help="Of the version, and of a model that is new.")
@click.option("--version", default="", help="Its number.  [default: the next one]")
@click.option("--alias", default="", help="Promote it to this alias, if it passes the checks.")
@click.option("--description", default="", help="Of the version.")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME=NUMBER",
    callback=_metrics,
    help="Of its evaluation.",
)
@remote_command
def push(
    *,
    session: Session,
    file: Path,
    name: str,
    tags: tuple[str, ...],
    version: str,
    alias: str,
    description: str,
    metrics: dict[str, float],
) -> None:
    """Publish FILE, an ONNX file or a ZIP archive with a model.onnx in it, as a version.

    It is uploaded, checked against its SHA-256, and looked at by the platform: loaded, and run
    once. Where it cannot be served the version is failed, and the reason is told.

    \b
    Examples:
      headrace models push model.onnx --name iris
      headrace models push iris.zip --name iris --tag nightly --metric accuracy=0.97
      headrace models push model.onnx --name iris --alias champion
    """  # noqa: D301 - \b is click's mark of a paragraph to keep
    from headrace.compose.models_push import Wanted
    from headrace.compose.models_push import push as run

    wanted = Wanted(version=version, description=description, tags=tags, metrics=metrics)
    with session.opened() as (client, output):
        run(
            client,
            output,
            file,
            name=name,
            wanted=wanted,
            alias=alias,
            with_token=session.with_token,
        )


@models.command("list", short_help="List models, or versions by status.")
@click.option("--name", default="", help="Models with this in their name, in any case.")
@click.option("--tag", default="", help="Models with this tag; with --status, versions.")
@click.option("--status", type=click.Choice(_STATUSES), help="Versions in this status.")
@remote_command
def list_(*, session: Session, name: str, tag: str, status: str | None) -> None:
    """List models; with --status, versions of all models.

    \b
    Examples:
      headrace models list
      headrace models list --tag nightly --json
      headrace models list --name iris --status failed
      headrace models list --tag nightly --status ready
    """  # noqa: D301 - \b is click's mark of a paragraph to keep
    from headrace.compose import models_commands as commands

    with session.opened() as (client, output):
        commands.list_models(client, output, name=name, tag=tag, status=status or "")


@models.command(short_help="Show a model, or one version of it.")
@click.argument("name")
@click.argument("version", required=False, default="", metavar="[VERSION|ALIAS]")
@remote_command
def show(*, session: Session, name: str, version: str) -> None:
    """Show a model with its aliases and versions; or all of one version.

    \b
    Examples:
      headrace models show iris
      headrace models show iris 2
      headrace models show iris champion --json
    """  # noqa: D301 - \b is click's mark of a paragraph to keep
    from headrace.compose import models_commands as commands

    with session.opened() as (client, output):
        commands.show(client, output, name=name, wanted=version)


@models.command(short_help="Point an alias at a version that passes the checks.")
@click.argument("name")
@click.argument("version", metavar="VERSION|ALIAS")
@_alias_option
@click.option("--smoke", type=_file, metavar="FILE.json", help="Inputs to run it on.")
@click.option("--force", is_flag=True, help="Though its signature is not that of the one before.")
@remote_command
def promote(
    *, session: Session, name: str, version: str, alias: str, smoke: Path | None, force: bool
) -> None:
    """Point an alias at a version, and traffic with it, where every check passes.

    The version is ready, its signature is one that the present callers can go on with, it loads
    and runs, and it runs on the smoke inputs: an object with the data of each input by name, or a
    list of such objects.

    \b
    Examples:
      headrace models promote iris 2 --alias champion
      headrace models promote iris candidate --alias champion --smoke request.json
    """  # noqa: D301 - \b is click's mark of a paragraph to keep
    from headrace.compose import models_commands as commands

    with session.opened() as (client, output):
        commands.promote(
            client, output, name=name, wanted=version, alias=alias, smoke=smoke, force=force
        )


@models.command(short_help="Point an alias at where it pointed before.")
@click.argument("name")
@_alias_option
@remote_command
def rollback(*, session: Session, name: str, alias: str) -> None:
    """Point an alias, and traffic with it, at where it pointed before.

    \b
    Examples:
      headrace models rollback iris --alias champion
    """  # noqa: D301 - \b is click's mark of a paragraph to keep
    from headrace.compose import models_commands as commands

    with session.opened() as (client, output):
        commands.rollback(client, output, name=name, alias=alias)


@models.command(short_help="Save the file of a version.")
@click.argument("name")
@click.argument("version", required=False, default="", metavar="[VERSION|ALIAS]")
@click.option(
    "-o",
    "--output",
    "target",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A file, or a folder for it.  [default: NAME-VERSION.onnx or .zip]",
)
@click.option("--force", is_flag=True, help="Overwrite a file that is there.")
@remote_command
def pull(*, session: Session, name: str, version: str, target: Path | None, force: bool) -> None:
    """Save the file of a version as it was pushed: whole and with its digest verified, or not.

    Without a version it is the champion's, or else that of the newest version that is ready.

    \b
    Examples:
      headrace models pull iris
      headrace models pull iris 2 -o iris.onnx --force
    """  # noqa: D301 - \b is click's mark of a paragraph to keep
    from headrace.compose import models_commands as commands

    with session.opened() as (client, output):
        commands.pull(client, output, name=name, wanted=version, target=target, force=force)


@models.command(short_help="Mark a version as one that nobody should begin to use.")
@click.argument("name")
@click.argument("version", metavar="VERSION|ALIAS")
@remote_command
def deprecate(*, session: Session, name: str, version: str) -> None:
    """Mark a version as deprecated: it is served on where it is asked for.

    \b
    Examples:
      headrace models deprecate iris 1
    """  # noqa: D301 - \b is click's mark of a paragraph to keep
    from headrace.compose import models_commands as commands

    with session.opened() as (client, output):
        commands.set_status(client, output, name=name, wanted=version, status="deprecated")


@models.command(short_help="Take a version out of service for good.")
@click.argument("name")
@click.argument("version", metavar="VERSION|ALIAS")
@_force_option
@remote_command
def archive(*, session: Session, name: str, version: str, force: bool) -> None:
    """Take a version out of service for good. Its file and its record stay.

    \b
    Examples:
      headrace models archive iris 1
    """  # noqa: D301 - \b is click's mark of a paragraph to keep
    from headrace.compose import models_commands as commands

    with session.opened() as (client, output):
        commands.set_status(
            client, output, name=name, wanted=version, status="archived", force=force
        )


@models.command(short_help="Remove a version, or a whole model.")
@click.argument("name")
@click.argument("version", required=False, default="")
@_force_option
@click.option("--yes", is_flag=True, help="Do not ask whether a whole model is meant.")
@remote_command
def delete(*, session: Session, name: str, version: str, force: bool, yes: bool) -> None:
    """Remove a version; without one the model, with all its versions and aliases.

    \b
    Examples:
      headrace models delete iris 1
      headrace models delete iris --yes
    """  # noqa: D301 - \b is click's mark of a paragraph to keep
    from headrace.compose import models_commands as commands

    if not (version or yes):
        if not sys.stdin.isatty():
            raise click.UsageError("this removes a whole model: say --yes")
        click.confirm(f"Remove {name} with all its versions?", abort=True, err=True)
    with session.opened() as (client, output):
        commands.delete(client, output, name=name, number=version, force=force)
