"""What callers and the settings file say about an endpoint."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import msgspec

from headrace.domain.catalog import Protocol
from headrace.domain.names import RULE, is_name
from headrace.registry.content import Line, Word, each_once
from headrace.registry.networks import Location, locate
from headrace.registry.refusals import InvalidField

Labels: TypeAlias = Annotated[dict[Word, Line], msgspec.Meta(max_length=64)]
Weight: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
_Models: TypeAlias = Annotated[tuple[str, ...], msgspec.Meta(max_length=1024)]
_InFlight: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]


class EndpointContent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An address that answers inference requests. NAME is yours to choose."""

    #: `http://` or `https://` (oip-rest), `grpc://` or `grpcs://` (oip-grpc), in one of the
    #: networks of `registry.endpoint_networks`. Of oip-rest it may have a path: what stands before
    #: `/v2` there. Must be left out where the protocol is in-process.
    url: str = ""
    #: How it is spoken to; `in-process` is this process itself, with its own models.
    protocol: Protocol = "oip-rest"
    #: The models it serves; empty: whatever nothing else serves.
    models: _Models = ()
    #: Its share among the endpoints of a model; 0: it gets nothing.
    weight: Weight = 1.0
    #: What targets of routes choose endpoints by.
    labels: Labels = {}
    #: Whether requests are sent to it.
    enabled: bool = True
    #: Requests that may be under way at each of its addresses; 0: as many as the router's settings
    #: say.
    max_in_flight: _InFlight = 0
    #: The profile of `[tls]` that it is connected to with, where its URL is `https` or `grpcs`; "":
    #: the one called `default`.
    tls: str = ""


def located(content: EndpointContent) -> Location | None:
    """Where an endpoint is; None where it is this process itself.

    Raises:
        InvalidField: its URL is not of a form that its protocol has, or it names a TLS profile
            and its scheme has no TLS.
    """
    if content.protocol == "in-process":
        if content.url:
            raise InvalidField("/url", "an endpoint of in-process has no URL: leave it out")
        location = None
    else:
        location = locate(content.url, content.protocol)
    if content.tls and not is_name(content.tls):
        raise InvalidField("/tls", f"the name of a TLS profile is {RULE}")
    if content.tls and not (location and location.secure):
        # said silently, it would be taken for a connection that nobody can read
        raise InvalidField("/tls", "it is for URLs of https and grpcs: change the URL, or clear it")
    return location


def endpoint_fields(content: EndpointContent) -> dict[str, Any]:
    """The fields of an Endpoint that `content` sets. Raises InvalidField."""
    for index, model in enumerate(content.models):
        if not is_name(model):
            raise InvalidField(f"/models/{index}", f"a model's name must be {RULE}")
    return {
        "url": content.url,
        "protocol": content.protocol,
        "models": each_once(content.models),
        "weight": content.weight,
        "labels": dict(content.labels),
        "enabled": content.enabled,
        "max_in_flight": content.max_in_flight,
        "tls": content.tls,
    }
