"""A client of the management API, on the standard library's HTTP. It blocks.

Artifacts go through in pieces, so that memory does not grow with them.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import re
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Final, Generic, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import msgspec

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
from headrace.domain.errors import HeadraceError, InvalidRequest

TIMEOUT_S: Final = 30.0
#: Until a version was looked at, which may have to wait for others.
LOOK_TIMEOUT_S: Final = 600.0
CHUNK_BYTES: Final = 256 * 1024

_API: Final = "/api/v1"
_MAX_ANSWER_BYTES: Final = 64 * 1024**2
_PAGE: Final = 500
_IDLE_S: Final = 5.0  # after which the platform or a proxy may have closed the connection
_DIGEST: Final = re.compile(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/=]*):")
_TOKEN: Final = re.compile(r"[!-~]*")
_T = TypeVar("_T")


class Unreachable(HeadraceError):
    """There was no answer."""


class Refused(HeadraceError):
    """The platform said no; `lines` is all that it said, the first of them the message."""

    def __init__(self, status: int, lines: Iterable[str], checks: tuple[Check, ...] = ()) -> None:
        self.status = status
        self.lines = tuple(lines)
        self.checks = checks
        super().__init__(self.lines[0])


class Read(msgspec.Struct, Generic[_T], frozen=True):
    """What was answered: `raw` has all of it, and `etag` names the state, for changing it."""

    value: _T
    raw: Any
    etag: str = ""


class Download(msgspec.Struct, frozen=True):
    """An artifact on its way. `digest` is "" where the answer names none."""

    size_bytes: int | None
    digest: str
    chunks: Iterator[bytes]


class RegistryClient:
    """One connection to the platform at `url`."""

    def __init__(
        self, url: str, *, token: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.url = url.rstrip("/")
        secure, host, port, self._base = _parsed(self.url)
        self._connection: http.client.HTTPConnection
        if secure:
            context = ssl.create_default_context()
            self._connection = http.client.HTTPSConnection(host, port, context=context)
        else:
            self._connection = http.client.HTTPConnection(host, port)
        self._connection.timeout = TIMEOUT_S
        if not _TOKEN.fullmatch(token):  # whose text must not stand in a message
            raise InvalidRequest("the token has characters that no token has")
        self._headers = {"Accept": "application/json", "User-Agent": "headrace-cli"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._clock = clock
        self._answered_at = 0.0

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

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
        return self._list(Key, "/keys", filters)

    def create_key(self, content: Mapping[str, Any]) -> Read[NewKey]:
        """Make a key; its secret is answered this once."""
        return self._read(NewKey, "POST", "/keys", content)

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

    def _read(
        self,
        kind: type[_T],
        method: str,
        path: str,
        content: Mapping[str, Any] | None = None,
        *,
        etag: str = "",
        timeout_s: float = TIMEOUT_S,
    ) -> Read[_T]:
        headers = {"If-Match": etag} if etag else {}
        body: list[bytes] | None = None
        if content is not None:
            body = [msgspec.json.encode(content)]
            headers["Content-Length"] = str(len(body[0]))
            patch = method == "PATCH"
            headers["Content-Type"] = f"application/{'merge-patch+' if patch else ''}json"
        elif method == "POST":
            headers["Content-Length"] = "0"
        return self._decoded(
            kind, self._send(method, path, body, headers=headers, timeout_s=timeout_s)
        )

    def _send(
        self,
        method: str,
        path: str,
        body: Iterable[bytes] | None = None,
        *,
        headers: Mapping[str, str],
        timeout_s: float = TIMEOUT_S,
    ) -> tuple[bytes, str]:
        """The answer and its ETag."""
        answer = self._ask(method, path, body, headers, timeout_s=timeout_s)
        self._require_ok(method, answer)
        return self._whole(answer), answer.headers.get("ETag", "")

    def _ask(
        self,
        method: str,
        path: str,
        body: Iterable[bytes] | None,
        headers: Mapping[str, str],
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> http.client.HTTPResponse:
        connection = self._connection
        if self._clock() - self._answered_at > _IDLE_S:
            connection.close()  # and it opens again by itself
        with self._errors(timeout_s):
            connection.putrequest(method, f"{self._base}{_API}{path}", skip_accept_encoding=True)
            for name, value in {**self._headers, **headers}.items():
                connection.putheader(name, value)
            connection.endheaders()
            try:
                for chunk in body or ():
                    connection.send(chunk)
            except (BrokenPipeError, ConnectionResetError):
                return self._early_answer()
            if connection.sock is not None:
                connection.sock.settimeout(timeout_s)
            answer = connection.getresponse()
            if connection.sock is not None:
                connection.sock.settimeout(TIMEOUT_S)
        return answer

    def _early_answer(self) -> http.client.HTTPResponse:
        """Why the platform would not read on, if that has come through."""
        try:
            return self._connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"{self.url} closed the connection while it was sent to") from error

    def _require_ok(self, method: str, answer: http.client.HTTPResponse) -> None:
        if HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES:
            return
        text = self._whole(answer)
        try:
            problem = msgspec.json.decode(text, type=Problem)
        except (msgspec.DecodeError, UnicodeDecodeError):
            line = (
                f"{self.url} answered {answer.status} {answer.reason[:64]} to {method}, as a "
                "Headrace platform with a registry does not; is --url right?"
            )
            raise Refused(answer.status, [line]) from None
        raise Refused(answer.status, _lines(answer.status, problem), problem.checks)

    def _whole(self, answer: http.client.HTTPResponse) -> bytes:
        with self._errors(TIMEOUT_S):
            text = answer.read(_MAX_ANSWER_BYTES + 1)
            if len(text) > _MAX_ANSWER_BYTES:
                raise Unreachable(f"the answer of {self.url} is over {_MAX_ANSWER_BYTES} bytes")
            _require_end(answer)
        self._answered_at = self._clock()
        answer.close()
        return text

    def _chunks(self, answer: http.client.HTTPResponse) -> Iterator[bytes]:
        while True:
            with self._errors(TIMEOUT_S):
                chunk = answer.read(CHUNK_BYTES)
                if not chunk:
                    _require_end(answer)
            if not chunk:
                return
            yield chunk

    def _decoded(self, kind: type[_T], answer: tuple[bytes, str]) -> Read[_T]:
        text, etag = answer
        try:
            raw = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._foreign(error) from error
        return Read(self._converted(kind, raw), raw, etag)

    def _converted(self, kind: type[_T], raw: Any) -> _T:
        try:
            return msgspec.convert(raw, kind)
        except msgspec.ValidationError as error:
            raise self._foreign(error) from error

    def _foreign(self, error: Exception) -> Unreachable:
        return Unreachable(f"the answer of {self.url} is not a Headrace platform's: {error}")

    @contextmanager
    def _errors(self, timeout_s: float) -> Iterator[None]:
        try:
            yield
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            self._connection.close()  # the next request opens it again
            raise Unreachable(_unreachable(self.url, error, timeout_s)) from error
        except BaseException:
            self._connection.close()  # half a request may be under way
            raise


def sha256_of(header: str) -> str:
    """The SHA-256 in a Repr-Digest (RFC 9530), in hexadecimal digits; "" where there is none."""
    match = _DIGEST.search(header)
    if match is None:
        return ""
    try:
        return base64.b64decode(match[1], validate=True).hex()
    except binascii.Error:
        return ""


def _parsed(url: str) -> tuple[bool, str, int | None, str]:
    """Whether it is https, host, port and path."""
    shown = url if "@" not in url else "…"  # there may be a password in it
    if not (url.isascii() and url.isprintable()) or " " in url:
        raise InvalidRequest(f"--url {shown!a} has characters that no URL has")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidRequest(f"--url '{shown}' is no URL: {error}") from error
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise InvalidRequest(f"--url '{shown}' must be as http://host:8080 or https://host")
    if parts.username is not None or parts.query or parts.fragment:
        raise InvalidRequest(f"--url '{shown}' may have a host, a port and a path, and no more")
    return parts.scheme == "https", parts.hostname, port, parts.path


def _path(*parts: str) -> str:
    return "".join(f"/{quote(part, safe='')}" for part in parts)


def _model_path(*parts: str) -> str:
    return _path("models", *parts)


def _forced(*, force: bool) -> str:
    return "?force=true" if force else ""


def _lines(status: int, problem: Problem) -> Iterator[str]:
    detail = problem.detail
    if status == HTTPStatus.UNAUTHORIZED:
        detail += "; give a token with --token or HEADRACE_TOKEN"
    if status == HTTPStatus.PRECONDITION_FAILED:
        detail += "; somebody changed it meanwhile; look and try again"
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR and problem.request_id:
        detail += f" (request {problem.request_id})"
    yield detail
    for error in map(str, problem.errors):
        if error != problem.detail:
            yield error


def _require_end(answer: http.client.HTTPResponse) -> None:
    """Raise IncompleteRead where a connection was cut, which read() with a size does not tell."""
    if answer.length:
        raise http.client.IncompleteRead(b"", answer.length)


def _unreachable(url: str, error: Exception, timeout_s: float) -> str:
    if isinstance(error, ConnectionRefusedError):
        return f"cannot reach {url}: connection refused; is `headrace serve` running?"
    if isinstance(error, TimeoutError):
        return f"no answer from {url} within {timeout_s:g} s"
    if isinstance(error, http.client.RemoteDisconnected | http.client.IncompleteRead):
        return f"{url} closed the connection before its answer was complete"
    if isinstance(error, http.client.HTTPException):
        return f"{url} does not speak HTTP/1.1 ({type(error).__name__}); is --url right?"
    reason = error.strerror if isinstance(error, OSError) else ""
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = f"its certificate is not trusted: {error.verify_message}"
    return f"cannot reach {url}: {reason or str(error) or type(error).__name__}"
