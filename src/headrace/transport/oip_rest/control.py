"""The rest of the Open Inference Protocol over HTTP: health, metadata, repository, statistics.

Source: open-inference-protocol `inference_rest.md`; Triton `docs/protocol/extension_*.md`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from headrace.domain.errors import InvalidRequest, PayloadTooLarge, UnknownModel, Unsupported
from headrace.domain.names import require_name
from headrace.ports.model_control import ModelControl
from headrace.transport.access import (
    ANY,
    OPERATE,
    PUBLIC,
    READ,
    READ_MODEL,
    RUN_MODEL,
    WRITE,
    Endpoint,
    GuardedRoute,
    Rule,
    caller_of,
)
from headrace.transport.call_headers import read_deadline
from headrace.transport.in_time import in_time
from headrace.transport.oip_rest.payload import refuse_duplicate_keys
from headrace.transport.oip_rest.server_settings import LogLevel, RequestTimelines

EXTENSIONS: Final = (
    "classification",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "generate",
    "statistics",
    "trace",
    "logging",
)
_logger = logging.getLogger(__name__)

_EARLY_S: Final = 0.01  # that a loop's timer may come before its time
_MAX_CONTROL_BYTES: Final = 4 * 1024 * 1024


class ControlWire:
    """The routes that are not hot, for an ASGI application."""

    def __init__(
        self,
        models: ModelControl,
        *,
        version: str,
        ready: Callable[[], bool],
        timelines: RequestTimelines,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._models = models
        self._version = version
        self._ready = ready
        self._timelines = timelines
        self._clock = clock
        self._log_level = LogLevel()
        self._changes: set[asyncio.Task[None]] = set()  # that go on without their callers

    def routes(self) -> list[GuardedRoute]:
        """All routes, most specific first."""
        model = "/v2/models/{model}"
        routes: list[tuple[str, str, Rule, Endpoint]] = [
            ("GET", "/v2", ANY, self._server),
            ("GET", "/v2/", ANY, self._server),
            ("GET", "/v2/health/live", PUBLIC, self._live),
            ("GET", "/v2/health/ready", PUBLIC, self._server_ready),
            ("GET", "/v2/models/stats", READ, self._statistics),
            ("POST", "/v2/repository/index", READ, self._index),
            ("POST", "/v2/repository/models/{model}/load", WRITE, self._load),
            ("POST", "/v2/repository/models/{model}/unload", WRITE, self._unload),
            ("GET", "/v2/logging", READ, self._get_logging),
            ("POST", "/v2/logging", OPERATE, self._set_logging),
        ]
        for prefix in ("/v2", model):
            routes += [
                ("GET", f"{prefix}/trace/setting", READ, self._get_trace),
                ("POST", f"{prefix}/trace/setting", OPERATE, self._set_trace),
            ]
        for prefix in (model, f"{model}/versions/{{version}}"):
            routes += [
                ("GET", prefix, READ_MODEL, self._metadata),
                ("GET", f"{prefix}/ready", READ_MODEL, self._model_ready),
                ("GET", f"{prefix}/config", READ_MODEL, self._config),
                ("GET", f"{prefix}/stats", READ_MODEL, self._statistics),
                ("POST", f"{prefix}/infer", RUN_MODEL, _not_hot),
            ]
        for memory in ("systemsharedmemory", "cudasharedmemory"):
            path = f"/v2/{memory}/{{rest:path}}"
            routes += [(method, path, ANY, _no_shared_memory) for method in ("GET", "POST")]
        paths: dict[str, dict[str, tuple[Rule, Endpoint]]] = {}
        for method, path, rule, endpoint in routes:
            paths.setdefault(path, {})[method] = (rule, self._timely(endpoint))
        return [GuardedRoute(path, endpoints) for path, endpoints in paths.items()]

    def _timely(self, endpoint: Endpoint) -> Endpoint:
        """The endpoint, which answers within the time that a request is given by its header."""

        async def timely(request: Request) -> Response:
            received = self._clock()
            deadline = read_deadline(dict(request.scope["headers"]), received)
            async with in_time(deadline, self._clock):
                return await endpoint(request)

        return timely

    async def _server(self, _: Request) -> Response:
        return JSONResponse(
            {"name": "headrace", "version": self._version, "extensions": list(EXTENSIONS)}
        )

    async def _live(self, _: Request) -> Response:
        return JSONResponse({"live": True})

    async def _server_ready(self, _: Request) -> Response:
        ready = self._ready()
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def _metadata(self, request: Request) -> Response:
        model = await self._of(request).metadata(*_names(request))
        return JSONResponse(
            {
                "name": model.name,
                "versions": list(model.versions),
                "platform": model.platform,
                "inputs": [_tensor(spec) for spec in model.inputs],
                "outputs": [_tensor(spec) for spec in model.outputs],
            }
        )

    async def _model_ready(self, request: Request) -> Response:
        name, version = _names(request)
        obstacle = await self._of(request).obstacle(name, version)
        if obstacle is not None:
            raise obstacle
        return JSONResponse({"name": name, "ready": True})

    async def _config(self, request: Request) -> Response:
        return JSONResponse(dict(await self._of(request).config(*_names(request))))

    async def _statistics(self, request: Request) -> Response:
        name, version = _names(request) if "model" in request.path_params else ("", "")
        return JSONResponse({"model_stats": await self._of(request).statistics(name, version)})

    async def _index(self, request: Request) -> Response:
        body = await _json(request)
        only_ready = body.get("ready", False)
        if type(only_ready) is not bool:
            msg = "ready: expected true or false"
            raise InvalidRequest(msg)
        index = await self._of(request).index()
        entries = [e for e in index if not only_ready or e.state == "READY"]
        return JSONResponse(
            [
                {"name": e.name, "version": e.version, "state": e.state, "reason": e.reason}
                for e in entries
            ]
        )

    async def _load(self, request: Request) -> Response:
        name, _ = _names(request)
        parameters = _parameters(await _json(request))
        if any(key.startswith("file:") for key in parameters):
            msg = (
                "a model's files cannot be sent with the load request: "
                "put them into the model repository"
            )
            raise Unsupported(msg)
        config = parameters.get("config")
        if config is not None and not isinstance(config, str):
            msg = "parameters.config: expected a string with the configuration in JSON"
            raise InvalidRequest(msg)
        try:
            config_json = None if config is None else config.encode()
        except UnicodeEncodeError:
            msg = "parameters.config holds a lone surrogate, which is not text"
            raise InvalidRequest(msg) from None
        await self._change(request, self._of(request).load(name, config_json=config_json))
        return Response()

    async def _unload(self, request: Request) -> Response:
        name, _ = _names(request)
        _parameters(await _json(request))
        await self._change(request, self._of(request).unload(name))
        return Response()

    async def _change(self, request: Request, work: Coroutine[Any, Any, None]) -> None:
        """Wait for a load or unload. It goes on where the caller's time ends before it does."""
        deadline = read_deadline(dict(request.scope["headers"]), self._clock())
        if deadline == math.inf:
            await work
            return
        task = asyncio.get_running_loop().create_task(work)
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            if self._clock() < deadline - _EARLY_S:  # the client has gone
                task.cancel()
            self._changes.add(task)
            task.add_done_callback(self._changed)
            raise
        task.result()

    def _changed(self, task: asyncio.Task[None]) -> None:
        self._changes.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.warning("a load or unload failed after its caller's time: %s", error)

    async def _get_trace(self, request: Request) -> Response:
        return JSONResponse(self._timelines.get(await self._traced_model(request)))

    async def _set_trace(self, request: Request) -> Response:
        model = await self._traced_model(request)
        return JSONResponse(self._timelines.update(await _json(request), model))

    async def _get_logging(self, _: Request) -> Response:
        return JSONResponse(self._log_level.get())

    async def _set_logging(self, request: Request) -> Response:
        return JSONResponse(self._log_level.update(await _json(request)))

    def _of(self, request: Request) -> ModelControl:
        return self._models.of(caller_of(request.scope).tenant)

    async def _traced_model(self, request: Request) -> str:
        if "model" not in request.path_params:
            return ""
        name, _ = _names(request)
        obstacle = await self._of(request).obstacle(name)
        if isinstance(obstacle, UnknownModel):
            raise obstacle
        return name


