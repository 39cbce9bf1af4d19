"""A fleet without a network: endpoints that answer as a test scripts them, on a clock it moves."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any, Final, Self, TypeAlias

from headrace.domain.calls import Call
from headrace.domain.catalog import ApiKey, Endpoint, Key
from headrace.domain.errors import EndpointFailed, HeadraceError, InvalidRequest, UnknownModel
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.tensors import InferContent
from headrace.ports.catalogue import Entry, Name
from headrace.ports.inference import Responses, single
from headrace.ports.model_control import IndexEntry, ModelMetadata
from headrace.ports.remote_models import RemoteModels
from headrace.ports.upstream import Site, Sited
from headrace.resilience.backoff import RetrySettings
from headrace.resilience.breaker import BreakerSettings
from headrace.resilience.health_checks import HealthCheckSettings
from headrace.resilience.outliers import OutlierSettings
from headrace.router.attempts import Attempts
from headrace.router.endpoint_metrics import EndpointMetrics
from headrace.router.endpoint_statistics import EndpointStatistics
from headrace.router.fleet import Fleet
from headrace.router.lane import Lane
from headrace.router.local import LocalModels
from headrace.router.router import Router
from headrace.router.settings import HedgingSettings, RouterSettings
from headrace.router.shadowing import Shadowing
from headrace.telemetry.metrics import Metrics

AT: Final = datetime(2026, 1, 1, tzinfo=UTC)
#: What a call of an upstream ends in: an error, or (None) an answer; or a future that says when.
Outcome: TypeAlias = HeadraceError | asyncio.Future[Any] | None


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeModels:
    """What a server tells of its models, by name: "READY" with version "1", or why it is not.

    `fails` is raised instead of any answer; `hangs`, where it is set, is waited for before that.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.states: dict[str, str] = {}
        self.counts: dict[str, int] = {}  # of inferences, by model
        self.fails: HeadraceError | None = None
        self.hangs: asyncio.Future[None] | None = None
        self.asked: list[tuple[str, ...]] = []
        self.deadlines: list[float] = []
        self.configs: list[bytes | None] = []

    async def metadata(self, model: str, version: str, deadline: float) -> ModelMetadata:
        await self._asked(deadline, "metadata", model, version)
        self._require(model)
        return ModelMetadata(model, ("1",), self.name, (), ())

    async def config(self, model: str, version: str, deadline: float) -> Mapping[str, Any]:
        await self._asked(deadline, "config", model, version)
        self._require(model)
        return {"name": model, "backend": self.name}

    async def statistics(
        self, model: str, version: str, deadline: float
    ) -> Sequence[dict[str, Any]]:
        await self._asked(deadline, "statistics", model, version)
        if model:
            self._require(model)
        return [
            {"name": name, "version": "1", "inference_count": count}
            for name, count in self.counts.items()
            if model in {"", name}
        ]

    async def index(self, deadline: float) -> Sequence[IndexEntry]:
        await self._asked(deadline, "index")
        return [
            IndexEntry(name, "1", "READY" if state == "READY" else "UNAVAILABLE", reason)
            for name, state in self.states.items()
            for reason in ["" if state == "READY" else state]
        ]

    async def load(self, model: str, deadline: float, *, config_json: bytes | None = None) -> None:
        await self._asked(deadline, "load", model)
        self.configs.append(config_json)
        if self.states.get(model, "READY") != "READY":
            raise InvalidRequest(f"failed to load '{model}', {self.states[model]}")
        self.states[model] = "READY"

    async def unload(self, model: str, deadline: float) -> None:
        await self._asked(deadline, "unload", model)
        self._require(model)
        del self.states[model]

    async def _asked(self, deadline: float, *question: str) -> None:
        self.asked.append(question)
        self.deadlines.append(deadline)
        if self.hangs is not None:
            await self.hangs
        if self.fails is not None:
            raise self.fails

    def _require(self, model: str) -> None:
        if self.states.get(model) != "READY":
            raise UnknownModel(f"Request for unknown model: '{model}' is not found")


