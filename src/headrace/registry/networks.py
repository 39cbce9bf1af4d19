"""Which addresses an endpoint may have: an allow-list, against requests forged through us."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, TypeAlias
from urllib.parse import urlsplit

import msgspec

from headrace.domain.catalog import Protocol
from headrace.registry.refusals import InvalidField

Network: TypeAlias = IPv4Network | IPv6Network
Address: TypeAlias = IPv4Address | IPv6Address

#: What URLs begin with, and the ports that go without saying. This process itself has no URL.
SCHEMES: Final[dict[Protocol, dict[str, int]]] = {
    "oip-rest": {"http": 80, "https": 443},
    "oip-grpc": {"grpc": 80, "grpcs": 443},
    "openai": {"http": 80, "https": 443},
}
_SECURE: Final = frozenset({"https", "grpcs"})
_WIRE: Final = "/v2"
_MAX_URL: Final = 2048
_HOST_NAME: Final = re.compile(
    r"(?=.{1,253}\.?$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*\.?",
    re.ASCII,
)
#: A number in one of the forms of inet_aton, which resolvers still read: 127, 0x7f, 0177.
_NUMBER: Final = re.compile(r"0[xX][0-9a-fA-F]*|[0-9]+", re.ASCII)
#: urlsplit passes over what stands before the brackets; whoever connects may not.
_BRACKETED: Final = re.compile(r"\[[0-9a-fA-F:.]+\](:[0-9]*)?", re.ASCII)
_UNPRINTABLE: Final = re.compile(r"[^\x21-\x7e]|\\")


class _NoUrl(Exception):
    """A URL is not of a form that an endpoint may have."""


class Location(msgspec.Struct, frozen=True):
    """What an endpoint's URL points at. `address` is None where `host` is a name."""

    host: str
    port: int
    address: Address | None
    path: str = ""  # what stands before /v2 (openai: with its /v1, if any), no slash at its end
    secure: bool = False  # whether its scheme has TLS


def locate(url: str, protocol: Protocol, field: str = "/url") -> Location:
    """Take the URL apart of an endpoint that is not this process itself.

    Raises:
        InvalidField: it is not of a form that an endpoint may have; the message says which, and
            the error that it is `field`.
    """
    try:
        return _locate(url, protocol)
    except _NoUrl as error:
        raise InvalidField(field, str(error)) from None


def _locate(url: str, protocol: Protocol) -> Location:
    schemes = SCHEMES[protocol]
    if not url:
        raise _NoUrl(f"an endpoint of {protocol} needs one")
    if len(url) > _MAX_URL or _UNPRINTABLE.search(url):
        raise _NoUrl(f"expected at most {_MAX_URL} printable ASCII characters without backslashes")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _NoUrl("its host or port cannot be read") from None
    if parts.scheme not in schemes:
        raise _NoUrl(f"an endpoint of {protocol} has the scheme {' or '.join(schemes)}")
    if "@" in parts.netloc:
        raise _NoUrl("it holds credentials; an address has none")
    if parts.query or parts.fragment or url.endswith(("?", "#")):
        raise _NoUrl("it has a query or a fragment; requests bring their own")
    if port == 0:
        raise _NoUrl("port 0 is no port")
    host = parts.hostname or ""
    bracketed = "[" in parts.netloc
    if bracketed and _BRACKETED.fullmatch(parts.netloc) is None:
        raise _NoUrl("what stands in brackets is an IPv6 address without a zone, and all there is")
    address = _literal(host, bracketed=bracketed)
    if address is None and _HOST_NAME.fullmatch(host) is None:
        raise _NoUrl("its host is neither a name nor an address")
    return Location(
        host,
        port or schemes[parts.scheme],
        address,
        _path(parts.path, protocol),
        parts.scheme in _SECURE,
    )


def _path(path: str, protocol: Protocol) -> str:
    path = path.rstrip("/")
    if path and protocol == "oip-grpc":
        raise _NoUrl("it has a path; the methods of gRPC are called without one")
    if path == _WIRE and protocol == "oip-rest":
        raise _NoUrl(f"its path is what stands before {_WIRE}: leave that out")
    return path


def require_allowed(
    addresses: Iterable[Address], allowed: Sequence[Network], field: str = "/url"
) -> None:
    """Raise InvalidField unless every address lies in a network that is allowed."""
    for address in addresses:
        if not is_allowed(address, allowed):
            networks = ", ".join(map(str, allowed)) or "none"
            raise InvalidField(
                field,
                f"{unmapped(address)} lies in no network that endpoints may be in ({networks})",
            )


def is_allowed(address: Address, allowed: Sequence[Network]) -> bool:
    """Whether an address lies in a network that is allowed; a mapped one, by what it stands for."""
    plain = unmapped(address)
    return any(plain in network for network in allowed)


def unmapped(address: Address) -> Address:
    """The IPv4 address inside ::ffff:a.b.c.d, to which such a connection goes."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _literal(host: str, *, bracketed: bool) -> Address | None:
    """The address that `host` writes out, however it does so."""
    if bracketed:
        try:
            return IPv6Address(host)
        except ValueError:
            raise _NoUrl("its host looks like an address, but is none") from None
    numbers = host.rstrip(".").split(".")
    if not all(_NUMBER.fullmatch(number) for number in numbers):
        return None
    try:
        *first, last = (_number(number) for number in numbers)
        if len(first) > 3 or any(byte > 255 for byte in first):  # noqa: PLR2004 - as inet_aton
            raise ValueError  # noqa: TRY301 - one message for all of them
        value = last
        for position, byte in enumerate(first):
            value += byte << (24 - 8 * position)
        if last >= 1 << (32 - 8 * len(first)):
            raise ValueError  # noqa: TRY301
        return IPv4Address(value)
    except ValueError:
        raise _NoUrl("its host looks like an address, but is none") from None


def _number(text: str) -> int:
    if text[:2] in {"0x", "0X"}:
        return int(text[2:] or "0", 16)
    return int(text, 8 if text.startswith("0") else 10)
