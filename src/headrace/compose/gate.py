"""The gateway of one process: who calls, what they may, how much, and what is counted of it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from headrace.adapters.jwt.settings import check as check_jwt
from headrace.adapters.memory_limiter import MemoryLimiter, MemoryLimiterSettings
from headrace.domain.catalog import Key
from headrace.domain.errors import HeadraceError
from headrace.gateway.admission import Admission
from headrace.gateway.authentication import Authentication, FindKey
from headrace.gateway.failures import Failures
from headrace.gateway.gateway import Gateway
from headrace.gateway.limits import Limits
from headrace.gateway.limits import check as check_limits
from headrace.gateway.metrics import GatewayMetrics
from headrace.ports.inference import InferenceService
from headrace.ports.limiter import Limiter
from headrace.settings import Settings
from headrace.telemetry.api_requests import ApiRequests
from headrace.telemetry.metrics import Metrics
from headrace.transport.client_address import ClientAddress
from headrace.transport.cors import Cors

if TYPE_CHECKING:
    from headrace.adapters.jwt.verifier import JwtVerifier
    from headrace.adapters.redis.limiter import RedisLimiter

_logger = logging.getLogger(__name__)
_FIRST_KEYS_S: Final = 5.0
_KEY_USAGE_S: Final = 5.0


class Gate:
    """All parts of the gateway in front of `service`.

    Raises:
        InvalidSettings: from the constructor, naming the setting.
    """

    def __init__(
        self,
        settings: Settings,
        service: InferenceService,
        *,
        find_key: FindKey,
        metrics: Metrics,
    ) -> None:
        self._replicas = settings.limits.replicas
        self._verifier = _verifier(settings)
        self.cors = Cors(settings.cors) if settings.cors.enabled else None
        failures = settings.authentication.failures_per_minute
        self.authenticate = Authentication(
            settings.authentication,
            development=settings.mode == "development",
            find_key=find_key,
            verifier=self._verifier,
            shares_with=self.cors.allows if self.cors is not None else lambda _: False,
            failures=Failures(
                failures,
                # wrong credentials are each process's own matter: they say nothing of a quota
                spend=MemoryLimiter(MemoryLimiterSettings()).take,
                clock=time.monotonic,
            )
            if failures
            else None,
        )
        self.addresses = ClientAddress(settings.http.trusted_proxies)
        self.api_requests = ApiRequests(metrics)
        gateway_metrics = GatewayMetrics(metrics)
        self._admission = Admission(settings.admission, count_refusal=gateway_metrics.count_refusal)
        check_limits(settings.limits)
        self._shared_limiter = _shared_limiter(settings)
        limits = None
        if settings.limits.policies:
            limits = Limits(
                settings.limits,
                limiter=self._shared_limiter or _own_limiter(settings),
                count_refusal=gateway_metrics.count_limited,
            )
        self.gateway = Gateway(
            service,
            settings=settings.gateway,
            admission=self._admission,
            limits=limits,
            metrics=gateway_metrics,
            clock=time.monotonic,
        )
        self._metrics = gateway_metrics
        self._keys = metrics.gauge(
            "headrace_jwt_keys", "Keys of the tokens' issuer that are known."
        ).labels()
        self._key_fetches = metrics.counter(
            "headrace_jwt_key_fetches_total",
            "Fetches of the issuer's keys, by whether they brought any.",
            ("outcome",),
        )
        metrics.observe(self._observe)

    def last_online(self) -> float:
        """When the last online request came, in monotonic seconds."""
        return self._admission.last_online

    def start(self, tasks: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        """Begin what goes on in the background; answers what is to be cancelled in the end."""
        background: list[asyncio.Task[None]] = []
        if self._verifier is not None:
            background.append(tasks.create_task(self._verifier.run()))
        if self._shared_limiter is not None:
            background.append(tasks.create_task(self._shared_limiter.run()))
            if self._replicas == 1:
                _logger.warning(
                    "limits.replicas is 1: should the limiter be gone, each process that shares it "
                    "would grant whole quotas; set it to their number"
                )
        return background

    async def first_keys(self) -> None:
        """Wait a while until the issuer's keys are known; the platform is not ready before."""
        if self._verifier is not None and not await self._verifier.first_keys(_FIRST_KEYS_S):
            _logger.warning("no key of the tokens' issuer is known yet: tokens are answered 503")

    async def tell_key_usage(
        self, keep: Callable[[Mapping[Key, datetime]], Awaitable[None]]
    ) -> None:
        """Hand over, every few seconds, which of the registry's keys were used. Never returns."""
        used: dict[Key, datetime] = {}
        while True:
            await asyncio.sleep(_KEY_USAGE_S)
            used |= dict.fromkeys(self.authenticate.take_used_keys(), datetime.now(UTC))
            if not used:
                continue
            try:
                await keep(used)
                used = {}
            except HeadraceError as error:  # the next time, then
                _logger.warning("which keys were used cannot be kept: %s", error.message)
            except Exception:  # the root of a task
                _logger.exception("which keys were used cannot be kept")

    async def close(self) -> None:
        """Let go of connections."""
        if self._shared_limiter is not None:
            await self._shared_limiter.close()

    def _observe(self) -> None:
        metrics = self._metrics
        metrics.waiting.value = self._admission.waiting
        metrics.degraded.value = self._shared_limiter is not None and self._shared_limiter.degraded
        if (verifier := self._verifier) is not None:
            self._keys.value = verifier.keys
            self._key_fetches.labels("ok").value = verifier.fetches - verifier.failures
            self._key_fetches.labels("failed").value = verifier.failures


def _verifier(settings: Settings) -> JwtVerifier | None:
    check_jwt(settings.jwt)
    if not settings.jwt.configured:
        return None
    # here, since it imports a library of cryptography, which most laptops' platforms do not need
    from headrace.adapters.jwt.verifier import JwtVerifier

    return JwtVerifier(settings.jwt)


def _own_limiter(settings: Settings) -> Limiter:
    chosen = settings.limiter
    return MemoryLimiter(
        chosen if isinstance(chosen, MemoryLimiterSettings) else MemoryLimiterSettings()
    )


def _shared_limiter(settings: Settings) -> RedisLimiter | None:
    if isinstance(settings.limiter, MemoryLimiterSettings) or not settings.limits.policies:
        return None
    from headrace.adapters.redis.limiter import RedisLimiter

    return RedisLimiter(settings.limiter, replicas=settings.limits.replicas)
