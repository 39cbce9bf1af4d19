"""The whole platform in one process: built, started, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import time
from collections.abc import AsyncIterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

from headrace.adapters.model_repository import triton_json
from headrace.adapters.model_repository.folder import ModelFolder
from headrace.adapters.onnx import OnnxLoader
from headrace.adapters.python_model import PythonModelLoader
from headrace.compose.batch import BatchHouse
from headrace.compose.checks import check_exposure
from headrace.compose.gate import Gate
from headrace.compose.model_control import FolderControl, WholeControl
from headrace.compose.registry import RegistryHouse, data_dir, opened
from headrace.compose.routing import Routing, configured
from headrace.compose.shelf import CatalogueShelf, NoModels
from headrace.domain.catalog import ApiKey, Key
from headrace.domain.errors import InvalidSettings
from headrace.domain.models import Platform as ModelPlatform
from headrace.orchestrator.lifecycle import Models
from headrace.orchestrator.metrics import OrchestratorMetrics
from headrace.orchestrator.on_demand import OnDemand
from headrace.orchestrator.orchestrator import Orchestrator
from headrace.orchestrator.response_cache import response_cache
from headrace.ports.catalogue import Catalogue
from headrace.ports.executor import ExecutorLoader
from headrace.ports.model_control import ModelControl, ModelDescription
from headrace.ports.repository import ModelRepository
from headrace.router.configured import ConfiguredCatalogue, NoRegistry
from headrace.router.local import FolderModels, LocalModels
from headrace.router.registered import RegisteredModels
from headrace.settings import Settings
from headrace.telemetry.access_log import AccessLog
from headrace.telemetry.metrics import Metrics
from headrace.telemetry.trace_context import RequestIds
from headrace.transport.application import HttpApplication
from headrace.transport.http.server import HttpServer
from headrace.transport.oip_rest.control import ControlWire
from headrace.transport.oip_rest.generate import GenerateWire
from headrace.transport.oip_rest.infer import InferWire
from headrace.transport.oip_rest.server_settings import RequestTimelines
from headrace.transport.openai.inference import InferenceWire
from headrace.transport.openai.models import ModelsWire
from headrace.transport.operations import OperationsWire

if TYPE_CHECKING:
    from headrace.transport.oip_grpc.server import GrpcServer

_logger = logging.getLogger(__name__)
_FLUSH_S: Final = 0.2
_SAY_WAITING_S: Final = 10.0
GC_THRESHOLDS: Final = (20_000, 20, 50)  # requests leave no cycles: look seldom


class Platform:
    """Gateway, router, orchestrator and registry, served over HTTP and gRPC.

    `models` is a folder with models; None where all come from the registry.
    """

    def __init__(
        self, settings: Settings, models: Path | None, *, version: str, log: TextIO
    ) -> None:
        check_exposure(settings)
        if models is None and not (settings.registry.enabled or settings.endpoints):
            msg = (
                "registry.enabled is false, and no folder of models is given and no endpoint: "
                "nothing to serve"
            )
            raise InvalidSettings(msg)
        self.settings = settings
        self.version = version
        self._started = time.monotonic()
        self.loaded = asyncio.Event()
        self._stopping = False
        self.metrics = Metrics(version=version)
        self._folder = ModelFolder(models) if models is not None else None
        self._house: RegistryHouse | None = None
        self._batch: BatchHouse | None = None
        self._access_log = AccessLog(settings=settings.log, stream=log, clock=time.time)
        self._orchestrator_metrics = OrchestratorMetrics(self.metrics)
        self._response_cache = response_cache(settings.orchestrator, self._orchestrator_metrics)
        self._loaders: Mapping[ModelPlatform, ExecutorLoader] = {
            "onnxruntime_onnx": OnnxLoader(
                default_max_batch_size=settings.orchestrator.default_max_batch_size
            ),
            "python": PythonModelLoader(),
        }
        self.models = self._models(self._folder or NoModels())
        self._all_models = [self.models]
        self._folder_control = FolderControl(
            self.models, repository=self._folder or NoModels(), config_json=_config_json
        )
        self._control: ModelControl = self._folder_control
        self._folder_models = Orchestrator(self.models)
        self._configured = configured(settings)
        self._gate = Gate(
            settings, self._folder_models, find_key=self._find_key, metrics=self.metrics
        )
        self._connections = self.metrics.gauge(
            "headrace_http_connections", "Open HTTP connections."
        ).labels()
        self._buffered_bytes = self.metrics.gauge(
            "headrace_http_buffered_bytes", "Bytes of bodies of inference requests under way."
        ).labels()
        self._refusals = self.metrics.counter(
            "headrace_http_refusals_total",
            "Requests and connections that the HTTP layer refused by itself, by status.",
            ("status",),
        )
        self._ids = RequestIds()
        self._registered: RegisteredModels | None = None
        self._routing: Routing | None = None
        self._http: HttpServer | None = None
        self._grpc: GrpcServer | None = None

    @property
    def http_address(self) -> tuple[str, int]:
        """Host and port as bound."""
        assert self._http is not None, "the platform is not started"  # noqa: S101
        return self._http.address

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen, begin to load the models, and on leaving drain and close.

        Probes are answered from the start; `loaded` is set once every model was tried.

        Raises:
            InvalidSettings: a port is taken, the model folder is missing.
        """
        if self._folder is not None:
            self._folder.require()
        async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
            background: list[asyncio.Task[None]] = []
            if self.settings.registry.enabled:
                self._house = await stack.enter_async_context(
                    opened(
                        self.settings,
                        metrics=self.metrics,
                        version=self.version,
                        configured=self._configured,
                        known=lambda _, model: FolderModels(self._folder_models).knows("", model),
                    )
                )
                background += self._join_registry(self._house, tasks)
            else:
                self._route(NoRegistry(), FolderModels(self._folder_models))
            assert self._routing is not None  # noqa: S101 - `_route` made it
            background.append(tasks.create_task(self._routing.fleet.run()))
            stack.push_async_callback(self._routing.fleet.close)
            background += self._gate.start(tasks)
            stack.push_async_callback(self._gate.close)
            working = self._join_batch(stack, tasks)
            application = self._application()
            server = self.settings.server
            self._http = await HttpServer.listen(
                application,
                address=(server.host, server.http_port),
                limits=self.settings.http,
                tasks=tasks,
            )
            try:
                self._grpc = await self._listen_grpc()
            except InvalidSettings:
                await self._http.drain(0)
                for task in [*background, *working]:
                    task.cancel()
                raise
            _logger.info(
                "listening",
                extra={"http_port": self.http_address[1], "grpc_port": self._grpc.address[1]},
            )
            self.metrics.observe(self._observe_http)
            background += [
                tasks.create_task(self._flush_access_log()),
                tasks.create_task(self._tend_models()),
            ]
            try:
                yield
            finally:
                for task in working:  # first: others take its jobs over while requests drain
                    task.cancel()
                await self._stop()
                for task in background:
                    task.cancel()

    async def run_until_signal(self) -> None:
        """Serve until SIGTERM or SIGINT; a second signal ends the process at once."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_signal(number: signal.Signals) -> None:
            _logger.info("%s: draining", number.name)
            loop.remove_signal_handler(signal.SIGTERM)
            loop.remove_signal_handler(signal.SIGINT)
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal, number)
        async with self.running():
            await stop.wait()

    def health(self) -> tuple[bool, dict[str, Any]]:
        """Whether an inference sent now would be tried, and the details behind it."""
        unready = sum(entry.state != "READY" for entry in self.models.index())
        served = [version for models in self._all_models for version in models.all_versions()]
        hung = sum(not version.ready for version in served)
        fleet = None if self._routing is None else self._routing.fleet
        can_run = any(v.ready for v in served)
        if fleet is not None and not fleet.is_empty:
            can_run = can_run or fleet.any_ready
        else:
            can_run = can_run or not (served or unready)
        if self._stopping:
            status = "draining"
        elif not self.loaded.is_set():
            status = "starting"
        else:
            status = "ok" if can_run else "no model can run"
        registry = {}
        if self._house is not None:
            # what was read last is served on, so this alone makes no process unready
            registry = {
                "registry": self._house.catalogue.problem or "ok",
                "registry_revision": self._house.catalogue.revision,
            }
        return status == "ok", {
            "status": status,
            "version": self.version,
            "uptime_s": round(time.monotonic() - self._started, 1),
            "models_ready": len(served) - hung,
            "models_hung": hung,
            "models_not_ready": unready,
            **registry,
        }

    def _models(self, repository: ModelRepository, *, transient: bool = False) -> Models:
        models = Models(
            repository,
            loaders=self._loaders,
            settings=self.settings.orchestrator,
            metrics=self._orchestrator_metrics,
            cache=self._response_cache,
            transient=transient,
        )
        self.metrics.observe(models.observe)
        return models

    def _find_key(self, digest: str) -> ApiKey | None:
        return None if self._house is None else self._house.catalogue.key(digest)

    def _join_registry(
        self, house: RegistryHouse, tasks: asyncio.TaskGroup
    ) -> list[asyncio.Task[None]]:
        """Put the registry's models before those of the folder."""
        shelf = CatalogueShelf(house.catalogue, house.artifacts)
        loaded = self._models(shelf, transient=True)
        self._all_models.append(loaded)
        on_demand = OnDemand(
            loaded,
            shelf,
            max_loaded=self.settings.orchestrator.max_loaded_versions,
            clock=time.monotonic,
        )
        self._registered = RegisteredModels(
            catalogue=house.catalogue,
            endpoint=on_demand,
            others=self._folder_models,
            settings=self.settings.router,
            usage=house.usage,
            clock=time.monotonic,
        )
        routing = self._route(house.catalogue, self._registered)
        house.states = routing.fleet
        self._control = routing.control(
            WholeControl(
                self._folder_control,
                models=self._registered,
                catalogue=house.catalogue,
                on_demand=on_demand,
                registered=loaded,
                config_json=_config_json,
                load_s=self.settings.gateway.default_timeout_s,
                clock=time.monotonic,
            ),
            stopping=lambda: self._stopping,
        )
        house.catalogue.on_change(self._forget_keys)
        return [
            tasks.create_task(house.run()),
            tasks.create_task(on_demand.run()),
            tasks.create_task(self._gate.tell_key_usage(house.keep_key_usage)),
        ]

    def _route(self, catalogue: Catalogue, local: LocalModels) -> Routing:
        """Put routes and endpoints before the models of this process."""
        self._routing = Routing(
            self.settings,
            catalogue=ConfiguredCatalogue(
                catalogue, endpoints=self._configured.endpoints, routes=self._configured.routes
            ),
            configured=self._configured,
            local=local,
            metrics=self.metrics,
        )
        self._gate.gateway.service = self._routing.router
        self._control = self._routing.control(self._folder_control, stopping=lambda: self._stopping)
        return self._routing

    def _join_batch(
        self, stack: contextlib.AsyncExitStack, tasks: asyncio.TaskGroup
    ) -> list[asyncio.Task[None]]:
        """Offer batch jobs, and work on them once the models are loaded."""
        house = self._house
        if house is None or not self.settings.batch.enabled:
            return []
        self._batch = batch = BatchHouse(
            self.settings,
            database=house.database,
            idempotency=house.idempotency,
            data_dir=data_dir(self.settings),
            service=lambda: self._gate.gateway.service,
            control=lambda: self._control,
            last_online=self._gate.last_online,
            metrics=self.metrics,
            ids=self._ids,
        )
        stack.push_async_callback(batch.close)

        async def work() -> None:
            await self.loaded.wait()
            await batch.run()

        return [tasks.create_task(work())]

    def _forget_keys(self, changed: frozenset[tuple[str, Key]]) -> None:
        if any(kind == ApiKey.kind for kind, _ in changed):
            self._gate.authenticate.forget_keys()

    def _application(self) -> HttpApplication:
        timelines = RequestTimelines()
        gate = self._gate
        infer = InferWire(
            gate.gateway,
            max_body_bytes=self.settings.http.max_body_bytes,
            clock=time.monotonic,
            addresses=gate.addresses,
            authenticate=gate.authenticate,
            ids=self._ids,
            access_log=self._access_log,
            api_requests=gate.api_requests,
            timelines=timelines,
        )
        control = ControlWire(
            self._control,
            version=self.version,
            ready=lambda: self.health()[0],
            timelines=timelines,
        )
        generate = GenerateWire(
            gate.gateway,
            self._control,
            max_body_bytes=self.settings.http.max_body_bytes,
            max_buffered_bytes=self.settings.http.max_buffered_bytes,
            clock=time.monotonic,
            ids=self._ids,
            timelines=timelines,
        )
        openai = InferenceWire(
            gate.gateway,
            max_body_bytes=self.settings.http.max_body_bytes,
            max_buffered_bytes=self.settings.http.max_buffered_bytes,
            clock=time.monotonic,
            ids=self._ids,
        )
        listed = ModelsWire(lambda: self._control)
        operations = OperationsWire(metrics=self.metrics, health=self.health)
        batch = [] if self._batch is None else self._batch.wire.routes()
        return HttpApplication(
            infer,
            [
                *control.routes(),
                *generate.routes(),
                *openai.routes(),
                *listed.routes(),
                *operations.routes(),
                *batch,
            ],
            management=self._house,
            addresses=gate.addresses,
            authenticate=gate.authenticate,
            spend=gate.gateway.spend,
            cors=gate.cors,
            ids=self._ids,
            access_log=self._access_log,
            api_requests=gate.api_requests,
        )

    async def _listen_grpc(self) -> GrpcServer:
        # here, since these import the gRPC library, which only a server needs
        from headrace.transport.oip_grpc.control import ControlRpcs
        from headrace.transport.oip_grpc.edge import Edge
        from headrace.transport.oip_grpc.health import HealthRpc
        from headrace.transport.oip_grpc.infer import InferRpc
        from headrace.transport.oip_grpc.reflection import ReflectionRpc
        from headrace.transport.oip_grpc.server import GrpcServer
        from headrace.transport.oip_grpc.stream import StreamInferRpc

        gate = self._gate
        infer = InferRpc(gate.gateway, ids=self._ids)
        stream = StreamInferRpc(
            gate.gateway, ids=self._ids, max_bytes=self.settings.http.max_body_bytes
        )
        control = ControlRpcs(
            self._control,
            version=self.version,
            ready=lambda: self.health()[0],
        )
        health = HealthRpc(ready=lambda: self.health()[0])
        edge = Edge(
            {
                **infer.rpcs(),
                **stream.rpcs(),
                **control.rpcs(),
                **health.rpcs(),
                **ReflectionRpc().rpcs(),
            },
            addresses=gate.addresses,
            authenticate=gate.authenticate,
            spend=gate.gateway.spend,
            ids=self._ids,
            access_log=self._access_log,
            api_requests=gate.api_requests,
            clock=time.monotonic,
        )
        return await GrpcServer.listen(
            edge.handlers,
            edge.streams,
            address=(self.settings.server.host, self.settings.server.grpc_port),
            limits=self.settings.http,
            compression=self.settings.server.grpc_compression,
        )

    def _say_ready(self) -> None:
        host, port = self.http_address
        ready, detail = self.health()
        _logger.info(
            "serving on http://%s:%d", f"[{host}]" if ":" in host else host, port,
            extra={"ready": ready, "models": detail["models_ready"],
                   "start_s": round(time.monotonic() - self._started, 3)},
        )  # fmt: skip
        authentication, house = self.settings.authentication, self._house
        others = authentication.tokens or self.settings.jwt.configured
        if authentication.required and house and not (others or house.catalogue.has_keys):
            _logger.warning(
                "nobody can call: there is no key yet; `headrace keys create NAME --scope admin "
                "--local`, with the same settings, makes one"
            )
        if self._gate.authenticate.anonymous:
            _logger.warning("no token is asked for: every caller on this machine is 'anonymous'")
        elif self.settings.mode == "development":
            _logger.info("development mode: a token that everybody knows may do everything")

    async def _stop(self) -> None:
        self._stopping = True
        server = self.settings.server
        if self._http is not None:
            self._http.send_away()
        if server.drain_delay_s:
            await asyncio.sleep(server.drain_delay_s)
        self._gate.gateway.draining = True
        listening = [s for s in (self._http, self._grpc) if s is not None]
        if not all(await asyncio.gather(*(s.drain(server.drain_grace_s) for s in listening))):
            _logger.warning("requests were cut off after %s s", server.drain_grace_s)
        await asyncio.gather(*(models.close() for models in self._all_models))
        self._access_log.close()
        _logger.info("stopped")

    async def _flush_access_log(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_S)
            self._access_log.flush()

    async def _tend_models(self) -> None:
        """Load what is there, and follow the folder where that is asked for."""
        await asyncio.gather(
            self.models.load_all(), self._load_registered(), self._gate.first_keys()
        )
        # what was made until now stays: the collector need not look at it again
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        self.loaded.set()
        self._say_ready()
        while self.settings.orchestrator.poll_s:
            await asyncio.sleep(self.settings.orchestrator.poll_s)
            try:
                await self.models.poll()
            except Exception:
                _logger.exception("the model folder could not be polled")

    async def _load_registered(self) -> None:
        """Wait for the first reading of the registry, and for what is asked most."""
        if self._house is None or self._registered is None or self._routing is None:
            return
        while not await self._house.catalogue.ready(_SAY_WAITING_S):
            _logger.warning("waiting for the registry: %s", self._house.catalogue.problem)
        named = islice(self._routing.router.named(), self.settings.registry.preload_models)
        await self._registered.preload(named)

    def _observe_http(self) -> None:
        assert self._http is not None  # noqa: S101 - registered after it was made
        self._connections.value = self._http.open_connections
        self._buffered_bytes.value = self._http.buffered_bytes
        for status, count in self._http.refusals.items():
            self._refusals.labels(str(status)).value = count


def _config_json(model: ModelDescription) -> Mapping[str, Any]:
    return triton_json.to_json_object(model.config, model.signature, model.max_batch_size)