def _names(request: Request) -> tuple[str, str]:
    version = request.path_params.get("version", "")
    if "version" in request.path_params:
        require_name("version", version)
    return require_name("model", request.path_params["model"]), version


def _tensor(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _parameters(body: Mapping[str, Any]) -> dict[str, Any]:
    parameters = body.get("parameters", {})
    if not isinstance(parameters, dict):
        msg = "parameters: expected an object"
        raise InvalidRequest(msg)
    return parameters


async def _json(request: Request) -> dict[str, Any]:
    """The body as an object; an empty one counts as {}."""
    chunks = bytearray()
    async for chunk in request.stream():
        chunks += chunk
        if len(chunks) > _MAX_CONTROL_BYTES:
            msg = f"request body is over the limit of {_MAX_CONTROL_BYTES} bytes"
            raise PayloadTooLarge(msg)
    text = bytes(chunks)
    if not text.strip():
        return {}
    refuse_duplicate_keys(text)
    body = json.loads(text)
    if not isinstance(body, dict):
        msg = "expected a JSON object"
        raise InvalidRequest(msg)
    return body


async def _no_shared_memory(_: Request) -> Response:
    msg = "shared memory is not offered; send the data in the request"
    raise Unsupported(msg)


async def _not_hot(_: Request) -> Response:
    """Stands in the table so that other methods on the hot route get 405 with its methods."""
    msg = "only the names in the path of an inference request may be percent-encoded"
    raise InvalidRequest(msg)
