"""What a route asks of its caller. A route that says nothing cannot be made: deny by default."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from headrace.domain.calls import OPERATOR, UNKNOWN, Principal
from headrace.domain.errors import Forbidden
from headrace.domain.scopes import ADMIN, INFER, MODELS_READ, MODELS_WRITE

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]


class Rule(msgspec.Struct, frozen=True):
    """Who may come in."""

    scope: str  # that is needed; "": any
    public: bool = False  # nobody is asked who they are
    or_infer: bool = False  # whoever may run the model that is asked about may come in too
    operators: bool = False  # of the operator's tenant only, as it is for all tenants

    def require(self, principal: Principal, model: str = "") -> None:
        """Raises Forbidden, naming the scope that is lacking."""
        if self.operators and principal.tenant != OPERATOR:
            raise Forbidden(f"this is for callers of the tenant '{OPERATOR}', whose process it is")
        grants = principal.grants
        if self.public or (grants.has(self.scope) if self.scope else grants.any):
            return
        if self.or_infer and model and grants.may_infer(model):
            return
        what = f"the scope {self.scope}" if self.scope else "a scope"
        raise Forbidden(f"this caller lacks {what}, which this request needs")


#: Answers everybody: probes and scrapers have no token, and it tells nothing of anybody.
PUBLIC: Final = Rule("", public=True)
#: Whoever may do anything at all.
ANY: Final = Rule("")
#: Whoever may run the model that is asked.
RUN_MODEL: Final = Rule(INFER, or_infer=True)
READ: Final = Rule(MODELS_READ)
#: What is told of a model to those who may run it.
READ_MODEL: Final = Rule(MODELS_READ, or_infer=True)
WRITE: Final = Rule(MODELS_WRITE)
MANAGE: Final = Rule(ADMIN)
#: What changes the process itself.
OPERATE: Final = Rule(ADMIN, operators=True)


class GuardedRoute(Route):
    """The endpoints of a path by their methods, each behind its rule.

    One route for a path, so that a 405 names all of its methods. The caller is that of
    `scope["headrace.principal"]`, which whoever is in front sets. With `by_gateway` the endpoints
    pass requests on to the gateway, which counts them.
    """

    def __init__(
        self,
        path: str,
        endpoints: Mapping[str, tuple[Rule, Endpoint]],
        *,
        by_gateway: bool = False,
    ) -> None:
        self.by_gateway = by_gateway
        self.rules = {method: rule for method, (rule, _) in endpoints.items()}
        if "GET" in self.rules:
            self.rules["HEAD"] = self.rules["GET"]

        async def guarded(request: Request) -> Response:
            method = "GET" if request.method == "HEAD" else request.method
            rule, endpoint = endpoints[method]
            rule.require(caller_of(request.scope), request.path_params.get("model", ""))
            return await endpoint(request)

        super().__init__(path, guarded, methods=list(endpoints))

    @property
    def public(self) -> bool:
        """Whether nobody who asks this path is asked who they are."""
        return all(rule.public for rule in self.rules.values())


def caller_of(scope: Mapping[str, Any]) -> Principal:
    """Who sent the request of an ASGI scope."""
    principal: Principal = scope.get("headrace.principal", UNKNOWN)
    return principal