class FakeUpstream:
    """Ends calls in the outcomes of `script`, one by one, and then in `always`."""

    connections = 0
    pending = 0

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.script: list[Outcome] = []
        self.always: HeadraceError | None = None
        self.takes_s = 0.0
        self.asked: list[tuple[InferRequest, Call]] = []
        self.cancelled = 0
        self.ready = True
        self.checked = 0
        self.lacking: set[str] = set()  # models that are not, though the server is
        self.closed = 0
        self.told = FakeModels(name)
        self.models: RemoteModels | None = self.told
        self._clock = clock

    async def infer(self, request: InferRequest, call: Call) -> InferResponse:
        self.asked.append((request, call))
        outcome = self.script.pop(0) if self.script else self.always
        if isinstance(outcome, asyncio.Future):
            try:
                outcome = await outcome
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        self._clock.now += self.takes_s
        if outcome is not None:
            raise outcome
        return InferResponse(request.model, self.name, [])

    def stream(self, request: InferRequest, call: Call) -> Responses:
        return single(self, request, call)

    async def unready(self, model: str, version: str, deadline: float) -> str:
        del version, deadline
        self.checked += 1
        return "" if self.ready and model not in self.lacking else "it says so"

    async def close(self) -> None:
        self.closed += 1


class FakeCatalogue:
    revision = 1
    problem = ""

    def __init__(self) -> None:
        self.entries: dict[Name, Entry] = {}
        self.endpoints: dict[Key, Endpoint] = {}
        self._heard: list[Callable[[frozenset[tuple[str, Key]]], None]] = []

    def entry(self, name: Name) -> Entry | None:
        return self.entries.get(name)

    def names(self) -> Iterable[Name]:
        return list(self.entries)

    def every_endpoint(self) -> Iterable[Endpoint]:
        return list(self.endpoints.values())

    def key(self, digest: str) -> ApiKey | None:
        del digest
        return None

    def on_change(self, heard: Callable[[frozenset[tuple[str, Key]]], None]) -> None:
        self._heard.append(heard)

    def changed(self, *changes: tuple[str, Key]) -> None:
        for heard in self._heard:
            heard(frozenset(changes))


class NoLocalModels:
    async def infer(self, request: InferRequest, call: Call) -> InferResponse:
        del call
        raise UnknownModel(f"no {request.model}")

    def stream(self, request: InferRequest, call: Call) -> Responses:
        return single(self, request, call)

    def obstacle(self, tenant: str, model: str, version: str) -> HeadraceError | None:
        del tenant, version
        return UnknownModel(f"no {model}")

    def is_warm(self, tenant: str, model: str, version: str) -> bool:
        del tenant, model, version
        return False

    def knows(self, tenant: str, model: str) -> bool:
        del tenant, model
        return False


