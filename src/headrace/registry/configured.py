"""Endpoints and routes of the settings file: the operator's, read only, beside the registry's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

import msgspec

from headrace.domain.calls import OPERATOR, Call
from headrace.domain.catalog import Endpoint, Route
from headrace.domain.errors import InvalidSettings
from headrace.domain.names import RULE, is_name
from headrace.registry.endpoint_content import EndpointContent, endpoint_fields, located
from headrace.registry.networks import Network, is_allowed
from headrace.registry.refusals import InvalidField
from headrace.registry.route_content import RouteContent, route_fields


class Configured(msgspec.Struct, frozen=True, kw_only=True):
    """What the settings file has, by name."""

    endpoints: tuple[Endpoint, ...] = ()
    routes: tuple[Route, ...] = ()

    def endpoints_of(self, call: Call) -> Sequence[Endpoint]:
        """Those that the caller may see: its tenant's."""
        return [each for each in self.endpoints if each.tenant == call.principal.tenant]

    def routes_of(self, call: Call) -> Sequence[Route]:
        """Those that the caller may see: its tenant's."""
        return [each for each in self.routes if each.tenant == call.principal.tenant]


NOTHING_CONFIGURED: Final = Configured()


def configured_endpoints(
    contents: Mapping[str, EndpointContent], *, allowed: Sequence[Network], at: datetime
) -> tuple[Endpoint, ...]:
    """The endpoints of the settings file, by name; `at` is when they came to be.

    A host that is a name is not resolved here: whoever connects does, and checks its addresses.

    Raises:
        InvalidSettings: naming the key, where an endpoint cannot be or its address lies outside of
            the networks `allowed`.
    """
    return tuple(
        _endpoint(name, content, allowed, at) for name, content in sorted(contents.items())
    )


def configured_routes(contents: Mapping[str, RouteContent], *, at: datetime) -> tuple[Route, ...]:
    """The routes of the settings file, by name; `at` is when they came to be.

    Whether their targets are there shows while they are asked: models come and go.

    Raises:
        InvalidSettings: naming the key, where a route cannot be.
    """
    return tuple(_route(name, content, at) for name, content in sorted(contents.items()))


def _endpoint(
    name: str, content: EndpointContent, allowed: Sequence[Network], at: datetime
) -> Endpoint:
    where = f"endpoints.{name}"
    _require_name(where, name)
    try:
        fields = endpoint_fields(content)
        locations = located(content)
    except InvalidField as error:
        raise InvalidSettings(f"{where}.{error.message}") from None
    for field, location in locations.items():
        address = location.address
        if address is not None and not is_allowed(address, allowed):
            networks = ", ".join(map(str, allowed)) or "none"
            raise InvalidSettings(
                f"{where}.{field.removeprefix('/')}: {address} lies in no network of "
                f"registry.endpoint_networks ({networks}): add one, or change the URL"
            )
    return Endpoint(tenant=OPERATOR, name=name, created_at=at, updated_at=at, **fields)


def _route(name: str, content: RouteContent, at: datetime) -> Route:
    where = f"routes.{name}"
    _require_name(where, name)
    try:
        fields = route_fields(content)
    except InvalidField as error:
        raise InvalidSettings(f"{where}.{error.message}") from None
    return Route(tenant=OPERATOR, name=name, created_at=at, updated_at=at, **fields)


def _require_name(where: str, name: str) -> None:
    if not is_name(name):
        raise InvalidSettings(f"{where}: a name must be {RULE}")
