"""Which web pages may read answers: Cross-Origin Resource Sharing.

Source: the Fetch standard, "CORS protocol".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from headrace.domain.errors import Forbidden, HeadraceError

_ANY: Final = "*"
_BELOW: Final = "://*."  # what the names below a domain are written with
_NULL: Final = "null"  # what sandboxed pages and files are: anybody's
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}
_is_origin: Final = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<any>\*\.)?"
    r"(?P<host>[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_])?|\[[0-9a-f:.]+\])(?P<port>:[0-9]{1,5})?"
).fullmatch
_is_token: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
_is_sendable: Final = re.compile(rb"[!-+\--~]{1,256}").fullmatch  # printable, and not a list
_LABELS: Final = r"(?:[a-z0-9_-]+\.)+"
_KEPT: Final = 1024  # origins that are looked up instead of matched
_VARY: Final = (b"vary", b"origin")
_VARY_PREFLIGHT: Final = (
    b"vary",
    b"origin, access-control-request-method, access-control-request-headers",
)


class CorsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which web pages may call from a browser. None, unless `origins` or `origin_regex` is set."""

    #: Origins whose pages may call: `https://a.example` or `http://localhost:3000`; with
    #: `https://*.a.example` every name below a.example, and not a.example itself; `*` every
    #: origin but `null`, which must be listed itself.
    origins: tuple[str, ...] = ()
    #: A regular expression that other origins must match from end to end to be allowed as well.
    origin_regex: str = ""
    #: Methods that such pages may call with.
    methods: tuple[str, ...] = ("GET", "POST", "PUT", "PATCH", "DELETE")
    #: Request headers that such pages may send; `*` allows all.
    headers: tuple[str, ...] = (
        "authorization", "content-encoding", "content-type", "idempotency-key", "if-match",
        "if-none-match", "inference-header-content-length", "priority", "request-timeout",
        "traceparent", "tracestate", "x-api-key", "x-request-id",
    )  # fmt: skip
    #: Response headers that such pages may read besides those that browsers always show.
    expose_headers: tuple[str, ...] = (
        "allow", "etag", "idempotent-replayed", "inference-header-content-length", "location",
        "ratelimit", "ratelimit-policy", "retry-after", "server-timing", "www-authenticate",
        "x-error-code", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset",
        "x-request-id",
    )  # fmt: skip
    #: Let browsers send cookies and client certificates along. Tokens need no such thing.
    credentials: bool = False
    #: Seconds that browsers may remember what they were told of this.
    max_age_s: int = 600

    def __post_init__(self) -> None:
        for origin in self.origins:
            _check_origin(origin)
        if self.credentials and _ANY in self.origins:
            raise ValueError("origins: '*' cannot go with credentials; name the origins")
        try:
            re.compile(self.origin_regex)
        except re.error as error:
            raise ValueError(f"origin_regex is no regular expression: {error}") from None
        for name in ("methods", "headers", "expose_headers"):
            for value in getattr(self, name):
                if not _is_token(value):
                    raise ValueError(f"{name}: {value!a} cannot be a name")
        if any(method != method.upper() for method in self.methods):
            raise ValueError("methods must be in capital letters, which is how they are sent")
        if self.credentials and _ANY in self.expose_headers:
            raise ValueError("expose_headers: '*' means nothing with credentials; name the headers")
        if self.max_age_s < 0:
            raise ValueError(f"max_age_s must not be negative, got {self.max_age_s}")

    @property
    def enabled(self) -> bool:
        """Whether any page may call."""
        return bool(self.origins or self.origin_regex)


class NotShared(HeadraceError):
    """A preflight asked for what pages of its origin may not do. No token changes that."""

    code = Forbidden.code


