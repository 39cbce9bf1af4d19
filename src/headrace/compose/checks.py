"""Combinations of settings that must not start."""

from __future__ import annotations

from headrace.compose.gate import Gate
from headrace.compose.routing import configured
from headrace.compose.upstreams import tls_context
from headrace.domain.calls import Call
from headrace.domain.errors import InvalidSettings, UnknownModel
from headrace.domain.hosts import is_loopback
from headrace.domain.inference import InferRequest, InferResponse
from headrace.ports.inference import Responses, single
from headrace.settings import Settings
from headrace.telemetry.metrics import Metrics


def check(settings: Settings) -> None:
    """Everything that can be known before the start. Raises InvalidSettings."""
    check_exposure(settings)
    configured(settings)
    for profile in settings.tls:
        tls_context(settings, profile)
    Gate(settings, _Nothing(), find_key=lambda _: None, metrics=Metrics(version=""))


def check_exposure(settings: Settings) -> None:
    """Refuse to be reachable from other machines without knowing who calls.

    Raises:
        InvalidSettings: naming the setting to change.
    """
    authentication = settings.authentication
    if (
        authentication.required
        and not settings.registry.enabled
        and not (authentication.tokens or settings.jwt.configured)
    ):
        raise InvalidSettings(
            "authentication.required asks for keys of the registry, and registry.enabled is false"
        )
    if is_loopback(settings.server.host):
        return
    if settings.mode == "development":
        raise InvalidSettings(
            f"mode is development, in which everybody knows a token, and server.host is "
            f"{settings.server.host}, which other machines can reach: listen on 127.0.0.1"
        )
    if authentication.tokens or authentication.required or settings.jwt.configured:
        return
    msg = (
        f"server.host is {settings.server.host}, which other machines can reach, but nobody is "
        "asked for a token: set authentication.tokens (`headrace token NAME` makes one), [jwt], or "
        "authentication.required (`headrace keys create --local` makes a key), or listen on "
        "127.0.0.1"
    )
    raise InvalidSettings(msg)


class _Nothing:
    """What a gateway is made in front of to be looked at: it has no model."""

    async def infer(self, request: InferRequest, call: Call) -> InferResponse:
        del call
        raise UnknownModel(f"Request for unknown model: '{request.model}' is not found")

    def stream(self, request: InferRequest, call: Call) -> Responses:
        return single(self, request, call)
