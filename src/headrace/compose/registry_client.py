"""A client of the management API, on the standard library's HTTP. It blocks.

Artifacts go through in pieces, so that memory does not grow with them.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, ClassVar, Final, TypeVar
from urllib.parse import urlencode

import msgspec

from headrace.compose.platform_client import CREDENTIAL_HINT, PlatformClient, Read, Refused, path_of
from headrace.compose.registry_views import (
    Alias,
    Check,
    Key,
    Model,
    NewKey,
    Problem,
    Promotion,
    Statistics,
    Version,
)

#: Until a version was looked at, which may have to wait for others.
LOOK_TIMEOUT_S: Final = 600.0

_PAGE: Final = 500
_DIGEST: Final = re.compile(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/=]*):")
_T = TypeVar("_T")


class Download(msgspec.Struct, frozen=True):
    """An artifact on its way. `digest` is "" where the answer names none."""

    size_bytes: int | None
    digest: str
    chunks: Iterator[bytes]


class RegistryClient(PlatformClient):
    """See PlatformClient."""

    offers: ClassVar[str] = "a registry"

    # Models

    def model(self, name: str) -> Read[Model]:
        """One model. Raises Refused."""
        return self._read(Model, "GET", _model_path(name))

    def models(self, **filters: str) -> Iterator[Read[Model]]:
        """All models that the filters let through."""
        return self._list(Model, _model_path(), filters)

    def create_model(self, content: Mapping[str, Any]) -> Read[Model]:
        """Register a model."""
        return self._read(Model, "POST", _model_path(), content)

    def delete_model(self, name: str, *, etag: str, force: bool) -> None:
        """Remove a model, its versions and its aliases."""
        self._send("DELETE", _model_path(name) + _forced(force=force), headers={"If-Match": etag})

    # Versions

    def version(self, model: str, number: str) -> Read[Version]:
        """One version."""
        return self._read(Version, "GET", _model_path(model, "versions", number))

    def versions(self, model: str, **filters: str) -> Iterator[Read[Version]]:
        """All versions of a model that the filters let through, the newest first."""
        return self._list(Version, _model_path(model, "versions"), {**filters, "order": "desc"})

    def create_version(self, model: str, content: Mapping[str, Any]) -> Read[Version]:
        """Publish a version; it is pending."""
        return self._read(Version, "POST", _model_path(model, "versions"), content)

    def update_version(
        self, model: str, number: str, patch: Mapping[str, Any], *, etag: str, force: bool = False
    ) -> Read[Version]:
        """Apply a merge patch to what is said about a version, and its status."""
        path = _model_path(model, "versions", number) + _forced(force=force)
        return self._read(Version, "PATCH", path, patch, etag=etag)

    def delete_version(self, model: str, number: str, *, etag: str, force: bool) -> None:
        """Remove a version."""
        path = _model_path(model, "versions", number) + _forced(force=force)
        self._send("DELETE", path, headers={"If-Match": etag})

    def statistics(self, model: str, number: str) -> Read[Statistics]:
        """What a version was asked."""
        return self._read(Statistics, "GET", _model_path(model, "versions", number, "statistics"))

    def upload(
        self,
        model: str,
        number: str,
        chunks: Iterable[bytes],
        *,
        size_bytes: int,
        media_type: str,
        digest: str,
        etag: str,
    ) -> Read[Version]:
        """Upload the artifact of a pending version, and wait until it was looked at.

        `digest` is its SHA-256 in hexadecimal digits.
        """
        headers = {
            "Content-Type": media_type,
            "Content-Length": str(size_bytes),
            "Content-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(digest)).decode()}:",
            "If-Match": etag,
        }
        path = _model_path(model, "versions", number, "artifact")
        answer = self._send("PUT", path, chunks, headers=headers, timeout_s=LOOK_TIMEOUT_S)
        return self._decoded(Version, answer)

    @contextmanager
    def download(self, model: str, number: str) -> Iterator[Download]:
        """The artifact of a version, for as long as the block lasts."""
        answer = self._ask("GET", _model_path(model, "versions", number, "artifact"), None, {})
        try:
            self._require_ok("GET", answer)
            length = answer.headers.get("Content-Length", "")
            size = int(length) if length.isdecimal() else None
            digest = sha256_of(answer.headers.get("Repr-Digest", ""))
            yield Download(size, digest, self._chunks(answer))
        finally:
            self._connection.close()  # it may not have been read to its end

    # Aliases

    def alias(self, model: str, alias: str) -> Read[Alias] | None:
        """One alias; None where there is none."""
        try:
            return self._read(Alias, "GET", _model_path(model, "aliases", alias))
        except Refused as refused:
            if refused.status == HTTPStatus.NOT_FOUND:
                return None
            raise

    def aliases(self, model: str) -> Iterator[Read[Alias]]:
        """All aliases of a model."""
        return self._list(Alias, _model_path(model, "aliases"), {})

    def promote(self, model: str, content: Mapping[str, Any], *, etag: str = "") -> Read[Promotion]:
        """Point an alias at a version that passes every check; Refused has them otherwise."""
        path = _model_path(model, "promote")
        return self._read(Promotion, "POST", path, content, etag=etag, timeout_s=LOOK_TIMEOUT_S)

    def rollback(self, model: str, alias: str, *, etag: str) -> Read[Alias]:
        """Point an alias at where it pointed before."""
        return self._read(
            Alias, "POST", _model_path(model, "aliases", alias, "rollback"), etag=etag
        )

    # Keys

    def keys(self, **filters: str) -> Iterator[Read[Key]]:
        """All keys that the filters let through, revoked and expired ones too."""
        return self._list(Key, _path("keys"), filters)

    def create_key(self, content: Mapping[str, Any]) -> Read[NewKey]:
        """Make a key; its secret is answered this once."""
        return self._read(NewKey, "POST", _path("keys"), content)

    def revoke_key(self, id_: str) -> Read[Key]:
        """Refuse a key from now on; once more changes nothing."""
        return self._read(Key, "POST", _path("keys", id_, "revoke"))

    # HTTP

    def _list(self, kind: type[_T], path: str, query: Mapping[str, str]) -> Iterator[Read[_T]]:
        asked = {name: value for name, value in query.items() if value} | {"limit": str(_PAGE)}
        seen: set[str] = set()
        while True:
            page = self._read(dict[str, Any], "GET", f"{path}?{urlencode(asked)}").value
            for item in page.get("items", ()):
                yield Read(self._converted(kind, item), item)
            cursor = page.get("next_cursor")
            if not cursor or cursor in seen:  # a list that goes in a circle would never end
                return
            seen.add(cursor)
            asked["cursor"] = cursor

    def _told(self, status: int, text: bytes) -> tuple[Iterable[str], tuple[Check, ...]]:
        problem = msgspec.json.decode(text, type=Problem)
        return _lines(status, problem), problem.checks


def sha256_of(header: str) -> str:
    """The SHA-256 in a Repr-Digest (RFC 9530), in hexadecimal digits; "" where there is none."""
    match = _DIGEST.search(header)
    if match is None:
        return ""
    try:
        return base64.b64decode(match[1], validate=True).hex()
    except binascii.Error:
        return ""


def _path(*parts: str) -> str:
    return path_of("api", "v1", *parts)


def _model_path(*parts: str) -> str:
    return _path("models", *parts)


def _forced(*, force: bool) -> str:
    return "?force=true" if force else ""


def _lines(status: int, problem: Problem) -> Iterator[str]:
    detail = problem.detail
    if status == HTTPStatus.UNAUTHORIZED:
        detail += f"; {CREDENTIAL_HINT}"
    if status == HTTPStatus.PRECONDITION_FAILED:
        detail += "; somebody changed it meanwhile; look and try again"
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR and problem.request_id:
        detail += f" (request {problem.request_id})"
    yield detail
    for error in map(str, problem.errors):
        if error != problem.detail:
            yield error
