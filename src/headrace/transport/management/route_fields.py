"""What is said about a route, as it is sent and as it is answered."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import Field

from headrace.transport.management.fields import (
    WHOLE,
    Balancer,
    Body,
    HeaderName,
    Labels,
    Name,
    OptionalHeaderName,
    OptionalName,
    ServedName,
    Text,
    View,
    Weight,
)

#: At least one target has a weight: what is left out is 1.
_SOME_WEIGHT: Final[dict[str, Any]] = {
    "contains": {"type": "object", "properties": {"weight": {"exclusiveMinimum": 0}}}
}


class RouteTarget(Body):
    """Where a share of a route's requests goes."""

    model: ServedName
    version: OptionalName = Field(
        "", description="A version or an alias; empty: what the model answers with by itself."
    )
    weight: Weight = Field(1.0, description="Of the sum of all the set's weights.")
    name: OptionalName = Field(
        "",
        description="In metrics and answers, and for the header that forces it; empty: `model`, or "
        "`model:version`. A route's targets of one name differ in weight at most.",
    )
    endpoints: Labels = Field(
        {}, description="Labels that an endpoint must have to be asked; empty: any."
    )


_Targets: TypeAlias = Annotated[
    list[RouteTarget],
    Field(min_length=1, max_length=64, json_schema_extra=_SOME_WEIGHT),
]
_Fallbacks: TypeAlias = Annotated[
    list[RouteTarget],
    Field(max_length=8, description="Asked in turn where no target has a ready endpoint."),
]


class RouteShadow(Body):
    """A target that gets copies of requests; what it answers is compared and thrown away."""

    target: RouteTarget
    share: Annotated[float, Field(ge=0, le=1)] = Field(1.0, description="Of requests.")


_Value: TypeAlias = Annotated[str, Field(pattern=r"^([!-~]([ -~]{0,254}[!-~])?)?$")]
_Callers: TypeAlias = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=64)
]


class RouteMatch(Body):
    """Which requests a rule is for: those for which all of it is true."""

    headers: Annotated[
        dict[HeaderName, _Value],
        Field(max_length=16, json_schema_extra={"additionalProperties": False}),
    ] = Field({}, description="Values that headers have.")
    tenants: _Callers = Field([], description="Of callers; empty: every tenant.")
    principals: _Callers = Field([], description="Names of callers; empty: every caller.")


class RouteRule(Body):
    """Targets for some of a route's requests."""

    match: RouteMatch
    targets: _Targets


_Rules: TypeAlias = Annotated[
    list[RouteRule], Field(max_length=16, description="The first that matches counts.")
]
_Shadows: TypeAlias = Annotated[list[RouteShadow], Field(max_length=4)]
_By: TypeAlias = Literal["principal", "header"]


class RouteSticky(Body):
    """What keeps a caller at one target, as long as weights do not change."""

    by: _By = "principal"
    header: OptionalHeaderName = Field(
        "", description="With `header`; requests without it are drawn by chance."
    )


class RouteStickyPatch(Body):
    """As it is merged."""

    by: _By | None = None
    header: OptionalHeaderName | None = None


_Seconds: TypeAlias = Annotated[float, Field(gt=0, le=86400)]
_NEVER_OR_LATE: Final[dict[str, Any]] = {"anyOf": [{"const": 0}, {"minimum": 50}]}


class RoutePolicy(Body):
    """What differs from the router's settings. Nothing that is null does."""

    balancer: Balancer | None = None
    hash_header: HeaderName | None = Field(
        default=None, description="What consistent-hash looks at; null: the caller."
    )
    timeout_s: _Seconds | None = Field(default=None, description="For all attempts together.")
    try_timeout_s: _Seconds | None = Field(default=None, description="For each attempt.")
    max_attempts: Annotated[int, Field(ge=1, le=10), WHOLE] | None = Field(
        default=None, description="1: no retries."
    )
    hedge_percentile: (
        Annotated[float, Field(ge=0, le=99.99, json_schema_extra=_NEVER_OR_LATE)] | None
    ) = Field(default=None, description="Of latency, after which another is asked too; 0: never.")


class NewRoute(Body):
    """A route to register."""

    name: Name
    targets: _Targets = Field(description="Of requests that no rule matches.")
    rules: _Rules = Field([])
    fallbacks: _Fallbacks = Field([])
    shadows: _Shadows = Field([])
    sticky: RouteSticky | None = Field(None, description="null: every request is drawn by chance.")
    force_header: OptionalHeaderName = Field(
        "", description="Its value names the target; empty: no header does."
    )
    policy: RoutePolicy = RoutePolicy()
    description: Text = ""


class RoutePatch(Body):
    """A merge patch (RFC 7396): lists are replaced as a whole."""

    targets: _Targets = Field([])
    rules: _Rules | None = None
    fallbacks: _Fallbacks | None = None
    shadows: _Shadows | None = None
    sticky: RouteStickyPatch | None = None
    force_header: OptionalHeaderName | None = None
    policy: RoutePolicy | None = None
    description: Text | None = None


class TargetView(View):
    """Where a share of a route's requests goes."""

    model: str
    version: str
    weight: float
    name: str
    endpoints: dict[str, str]


class ShadowView(View):
    """A target that gets copies of requests."""

    target: TargetView
    share: float


class MatchView(View):
    """Which requests a rule is for."""

    headers: dict[str, str]
    tenants: list[str]
    principals: list[str]


class RuleView(View):
    """Targets for some of a route's requests."""

    match: MatchView
    targets: list[TargetView]


class StickyView(View):
    """What keeps a caller at one target."""

    by: _By
    header: str


class PolicyView(View):
    """What differs from the router's settings."""

    balancer: Balancer | None
    hash_header: str | None
    timeout_s: float | None
    try_timeout_s: float | None
    max_attempts: int | None
    hedge_percentile: float | None


class RouteFields(View):
    """What is said about a route."""

    name: Name
    targets: list[TargetView]
    rules: list[RuleView]
    fallbacks: list[TargetView]
    shadows: list[ShadowView]
    sticky: StickyView | None
    force_header: str
    policy: PolicyView
    description: str


class RouteView(RouteFields):
    """A name that callers ask as if it were a model."""

    created_at: datetime
    updated_at: datetime
    revision: int
