"""What callers and the settings file say about a route."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec

from headrace.domain.catalog import (
    Balancer,
    Match,
    RoutePolicy,
    RouteRule,
    Shadow,
    Sticky,
    Target,
)
from headrace.domain.names import RULE, SERVED_RULE, is_name, is_served_name
from headrace.registry.content import Text
from headrace.registry.endpoint_content import Labels, Weight
from headrace.registry.header_names import header_name
from headrace.registry.refusals import InvalidField
from headrace.registry.targets import PlacedTargets, placed

_Share: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Seconds: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=86400)]
_Attempts: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=10)]
_Percentile: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=99.99)]
_Caller: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
_Callers: TypeAlias = Annotated[tuple[_Caller, ...], msgspec.Meta(max_length=64)]
_Headers: TypeAlias = Annotated[dict[str, str], msgspec.Meta(max_length=16)]

#: Below it, more than half of all requests would be sent twice.
_LEAST_PERCENTILE: Final = 50
_VALUE: Final = re.compile(r"([!-~]([ -~]{0,254}[!-~])?)?", re.ASCII)


class TargetContent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a share of a route's requests goes."""

    #: A model of the registry, of the folder, or of an endpoint.
    model: str
    #: A version or an alias; "": what the model answers with by itself.
    version: str = ""
    #: Of the sum of all the set's weights; 0: only what is forced.
    weight: Weight = 1.0
    #: What it is called in metrics, in answers and by a header that forces it; "": `model`, or
    #: `model:version`. A route's targets of one name are one and the same.
    name: str = ""
    #: Labels that an endpoint must have to be asked; empty: any that serves the model.
    endpoints: Labels = {}


_Targets: TypeAlias = Annotated[
    tuple[TargetContent, ...], msgspec.Meta(min_length=1, max_length=64)
]
_Fallbacks: TypeAlias = Annotated[tuple[TargetContent, ...], msgspec.Meta(max_length=8)]


class ShadowContent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A target that gets copies of requests; what it answers is compared and thrown away."""

    #: As one of `targets`; its weight is of no account.
    target: TargetContent
    #: Of requests that are copied, from 0 to 1.
    share: _Share = 1.0


class MatchContent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which requests a rule is for: those for which all of it is true."""

    #: Values that headers must have, by their names in any case.
    headers: _Headers = {}
    #: Tenants of callers; empty: every tenant.
    tenants: _Callers = ()
    #: Names of callers; empty: every caller.
    principals: _Callers = ()


class RuleContent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Targets for some of a route's requests."""

    #: Which ones.
    match: MatchContent
    #: As the route's.
    targets: _Targets


class StickyContent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What keeps a caller at one target, as long as weights do not change."""

    #: What callers are told apart by.
    by: Literal["principal", "header"] = "principal"
    #: Its name, where that is a header; requests without it are drawn by chance.
    header: str = ""


class PolicyContent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What differs, for a route's requests, from the router's settings."""

    #: How one of several endpoints is picked.
    balancer: Balancer | None = None
    #: The header that consistent-hash looks at; not set: the caller.
    hash_header: str | None = None
    #: Seconds for all attempts together.
    timeout_s: _Seconds | None = None
    #: Seconds for each attempt.
    try_timeout_s: _Seconds | None = None
    #: From 1, which is no retries, to 10.
    max_attempts: _Attempts | None = None
    #: Of latency, after which another endpoint is asked too: 50 to 99.99; 0: never.
    hedge_percentile: _Percentile | None = None


_Rules: TypeAlias = Annotated[tuple[RuleContent, ...], msgspec.Meta(max_length=16)]
_Shadows: TypeAlias = Annotated[tuple[ShadowContent, ...], msgspec.Meta(max_length=4)]


