"""The router of one process: endpoints, routes, and the models that run here."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from headrace.compose.platform_control import ModelsHere, PlatformControl
from headrace.compose.registry import allowed_networks
from headrace.compose.siting import Siting
from headrace.compose.upstreams import Upstreams
from headrace.ports.catalogue import Catalogue
from headrace.registry.configured import Configured, configured_endpoints, configured_routes
from headrace.registry.registry import utc_now
from headrace.registry.resolving import resolve
from headrace.router.attempts import Attempts
from headrace.router.endpoint_metrics import EndpointMetrics
from headrace.router.endpoint_statistics import EndpointStatistics
from headrace.router.fleet import Fleet
from headrace.router.in_process import InProcess
from headrace.router.local import LocalModels
from headrace.router.remote_control import RemoteControl
from headrace.router.router import Router
from headrace.router.shadowing import Shadowing
from headrace.settings import Settings
from headrace.telemetry.metrics import Metrics


def configured(settings: Settings) -> Configured:
    """The endpoints and routes of the settings. Raises InvalidSettings."""
    now = utc_now()
    return Configured(
        endpoints=configured_endpoints(
            settings.endpoints, allowed=allowed_networks(settings), at=now
        ),
        routes=configured_routes(settings.routes, at=now),
    )


class Routing:
    """All parts of the router over `catalogue`, which has what is `configured` already."""

    def __init__(
        self,
        settings: Settings,
        *,
        catalogue: Catalogue,
        configured: Configured,
        local: LocalModels,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        endpoint_metrics = EndpointMetrics(metrics, clock=time.monotonic)
        self.fleet = Fleet(
            catalogue=catalogue,
            shared=[endpoint.key for endpoint in configured.endpoints],
            connect=Upstreams(
                settings, in_process=lambda endpoint: InProcess(local, endpoint.tenant)
            ),
            locate=Siting(allowed=allowed_networks(settings), resolve=resolve),
            router=settings.router,
            breaker=settings.breaker,
            outliers=settings.outliers,
            health_checks=settings.health_checks,
            retries=settings.retries,
            hedging=settings.hedging,
            metrics=endpoint_metrics,
            statistics=EndpointStatistics(
                metrics,
                settings=settings.health_checks,
                clock=time.monotonic,
                chance=random.random,
            ),
            clock=time.monotonic,
            now=utc_now,
            chance=random.random,
        )
        metrics.observe(self.fleet.observe)
        self.router = Router(
            catalogue=catalogue,
            local=local,
            fleet=self.fleet,
            attempts=Attempts(
                retries=settings.retries,
                metrics=endpoint_metrics,
                spawn=self.fleet.spawn,
                clock=time.monotonic,
                chance=random.random,
            ),
            shadowing=Shadowing(
                most=settings.router.max_shadows,
                most_bytes=settings.router.max_shadow_bytes,
                timeout_s=settings.gateway.default_timeout_s,
                metrics=endpoint_metrics,
                spawn=self.fleet.spawn,
                clock=time.monotonic,
            ),
            settings=settings.router,
            retries=settings.retries,
            hedging=settings.hedging,
            metrics=endpoint_metrics,
            clock=time.monotonic,
            chance=random.random,
        )

    def control(self, here: ModelsHere, *, stopping: Callable[[], bool]) -> PlatformControl:
        """What operators' wires ask of all models; `here` are those of this process."""
        remote = RemoteControl(
            self.fleet,
            here=here.of,
            timeout_s=self._settings.router.control_timeout_s,
            load_s=self._settings.gateway.max_timeout_s,
            clock=time.monotonic,
        )
        return PlatformControl(here, router=self.router, remote=remote, stopping=stopping)