class Cors:
    """Decides by `settings`, which are enabled."""

    def __init__(self, settings: CorsSettings) -> None:
        below = [origin for origin in settings.origins if _BELOW in origin]
        self._any = _ANY in settings.origins
        self._exact = frozenset(settings.origins) - {_ANY, *below}
        patterns = [_pattern(origin) for origin in below]
        if settings.origin_regex:
            patterns.append(re.compile(settings.origin_regex))
        self._patterns = tuple(patterns)
        self._methods = frozenset(settings.methods)
        if "GET" in self._methods:
            self._methods |= {"HEAD"}
        self._headers = frozenset(name.lower() for name in settings.headers)
        self._credentials = settings.credentials
        self._on_answers = _list("access-control-expose-headers", settings.expose_headers)
        self._on_preflights = [
            *_list("access-control-allow-methods", settings.methods),
            (b"access-control-max-age", b"%d" % settings.max_age_s),
        ]
        self._known: dict[bytes, tuple[bytes, list[tuple[bytes, bytes]]]] = {}

    def headers(self, origin: bytes | None) -> list[tuple[bytes, bytes]]:
        """What an answer to a request from `origin` says besides; None: no browser says from where.

        Every answer says that it would have been another for another origin, lest a cache gives it
        to that one.
        """
        return self._answers(origin)[1]

    def lines(self, origin: bytes | None) -> bytes:
        """The same as lines, each ended by CR LF."""
        return self._answers(origin)[0]

    def preflight(self, headers: Mapping[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        """The headers of the answer to a preflight; see `is_preflight`.

        Raises:
            NotShared: the origin, the method or a header is not allowed. The answer must then have
                the headers of `refused_preflight`, and none of CORS.
        """
        origin = headers[b"origin"]
        if not self.allows(origin):
            raise NotShared("pages of this origin may not call")
        method = headers[b"access-control-request-method"].decode("latin-1")
        if method not in self._methods:
            raise NotShared(f"pages of other origins may not call with {method[:64]!a}")
        asked = headers.get(b"access-control-request-headers", b"").decode("latin-1").lower()
        names = [name for name in (name.strip(" \t") for name in asked.split(",")) if name]
        for name in names:
            if not _is_token(name) or not (name in self._headers or _ANY in self._headers):
                raise NotShared(f"pages of other origins may not send the header {name[:64]!a}")
        return [
            *self._shared(origin),
            *self._on_preflights,
            *_list("access-control-allow-headers", names),
            _VARY_PREFLIGHT,
        ]

    @staticmethod
    def refused_preflight() -> list[tuple[bytes, bytes]]:
        """The headers of an answer that tells why a preflight was refused."""
        return [_VARY_PREFLIGHT]

    def _answers(self, origin: bytes | None) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        found = self._known.get(origin or b"")
        if found is None:
            origin = origin or b""
            headers = [_VARY]
            if self.allows(origin):
                headers += self._shared(origin) + self._on_answers
            found = b"".join(b"%b: %b\r\n" % header for header in headers), headers
            if _is_sendable(origin) or not origin:  # of others there is no end
                if len(self._known) >= _KEPT:
                    self._known.clear()
                self._known[origin] = found
        return found

    def allows(self, origin: bytes) -> bool:
        """Whether pages of an origin may call."""
        if not _is_sendable(origin):
            return False
        text = origin.decode("ascii")
        if text in self._exact:
            return True
        if text == _NULL:
            return False
        return self._any or any(pattern.fullmatch(text) for pattern in self._patterns)

    def _shared(self, origin: bytes) -> list[tuple[bytes, bytes]]:
        shared = [(b"access-control-allow-origin", b"*" if self._any else origin)]
        if self._credentials:
            shared.append((b"access-control-allow-credentials", b"true"))
        return shared


def is_preflight(method: str, headers: Mapping[bytes, bytes]) -> bool:
    """Whether a browser asks what it may send, before it sends it."""
    return (
        method == "OPTIONS" and b"origin" in headers and b"access-control-request-method" in headers
    )


def _check_origin(origin: str) -> None:
    if origin in {_ANY, _NULL}:
        return
    found = _is_origin(origin)
    if found is None:
        raise ValueError(
            f"origins: {origin!a} is none; expected '*', 'null' or lower-case scheme://host or "
            "scheme://host:port without a path, where the host may begin with '*.'"
        )
    if found["port"] and found["port"] == _DEFAULT_PORTS.get(found["scheme"]):
        raise ValueError(f"origins: browsers leave {found['port']} out of {origin!a}: so must you")


def _pattern(origin: str) -> re.Pattern[str]:
    """Of `scheme://*.host`: any labels below the host, and at least one."""
    scheme, _, host = origin.partition("*.")
    return re.compile(re.escape(scheme) + _LABELS + re.escape(host))


def _list(name: str, values: tuple[str, ...] | list[str]) -> list[tuple[bytes, bytes]]:
    """A header that lists `values`; none where there are none."""
    return [(name.encode("ascii"), ", ".join(values).encode("ascii"))] if values else []