class RouteContent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A name that callers ask as if it were a model. NAME is that name."""

    #: Where requests go that no rule matches; 1 to 64.
    targets: _Targets
    #: The first that matches counts; 16 at most.
    rules: _Rules = ()
    #: Asked in turn where no target has a ready endpoint, as `targets`; 8 at most.
    fallbacks: _Fallbacks = ()
    #: Targets that get copies of requests; 4 at most.
    shadows: _Shadows = ()
    #: What keeps a caller at one target; not set: each request is drawn by chance.
    sticky: StickyContent | None = None
    #: The header whose value names the target that a request goes to; "": none does.
    force_header: str = ""
    #: What differs from the router's settings.
    policy: PolicyContent = PolicyContent()
    #: For people.
    description: Text = ""


def route_fields(content: RouteContent) -> dict[str, Any]:
    """The fields of a Route that `content` sets.

    Raises:
        InvalidField: a name is none, a header is none that a route looks at, two targets share a
            label, or all weights of a set are 0.
    """
    targets = _weighted("/targets", content.targets)
    rules = tuple(
        RouteRule(
            match=_match(f"/rules/{index}/match", rule.match),
            targets=_weighted(f"/rules/{index}/targets", rule.targets),
        )
        for index, rule in enumerate(content.rules)
    )
    fallbacks = _targets("/fallbacks", content.fallbacks)
    shadows = tuple(
        Shadow(target=_target(f"/shadows/{index}/target", shadow.target), share=shadow.share)
        for index, shadow in enumerate(content.shadows)
    )
    _require_labels(placed(targets=targets, rules=rules, fallbacks=fallbacks, shadows=shadows))
    return {
        "targets": targets,
        "rules": rules,
        "fallbacks": fallbacks,
        "shadows": shadows,
        "sticky": _sticky(content.sticky),
        "force_header": _header("/force_header", content.force_header),
        "policy": _policy(content.policy),
        "description": content.description,
    }


def _weighted(pointer: str, contents: Sequence[TargetContent]) -> tuple[Target, ...]:
    if not any(content.weight for content in contents):
        raise InvalidField(pointer, "all weights are 0, so no request could go anywhere")
    return _targets(pointer, contents)


def _targets(pointer: str, contents: Sequence[TargetContent]) -> tuple[Target, ...]:
    return tuple(_target(f"{pointer}/{index}", each) for index, each in enumerate(contents))


def _target(pointer: str, content: TargetContent) -> Target:
    if not is_served_name(content.model):
        raise InvalidField(f"{pointer}/model", f"a model's name must be {SERVED_RULE}")
    if content.version and not is_name(content.version):
        raise InvalidField(f"{pointer}/version", f"a version or an alias must be {RULE}")
    if content.name and not is_name(content.name):
        raise InvalidField(f"{pointer}/name", f"a target's name must be {RULE}")
    return Target(
        model=content.model,
        version=content.version,
        weight=content.weight,
        name=content.name,
        endpoints=dict(content.endpoints),
    )


def _match(pointer: str, content: MatchContent) -> Match:
    headers: dict[str, str] = {}
    for name, value in content.headers.items():
        where = f"{pointer}/headers/{name.replace('~', '~0').replace('/', '~1')}"
        lower = header_name(where, name)
        if lower in headers:
            raise InvalidField(where, "it is there already, written in another case")
        if _VALUE.fullmatch(value) is None:
            # a request that is received has none of these: it would never match
            raise InvalidField(
                where, "expected at most 256 printable ASCII characters, no space at either end"
            )
        headers[lower] = value
    return Match(headers=headers, tenants=content.tenants, principals=content.principals)


def _sticky(content: StickyContent | None) -> Sticky | None:
    if content is None:
        return None
    if content.by == "header" and not content.header:
        raise InvalidField("/sticky/header", "with by = header it must name the header")
    if content.by == "principal" and content.header:
        raise InvalidField("/sticky/header", "it is for by = header: clear it, or change by")
    return Sticky(by=content.by, header=_header("/sticky/header", content.header))


def _policy(content: PolicyContent) -> RoutePolicy:
    percentile = content.hedge_percentile
    if percentile and percentile < _LEAST_PERCENTILE:
        raise InvalidField("/policy/hedge_percentile", "expected 0 for never, or 50 to 99.99")
    named = content.hash_header
    return RoutePolicy(
        balancer=content.balancer,
        hash_header=None if named is None else header_name("/policy/hash_header", named),
        timeout_s=content.timeout_s,
        try_timeout_s=content.try_timeout_s,
        max_attempts=content.max_attempts,
        hedge_percentile=percentile,
    )


def _header(pointer: str, name: str) -> str:
    return header_name(pointer, name) if name else ""


def _require_labels(sets: Iterable[PlacedTargets]) -> None:
    """A label says which target it was: none stands for two, nor twice where shares are drawn."""
    first: dict[str, tuple[str, Target]] = {}
    for targets in sets:
        beside = set()
        for pointer, target in targets:
            label = target.label
            where, other = first.setdefault(label, (pointer, target))
            # how much it gets may differ from set to set
            if label in beside or msgspec.structs.replace(target, weight=other.weight) != other:
                raise InvalidField(
                    f"{pointer}/name",
                    f"'{label}' is what {where[1:].replace('/', '.')} is called: name one of them "
                    "otherwise",
                )
            beside.add(label)
