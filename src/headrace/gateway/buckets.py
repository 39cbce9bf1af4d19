"""Whom a limit is counted for, as the name of a bucket."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address

from headrace.domain.calls import Principal

_PREFIX_BITS = 64  # of an IPv6 address, all of which one host may have


def address_bucket(policy: str, address: str) -> str:
    """An address's bucket; all of an IPv6 network of 64 bits, which is one customer's, share one.

    "" is everybody who comes by a Unix socket.
    """
    if ":" in address:
        try:
            ip = ip_address(address.partition("%")[0])
        except ValueError:
            return f"{policy}/a/{address}"
        if isinstance(ip, IPv6Address):
            if ip.ipv4_mapped is not None:
                return f"{policy}/a/{ip.ipv4_mapped}"
            network = IPv6Address(int(ip) >> _PREFIX_BITS << _PREFIX_BITS)
            return f"{policy}/a/{network}/{_PREFIX_BITS}"
    return f"{policy}/a/{address}"


def principal_bucket(policy: str, principal: Principal, address: str) -> str:
    """A caller's bucket; where the caller is nobody known, its address's."""
    if principal.kind == "anonymous":
        return address_bucket(policy, address)
    return f"{policy}/p/{principal.tenant}/{principal.kind}/{principal.name}"
