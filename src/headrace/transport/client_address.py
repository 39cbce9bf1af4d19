"""Where a request comes from, behind the proxies that one trusts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final

from headrace.domain.errors import InvalidSettings

_KEPT: Final = 1024  # peers whose trust is looked up instead of worked out
_MAX_HOPS: Final = 32


class ClientAddress:
    """Reads `X-Forwarded-For`, where a proxy in one of the networks `trusted` has sent it.

    Anybody can write that header; each proxy adds whom it has it from. So the client is the last
    address that is not a trusted proxy's own.

    Raises:
        InvalidSettings: from the constructor; a network is none.
    """

    def __init__(self, trusted: Sequence[str]) -> None:
        try:
            self._trusted = [ip_network(network) for network in trusted]
        except ValueError as error:
            raise InvalidSettings(f"http.trusted_proxies: {error}") from None
        self._known: dict[str, bool] = {}

    def of(self, headers: Mapping[bytes, bytes], peer: str) -> str:
        """The client's address; `peer` is that of whoever has connected, "" by a Unix socket."""
        if not self._trusted or not self._trusts(peer):
            return peer
        forwarded = headers.get(b"x-forwarded-for")
        if forwarded is None:
            return peer
        client = peer
        for hop in reversed(forwarded.decode("latin-1").split(",")[-_MAX_HOPS:]):
            address = _address(hop)
            if address is None:  # nobody whom we trust writes this
                return client
            client = address
            if not self._trusts(client):
                return client
        return client

    def _trusts(self, address: str) -> bool:
        known = self._known.get(address)
        if known is None:
            known = self._is_trusted(address)
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[address] = known
        return known

    def _is_trusted(self, address: str) -> bool:
        if not address:  # a Unix socket: whoever may open it is on this machine
            return True
        try:
            ip = ip_address(address)
        except ValueError:
            return False
        return any(ip.version == each.version and ip in each for each in self._trusted)


def _address(hop: str) -> str | None:
    """The address in what a proxy wrote, which may have a port, and brackets; None: there is none.

    An IPv4 address in IPv6's form is the same address; a zone says nothing to anybody else.
    """
    text = hop.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        ip = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    return str(mapped or ip)