class RouterHouse:
    """A router over a fleet whose endpoints are `FakeUpstream`s, found at once."""

    def __init__(
        self,
        *,
        local: LocalModels | None = None,
        shared: Sequence[Key] = (),
        router: RouterSettings | None = None,
        retries: RetrySettings | None = None,
        hedging: HedgingSettings | None = None,
        health_checks: HealthCheckSettings | None = None,
    ) -> None:
        self.clock = Clock()
        self.random = random.Random(7)
        self.metrics = Metrics(version="1")
        self.catalogue = FakeCatalogue()
        self.upstreams: dict[str, FakeUpstream] = {}
        self.at: dict[str, FakeUpstream] = {}  # the last one at an address
        self.sites: dict[str, Sited | OSError] = {}
        self.located: list[str] = []
        self.router_settings = router or RouterSettings(slow_start_s=0)
        self.retries = retries or RetrySettings(base_s=0, max_s=0)
        self.hedging = hedging or HedgingSettings()
        checks = health_checks or HealthCheckSettings(enabled=False, statistics_s=0)
        counted = EndpointMetrics(self.metrics, clock=self.clock)
        self.fleet = Fleet(
            catalogue=self.catalogue,
            shared=shared,
            connect=self._connect,
            locate=self._locate,
            router=self.router_settings,
            breaker=BreakerSettings(),
            outliers=OutlierSettings(),
            health_checks=checks,
            retries=self.retries,
            hedging=self.hedging,
            metrics=counted,
            statistics=EndpointStatistics(
                self.metrics,
                settings=checks,
                clock=self.clock,
                chance=self.random.random,
            ),
            clock=self.clock,
            now=lambda: AT,
            chance=self.random.random,
        )
        self.attempts = Attempts(
            retries=self.retries,
            metrics=counted,
            spawn=self.fleet.spawn,
            clock=self.clock,
            chance=self.random.random,
        )
        self.router = Router(
            catalogue=self.catalogue,
            local=local or NoLocalModels(),
            fleet=self.fleet,
            attempts=self.attempts,
            shadowing=Shadowing(
                most=2,
                most_bytes=1000,
                timeout_s=1,
                metrics=counted,
                spawn=self.fleet.spawn,
                clock=self.clock,
            ),
            settings=self.router_settings,
            retries=self.retries,
            hedging=self.hedging,
            metrics=counted,
            clock=self.clock,
            chance=self.random.random,
        )
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self.fleet.run())
        await turns()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._running is not None
        self._running.cancel()
        await asyncio.wait([self._running])

    async def put(self, *endpoints: Endpoint) -> None:
        """Register endpoints, or change them, and wait until they are found."""
        self.catalogue.endpoints |= {endpoint.key: endpoint for endpoint in endpoints}
        self.catalogue.changed(*(("endpoint", endpoint.key) for endpoint in endpoints))
        await turns()

    async def drop(self, *keys: Key) -> None:
        for key in keys:
            del self.catalogue.endpoints[key]
        self.catalogue.changed(*(("endpoint", key) for key in keys))
        await turns()

    def ask(
        self, model: str = "m", version: str = "", *, tenant_call: Call | None = None
    ) -> Coroutine[Any, Any, InferResponse]:
        request = InferRequest(model, version, decoded=InferContent([]))
        return self.router.infer(request, tenant_call or Call("id"))

    @property
    def lanes(self) -> list[Lane]:
        return list(self.fleet.pool("default", "m", balanced="p2c", catch_all=False).lanes)

    def counted(self, family: str) -> dict[tuple[str, ...], float]:
        """Values of a metric by the values of its labels, in the order of their names."""
        found = {}
        for metric in self.metrics._registry.collect():  # noqa: SLF001 - as a scrape sees it
            for sample in metric.samples:
                if sample.name == family:
                    found[tuple(sample.labels.values())] = sample.value
        return found

    def _connect(self, endpoint: Endpoint, site: Site | None) -> FakeUpstream:
        upstream = self.upstreams[endpoint.url] = FakeUpstream(endpoint.name, self.clock)
        if site is None:
            upstream.models = None
        else:
            self.at[str(site.address)] = upstream
        return upstream

    async def _locate(self, endpoint: Endpoint) -> Sited:
        self.located.append(endpoint.url)
        found = self.sites.get(endpoint.url)
        if isinstance(found, OSError):
            raise found
        if found is not None:
            return found
        port = int(endpoint.url.rpartition(":")[2])
        return Sited((Site("h", port, ip_address("127.0.0.1")),), (), fixed=True)


async def turns(count: int = 8) -> None:
    """Let tasks that wait for nothing go on."""
    for _ in range(count):
        await asyncio.sleep(0)


def endpoint(
    number: int, *, tenant: str = "default", models: Sequence[str] = ("m",), **changes: Any
) -> Endpoint:
    url = changes.pop("url", f"http://h:{8000 + number}")
    return Endpoint(
        tenant=tenant, name=f"e{number}", url=url, models=tuple(models), created_at=AT,
        updated_at=AT, **changes,
    )  # fmt: skip


def failed(retry_after_s: float | None = None) -> EndpointFailed:
    return EndpointFailed("it broke off", retry_after_s=retry_after_s)
