"""What callers and the settings file say about an endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

import msgspec

from headrace.domain.catalog import Protocol
from headrace.domain.names import RULE, SERVED_RULE, is_name, is_served_name
from headrace.registry.content import Line, Word, each_once
from headrace.registry.networks import Location, locate
from headrace.registry.refusals import InvalidField

Labels: TypeAlias = Annotated[dict[Word, Line], msgspec.Meta(max_length=64)]
Weight: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
_Models: TypeAlias = Annotated[tuple[str, ...], msgspec.Meta(max_length=1024)]
_InFlight: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]


class EndpointContent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An address that answers inference requests. NAME is yours to choose."""

    #: `http://` or `https://` (oip-rest, openai), `grpc://` or `grpcs://` (oip-grpc), in one of the
    #: networks of `registry.endpoint_networks`. Of oip-rest it may have a path: what stands before
    #: `/v2` there; of openai what stands before `/v1`, or that too. Must be left out where the
    #: protocol is in-process.
    url: str = ""
    #: How it is spoken to; `openai` is a server of OpenAI's API (vLLM, TEI, LiteLLM …), and
    #: `in-process` is this process itself, with its own models.
    protocol: Protocol = "oip-rest"
    #: `grpc://` or `grpcs://`, of oip-rest: where the same server speaks gRPC. Where it is given,
    #: this is what is asked: Triton's HTTP front end goes on with requests whose caller went away,
    #: and cannot stream. With `https` in `url` it has to be `grpcs`.
    grpc_url: str = ""
    #: The models it serves; empty: whatever nothing else serves. Of openai the names may be as
    #: in `org/model` and `llama3:8b`.
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


def located(content: EndpointContent) -> dict[str, Location]:
    """Where an endpoint is, by the field that says so; none where it is this process itself.

    Of several the last is the one that is connected to.

    Raises:
        InvalidField: a URL is not of a form that its protocol has, or is one too many, or TLS is
            asked for and would not be had.
    """
    locations: dict[str, Location] = {}
    if content.protocol == "in-process":
        if content.url:
            raise InvalidField("/url", "an endpoint of in-process has no URL: leave it out")
    else:
        locations["/url"] = locate(content.url, content.protocol)
    if content.grpc_url:
        locations["/grpc_url"] = _also_by_grpc(content, locations)
    if content.tls and not is_name(content.tls):
        raise InvalidField("/tls", f"the name of a TLS profile is {RULE}")
    connected = list(locations.values())[-1:]
    if content.tls and not any(location.secure for location in connected):
        # said silently, it would be taken for a connection that nobody can read
        raise InvalidField("/tls", "it is for URLs of https and grpcs: change the URL, or clear it")
    return locations


def _also_by_grpc(content: EndpointContent, others: Mapping[str, Location]) -> Location:
    """Where `grpc_url` leads. Raises InvalidField."""
    field = "/grpc_url"
    if content.protocol == "oip-grpc":
        raise InvalidField(field, "an endpoint of oip-grpc has its address in url: leave this out")
    if content.protocol == "openai":
        raise InvalidField(field, "OpenAI's API is not spoken by gRPC: leave it out")
    if content.protocol != "oip-rest":
        raise InvalidField(field, f"an endpoint of {content.protocol} has no URL: leave it out")
    location = locate(content.grpc_url, "oip-grpc", field)
    if others["/url"].secure and not location.secure:
        # whoever wrote https would not expect that requests go out in the clear
        raise InvalidField(field, "url has TLS and this has not: use grpcs, or http in url")
    return location


def endpoint_fields(content: EndpointContent) -> dict[str, Any]:
    """The fields of an Endpoint that `content` sets. Raises InvalidField."""
    openai = content.protocol == "openai"
    fits, rule = (is_served_name, SERVED_RULE) if openai else (is_name, RULE)
    for index, model in enumerate(content.models):
        if not fits(model):
            raise InvalidField(f"/models/{index}", f"a model's name must be {rule}")
    return {
        "url": content.url,
        "protocol": content.protocol,
        "grpc_url": content.grpc_url,
        "models": each_once(content.models),
        "weight": content.weight,
        "labels": dict(content.labels),
        "enabled": content.enabled,
        "max_in_flight": content.max_in_flight,
        "tls": content.tls,
    }
