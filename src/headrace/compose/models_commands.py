"""What each command of `headrace models` does; see models_push.py for one more."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from headrace.compose import models_text as text
from headrace.compose.model_file import opened, require_free, save
from headrace.compose.models_output import Output
from headrace.compose.platform_client import Read, Refused
from headrace.compose.registry_client import RegistryClient
from headrace.compose.registry_views import Alias, Check, Model, Promotion, Version
from headrace.domain.errors import InvalidRequest

#: What answers requests that name no version, unless the platform is set otherwise.
CHAMPION: Final = "champion"
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,8}")

# Look


def list_models(
    client: RegistryClient, output: Output, *, name: str, tag: str, status: str
) -> None:
    """List models by tag; with `status`, versions by both, of all models with that name."""
    if not status:
        found = list(client.models(name=name, tag=tag))
        output.table(text.models_table(model.value for model in found))
        if not found:
            output.say("no model is registered" + (" that is so" if name or tag else ""))
        output.json([model.raw for model in found])
        return
    # all models first: a page's cursor is for now
    names = [model.value.name for model in client.models(name=name)]
    versions = [each for model in names for each in client.versions(model, status=status, tag=tag)]
    output.table(text.found_versions_table(version.value for version in versions))
    if not versions:
        output.say(f"no version is {status}" + (" that is so" if name or tag else ""))
    output.json([version.raw for version in versions])


def show(client: RegistryClient, output: Output, *, name: str, wanted: str) -> None:
    """Tell of a model with its aliases and versions, or all of one version."""
    if wanted:
        _show_version(client, output, name, _number(client, name, wanted))
        return
    model = client.model(name)
    aliases = list(client.aliases(name))
    versions = list(client.versions(name))
    counted = [client.statistics(name, version.value.version) for version in versions]
    output.say(*text.model_lines(model.value))
    if aliases:
        output.say("")
        output.table(text.aliases_table(alias.value for alias in aliases))
    if versions:
        output.say("")
        output.table(
            text.versions_table(
                [version.value for version in versions],
                aliases=[alias.value for alias in aliases],
                statistics=[each.value for each in counted],
            )
        )
    for version in versions:
        if version.value.reason:
            output.say(f"version {version.value.version}: {version.value.reason}")
    output.json(
        {
            "model": model.raw,
            "aliases": [alias.raw for alias in aliases],
            "versions": [
                version.raw | {"statistics": each.raw}
                for version, each in zip(versions, counted, strict=True)
            ],
        }
    )


def _show_version(client: RegistryClient, output: Output, name: str, number: str) -> None:
    version = client.version(name, number)
    aliases = [each.value.alias for each in client.aliases(name) if each.value.version == number]
    counted = client.statistics(name, number)
    output.say(*text.version_lines(version.value, aliases, counted.value))
    output.json({"version": version.raw, "aliases": aliases, "statistics": counted.raw})


def _number(client: RegistryClient, name: str, wanted: str) -> str:
    """The number of a version that is named by it, or by an alias.

    Raises:
        Refused: there is no such alias.
    """
    if _NUMBER.fullmatch(wanted):
        return wanted
    alias = client.alias(name, wanted)
    if alias is None:
        client.model(name)  # which may be what is missing
        known = ", ".join(sorted(each.value.alias for each in client.aliases(name))) or "none"
        line = f"model '{name}' has no version or alias '{wanted}'; its aliases: {known}"
        raise Refused(HTTPStatus.NOT_FOUND, [line])
    return alias.value.version


def _answering(client: RegistryClient, name: str) -> str:
    """The version that answers where none is named: the champion, else the newest ready one."""
    alias = client.alias(name, CHAMPION)
    if alias is not None:
        return alias.value.version
    newest = next(client.versions(name, status="ready"), None)
    if newest is None:
        raise Refused(HTTPStatus.NOT_FOUND, [f"model '{name}' has no version that is ready"])
    return newest.value.version


# Move


def promote(
    client: RegistryClient,
    output: Output,
    *,
    name: str,
    wanted: str,
    alias: str,
    smoke: Path | None,
    force: bool,
) -> None:
    """Point an alias at a version that passes every check, and tell of each.

    Raises:
        Refused: a check failed, or the alias was moved since it was read.
    """
    inputs = _smoke_inputs(smoke)
    number = _number(client, name, wanted)
    content = {"version": number, "alias": alias, "smoke_inputs": inputs, "force": force}
    try:
        output.json(promote_and_tell(client, output, name, content).raw)
    except Refused as refused:
        if refused.checks:
            output.json({"alias": None, "checks": msgspec.to_builtins(refused.checks)})
        raise


def promote_and_tell(
    client: RegistryClient, output: Output, name: str, content: Mapping[str, Any]
) -> Read[Promotion]:
    """Promote as the API takes it, and tell of every check. Raises Refused."""
    alias = content["alias"]
    present = client.alias(name, alias)
    try:
        made = client.promote(name, content, etag=present.etag if present else "")
    except Refused as refused:
        _tell_checks(output, refused.checks)
        raise
    _tell_checks(output, made.value.checks)
    output.say(*text.output_lines(made.value.outputs))
    output.say(_moved(name, present.value if present else None, made.value.alias))
    return made


def _tell_checks(output: Output, checks: Sequence[Check]) -> None:
    output.table(text.checks_table(checks))
    if checks:
        output.say("")


def _moved(name: str, before: Alias | None, now: Alias) -> str:
    if before is None:
        return f"{now.alias} of {name} points at version {now.version}"
    if before.version == now.version:
        return f"{now.alias} of {name} points at version {now.version}, as before"
    return f"{now.alias} of {name} points at version {now.version}, before at {before.version}"


def rollback(client: RegistryClient, output: Output, *, name: str, alias: str) -> None:
    """Point an alias at where it pointed before.

    Raises:
        Refused: there is nowhere to go back to, or the alias was moved since it was read.
    """
    present = client.alias(name, alias)
    if present is None:
        client.model(name)  # which may be what is missing
        raise Refused(HTTPStatus.NOT_FOUND, [f"model '{name}' has no alias '{alias}'"])
    now = client.rollback(name, alias, etag=present.etag)
    output.say(_moved(name, present.value, now.value))
    output.json(now.raw)


def _smoke_inputs(file: Path | None) -> list[dict[str, Any]]:
    """One request, or a list of them."""
    if file is None:
        return []
    with opened(file) as stream:
        try:
            found = msgspec.json.decode(stream.read(), type=dict[str, Any] | list[dict[str, Any]])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidRequest(
                f"{file}: expected an object with the inputs by name, or a list of them: {error}"
            ) from error
    return found if isinstance(found, list) else [found]


def set_status(
    client: RegistryClient,
    output: Output,
    *,
    name: str,
    wanted: str,
    status: Literal["deprecated", "archived"],
    force: bool = False,
) -> None:
    """Move a version to another status."""
    number = _number(client, name, wanted)
    present = client.version(name, number)
    now = client.update_version(name, number, {"status": status}, etag=present.etag, force=force)
    output.say(f"{name} version {number} is {now.value.status}")
    output.json(now.raw)


def delete(client: RegistryClient, output: Output, *, name: str, number: str, force: bool) -> None:
    """Remove a version, or without one the whole model."""
    gone: Read[Version] | Read[Model]
    if number:
        gone = client.version(name, number)
        client.delete_version(name, number, etag=gone.etag, force=force)
        output.say(f"{name} version {number} is gone")
    else:
        gone = client.model(name)
        client.delete_model(name, etag=gone.etag, force=force)
        output.say(f"{name} is gone, with all its versions")
    output.json(gone.raw)


# Pull


def pull(
    client: RegistryClient,
    output: Output,
    *,
    name: str,
    wanted: str,
    target: Path | None,
    force: bool,
) -> None:
    """Save the artifact of a version: whole and as it was uploaded, or not at all.

    Raises:
        Damaged: what came has another digest than the version.
    """
    number = _number(client, name, wanted) if wanted else _answering(client, name)
    version = client.version(name, number)
    artifact = version.value.artifact
    if artifact is None:
        status = version.value.status
        raise Refused(
            HTTPStatus.NOT_FOUND, [f"{name} version {number} is {status}: it has no artifact"]
        )
    place = target or Path()
    if place.is_dir():
        place /= f"{Path(name).name}-{number}.{'zip' if artifact.format == 'zip' else 'onnx'}"
    require_free(place, force=force)
    with (
        client.download(name, number) as download,
        output.bar(f"downloading {place.name}", artifact.size_bytes) as advance,
    ):
        sha256 = save(place, download.chunks, artifact.digest, advance, force=force)
    came = text.bytes_of(artifact.size_bytes, sha256)
    output.say(f"{place} is {name} version {number}: {came}")
    output.json({"file": str(place), "version": version.raw})
