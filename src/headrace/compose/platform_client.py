"""A client of a running platform, on the standard library's HTTP. It blocks.

What is large goes through in pieces, so that memory does not grow with it.
"""

from __future__ import annotations

import http.client
import re
import ssl
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, ClassVar, Final, Generic, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from headrace.compose.registry_views import Check
from headrace.domain.errors import HeadraceError, InvalidRequest

TIMEOUT_S: Final = 30.0
CHUNK_BYTES: Final = 256 * 1024
#: What to do where no credential was taken.
CREDENTIAL_HINT: Final = "give a token with --token or HEADRACE_TOKEN"

_MAX_ANSWER_BYTES: Final = 64 * 1024**2
_IDLE_S: Final = 5.0  # after which the platform or a proxy may have closed the connection
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


class PlatformClient(ABC):
    """One connection to the platform at `url`. Paths are those behind the path of that."""

    #: What a platform has that answers this client.
    offers: ClassVar[str]

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

    def _read(
        self,
        kind: type[_T],
        method: str,
        path: str,
        content: Mapping[str, Any] | None = None,
        *,
        etag: str = "",
        once: str = "",
        timeout_s: float = TIMEOUT_S,
    ) -> Read[_T]:
        """What is answered. `etag` is the state to change; `once` the key of a change."""
        headers = {"If-Match": etag} if etag else {}
        if once:
            headers["Idempotency-Key"] = once
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
        """The answer and its ETag. A body whose Content-Length is not said goes in chunks."""
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
            connection.putrequest(method, f"{self._base}{path}", skip_accept_encoding=True)
            for name, value in {**self._headers, **headers}.items():
                connection.putheader(name, value)
            framed = body is not None and "Content-Length" not in headers
            if framed:
                connection.putheader("Transfer-Encoding", "chunked")
            connection.endheaders()
            try:
                for chunk in body or ():
                    if chunk:
                        connection.send(b"%x\r\n%b\r\n" % (len(chunk), chunk) if framed else chunk)
                if framed:
                    connection.send(b"0\r\n\r\n")
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
            lines, checks = self._told(answer.status, text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            line = (
                f"{self.url} answered {answer.status} {answer.reason[:64]} to {method}, as a "
                f"Headrace platform with {self.offers} does not; is --url right?"
            )
            raise Refused(answer.status, [line]) from None
        raise Refused(answer.status, lines, checks)

    @abstractmethod
    def _told(self, status: int, text: bytes) -> tuple[Iterable[str], tuple[Check, ...]]:
        """The lines that a refusal says, and the checks that it tells of.

        Raises:
            msgspec.DecodeError, UnicodeDecodeError: it is not this API's.
        """

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


def path_of(*parts: str) -> str:
    """A path of those parts, whatever is in them."""
    return "".join(f"/{quote(part, safe='')}" for part in parts)


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
