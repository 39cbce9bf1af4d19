"""`headrace models push`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace.compose import models_text as text
from headrace.compose.model_file import digest, opened, pieces
from headrace.compose.models_commands import promote_and_tell
from headrace.compose.models_output import Output
from headrace.compose.platform_client import Read, Refused, Unreachable
from headrace.compose.registry_client import RegistryClient
from headrace.compose.registry_views import Version
from headrace.domain.errors import HeadraceError

_ZIP: Final = b"PK\x03\x04"


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be said about a version that is pushed."""

    version: str = ""  # "": the next number
    description: str = ""
    tags: tuple[str, ...] = ()
    metrics: dict[str, float] = {}

    def content(self) -> dict[str, Any]:
        """As the API takes it, without what was not said."""
        return {name: value for name, value in msgspec.to_builtins(self).items() if value}


def push(
    client: RegistryClient,
    output: Output,
    file: Path,
    *,
    name: str,
    wanted: Wanted,
    alias: str,
    with_token: bool,
) -> None:
    """Publish a file as a version of a model, which is registered where it is not, and tell.

    Raises:
        Refused: the platform takes no such model, or would not promote it.
    """
    with opened(file) as stream:
        _register(client, output, name, wanted)
        if alias:
            client.alias(name, alias)  # one that cannot be is refused before anything is uploaded
        size = os.fstat(stream.fileno()).st_size
        with output.bar("reading", size) as advance:
            sha256, head = digest(stream, size, advance)
        media_type = "application/zip" if head == _ZIP else "application/onnx"
        pending = _publish(client, name, wanted)
        number = pending.value.version
        then = "the platform looks at it"
        with (
            output.bar(f"uploading {file.name}", size, then=then) as advance,
            _told_how_to_go_on(client, output, name, number),
        ):
            version = client.upload(
                name,
                number,
                pieces(stream, size, advance),
                size_bytes=size,
                media_type=media_type,
                digest=sha256,
                etag=pending.etag,
            )
    output.say(f"{name} version {number} is {version.value.status}: {text.bytes_of(size, sha256)}")
    if version.value.signature:
        output.say(*text.signature_lines(version.value.signature))
    told = {"version": version.raw, "promotion": None}
    if alias:
        content = {"version": number, "alias": alias}
        try:
            told["promotion"] = promote_and_tell(client, output, name, content).raw
        except Refused as refused:
            output.json(told | {"checks": msgspec.to_builtins(refused.checks)})
            raise
    asked_as = alias or number
    example = text.curl(client.url, version.value, asked_as=asked_as, with_token=with_token)
    output.say("", example)
    output.json(told)


def _register(client: RegistryClient, output: Output, name: str, wanted: Wanted) -> None:
    try:
        client.model(name)
    except Refused as refused:
        if refused.status != HTTPStatus.NOT_FOUND:
            raise
    else:
        return
    try:
        client.create_model({"name": name, "tags": list(wanted.tags)})
    except Refused as refused:
        if refused.status != HTTPStatus.CONFLICT:  # somebody was quicker, which is as well
            raise
    else:
        output.say(f"registered {name}")


def _publish(client: RegistryClient, name: str, wanted: Wanted) -> Read[Version]:
    """A pending version: a new one, or the one of that number that still waits for its artifact."""
    content = wanted.content()
    try:
        return client.create_version(name, content)
    except Refused as refused:
        if refused.status != HTTPStatus.CONFLICT or not wanted.version:
            raise
        try:
            present = client.version(name, wanted.version)
        except Refused:
            raise refused from None  # such a number is not given again
        if present.value.status != "pending":
            raise
    patch = {key: value for key, value in content.items() if key != "version"}
    if not patch:
        return present
    return client.update_version(name, wanted.version, patch, etag=present.etag)


@contextmanager
def _told_how_to_go_on(
    client: RegistryClient, output: Output, name: str, number: str
) -> Iterator[None]:
    """Where an upload did not succeed, say what has become of the version."""
    again = f"push again with --version {number}, or `headrace models delete {name} {number}`"
    try:
        yield
    except Refused as refused:
        try:
            present = client.version(name, number)
        except HeadraceError:
            raise refused from None
        first, *more = refused.lines
        if present.value.status == "pending":
            more.append(f"version {number} of {name} still waits for its artifact: {again}")
        else:
            first = f"{name} version {number} is {present.value.status}: {first}"
            output.json({"version": present.raw, "promotion": None})
        raise Refused(refused.status, [first, *more]) from refused
    except Unreachable as error:
        line = f"{error.message}; version {number} of {name} may still wait for its artifact"
        raise Unreachable(f"{line}: {again}") from error
    except KeyboardInterrupt:
        sys.stderr.write(f"\nheadrace: version {number} of {name} may be unfinished: {again}\n")
        raise
