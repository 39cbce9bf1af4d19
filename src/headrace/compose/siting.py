"""Where endpoints are: their URLs taken apart, their names looked up, their networks checked.

The registry checks an endpoint when it is written; this checks it again whenever its name is looked
up, since a name may answer differently by then. Connections go to the addresses found here.
"""

from __future__ import annotations

from collections.abc import Sequence

from headrace.domain.catalog import Endpoint
from headrace.ports.upstream import Address, Site, Sited
from headrace.registry.networks import Network, is_allowed, locate, unmapped
from headrace.registry.resolving import Resolve


class Siting:
    """The port `Locate`."""

    def __init__(self, *, allowed: Sequence[Network], resolve: Resolve) -> None:
        self._allowed = tuple(allowed)
        self._resolve = resolve

    async def __call__(self, endpoint: Endpoint) -> Sited:
        """See Locate. Raises InvalidRequest for a URL that no endpoint may have."""
        protocol, url = endpoint.reached
        location = locate(url, protocol)
        addresses: Sequence[Address]
        if location.address is not None:
            addresses = [location.address]
        else:
            addresses = await self._resolve(location.host, location.port)
        sites: dict[str, Site] = {}
        refused: list[str] = []
        for address in addresses:
            plain = unmapped(address)
            if not is_allowed(plain, self._allowed):
                refused.append(str(plain))
                continue
            sites[str(plain)] = Site(
                location.host,
                location.port,
                plain,
                location.path,
                location.secure,
            )
        return Sited(tuple(sites.values()), tuple(refused), location.address is not None)
