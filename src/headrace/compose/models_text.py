"""What `headrace models` prints: text and tables, in which nothing steers a terminal."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final
from urllib.parse import quote, urlsplit

import msgspec
from rich.table import Table

from headrace.compose.registry_views import (
    Alias,
    Check,
    Model,
    Signature,
    Statistics,
    Tensor,
    Version,
)
from headrace.compose.text_table import add_row, moment, new_table

_KIB: Final = 1024
_MAX_ELEMENTS: Final = 256  # of an example request that is still good to read
_SHOWN_ELEMENTS: Final = 8
_DIGEST_SHOWN: Final = 12
_NO_JSON: Final = frozenset({"FP16", "BF16"})
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})

# Tables


def models_table(models: Iterable[Model]) -> Table:
    """A line for each model."""
    table = new_table("name", "tags", "owner", "description", "changed")
    for model in models:
        tags = ", ".join(model.tags)
        add_row(table, model.name, tags, model.owner, model.description, moment(model.updated_at))
    return table


def versions_table(
    versions: Sequence[Version], *, aliases: Sequence[Alias], statistics: Sequence[Statistics]
) -> Table:
    """A line for each version of a model; `statistics` are theirs, in the same order."""
    table = new_table("version", "status", "aliases", "size", "tags")
    for name in ("requests", "errors", "p50", "p99"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("changed", no_wrap=True)
    table.add_column("by", overflow="fold")
    for version, counted in zip(versions, statistics, strict=True):
        add_row(
            table,
            version.version,
            version.status,
            ", ".join(sorted(a.alias for a in aliases if a.version == version.version)),
            _size(version),
            ", ".join(version.tags),
            str(counted.requests),
            str(counted.errors),
            seconds(counted.latency_s.p50),
            seconds(counted.latency_s.p99),
            moment(version.updated_at),
            version.created_by,
        )
    return table


def found_versions_table(versions: Iterable[Version]) -> Table:
    """A line for each version, of whatever model."""
    table = new_table("model", "version", "status", "size", "tags", "changed", "by", "reason")
    for version in versions:
        add_row(
            table,
            version.model,
            version.version,
            version.status,
            _size(version),
            ", ".join(version.tags),
            moment(version.updated_at),
            version.created_by,
            version.reason,
        )
    return table


def _size(version: Version) -> str:
    return byte_size(version.artifact.size_bytes) if version.artifact else "-"


def aliases_table(aliases: Iterable[Alias]) -> Table:
    """A line for each alias."""
    table = new_table("alias", "version", "before", "moved", "by")
    for alias in aliases:
        moved = moment(alias.updated_at)
        add_row(table, alias.alias, alias.version, alias.previous or "-", moved, alias.updated_by)
    return table


def checks_table(checks: Iterable[Check]) -> Table:
    """A line for each check of a promotion."""
    table = new_table("check", "outcome", "")
    for check in checks:
        add_row(table, check.name.replace("_", " "), check.outcome, check.detail)
    return table


# Lines


def model_lines(model: Model) -> Iterator[str]:
    """What is said about a model."""
    yield model.name
    said = {
        "description": model.description,
        "owner": model.owner,
        "tags": ", ".join(model.tags),
        "registered": moment(model.created_at),
    }
    yield from _pairs(said)


def version_lines(
    version: Version, aliases: Sequence[str], statistics: Statistics
) -> Iterator[str]:
    """What there is to say about a version."""
    yield f"{version.model} version {version.version}"
    artifact = version.artifact
    counted, latency = statistics, statistics.latency_s
    asked = f"{counted.requests}, of which {counted.errors} failed"
    took = f"p50 {seconds(latency.p50)}, p90 {seconds(latency.p90)}, p99 {seconds(latency.p99)}"
    said = {
        "status": version.status,
        "reason": version.reason,
        "aliases": ", ".join(aliases),
        "artifact": f"{artifact.format}, {byte_size(artifact.size_bytes)}" if artifact else "none",
        "sha-256": artifact.digest if artifact else "",
        "source": artifact.source if artifact else "",
        "description": version.description,
        "tags": ", ".join(version.tags),
        "metrics": ", ".join(f"{name} {value:g}" for name, value in version.metrics.items()),
        "published": f"{moment(version.created_at)} by {version.created_by}",
        "requests": asked,
        "latency": took if counted.requests else "",
        "last used": moment(counted.last_used_at) if counted.last_used_at else "never",
    }
    yield from _pairs(said)
    if version.signature:
        yield from signature_lines(version.signature)


def signature_lines(signature: Signature) -> Iterator[str]:
    """A line for each input and output."""
    for kind, tensors in (("input", signature.inputs), ("output", signature.outputs)):
        for tensor in tensors:
            optional = ", optional" if tensor.optional else ""
            yield f"  {kind:<12} {tensor.name} {tensor.datatype} {list(tensor.shape)}{optional}"


def output_lines(outputs: Iterable[dict[str, Any]]) -> Iterator[str]:
    """What the smoke inputs came to."""
    for number, tensors in enumerate(outputs, 1):
        for name, tensor in tensors.items():
            data = tensor.get("data", []) if isinstance(tensor, dict) else []
            shown = msgspec.json.encode(data[:_SHOWN_ELEMENTS]).decode()
            more = " …" if len(data) > _SHOWN_ELEMENTS else ""
            yield f"smoke input {number}: {name} {tensor.get('shape', '')} {shown}{more}"


def _pairs(said: dict[str, str]) -> Iterator[str]:
    return (f"  {name:<12} {text}" for name, text in said.items() if text)


# How to call


def curl(url: str, version: Version, *, asked_as: str, with_token: bool) -> str:
    """A command that asks the version something, ready to be pasted into a shell.

    Where no short request in JSON says it all, it asks what the version takes instead.
    """
    path = f"{url}/v2/models/{quote(version.model, safe='')}/versions/{quote(asked_as, safe='')}"
    request = _request(version.signature)
    lines = [f"curl -sS {shlex.quote(path + ('/infer' if request else ''))}"]
    if urlsplit(url).hostname in _LOOPBACK:
        lines[0] = lines[0].replace("curl -sS", "curl -sS --noproxy '*'", 1)
    if with_token:
        # its name: the token itself is for nobody's history
        lines.append('-H "Authorization: Bearer $HEADRACE_TOKEN"')
    if request:
        lines += ["-H 'Content-Type: application/json'", f"-d {shlex.quote(request)}"]
    return " \\\n  ".join(lines)


def _request(signature: Signature | None) -> str:
    """A request of zeros and empty texts with every open axis 1; "" where none is of use."""
    if signature is None:
        return ""
    inputs = [spec for spec in signature.inputs if not spec.optional]
    sizes = [math.prod(_closed(spec)) for spec in inputs]
    if sum(sizes) > _MAX_ELEMENTS or any(spec.datatype in _NO_JSON for spec in inputs):
        return ""
    tensors = [
        {
            "name": spec.name,
            "datatype": spec.datatype,
            "shape": _closed(spec),
            "data": [_nothing(spec.datatype)] * size,
        }
        for spec, size in zip(inputs, sizes, strict=True)
    ]
    return msgspec.json.encode({"inputs": tensors}).decode()


def _closed(spec: Tensor) -> list[int]:
    return [1 if size < 0 else size for size in spec.shape]


def _nothing(datatype: str) -> Any:
    if datatype == "BYTES":
        return ""
    return False if datatype == "BOOL" else 0


# Values


def byte_size(size: int) -> str:
    """1536 is 1.5 KiB."""
    if size < _KIB:
        return f"{size} bytes"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB"):
        value /= _KIB
        if value < _KIB:
            return f"{value:.1f} {unit}"
    return f"{value / _KIB:.1f} TiB"


def bytes_of(size: int, digest: str) -> str:
    """How many, and which: as much of the digest as tells them from others."""
    return f"{byte_size(size)}, SHA-256 {digest[:_DIGEST_SHOWN]}…"


def seconds(value: float | None) -> str:
    """Milliseconds below a second; a hyphen where there is nothing."""
    if value is None:
        return "-"
    return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.1f} s"
