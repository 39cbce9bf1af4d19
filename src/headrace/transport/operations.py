"""What probes, scrapers and people on call ask: /livez, /readyz, /healthz, /metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from headrace.telemetry.metrics import Metrics
from headrace.transport.access import PUBLIC, Endpoint, GuardedRoute


class OperationsWire:
    """`health` answers whether the process is ready, and what there is to know about it."""

    def __init__(
        self, *, metrics: Metrics, health: Callable[[], tuple[bool, dict[str, Any]]]
    ) -> None:
        self._metrics = metrics
        self._health = health

    def routes(self) -> list[GuardedRoute]:
        """All routes."""
        endpoints: dict[str, Endpoint] = {
            "/livez": self._live,
            "/readyz": self._ready,
            "/healthz": self._detail,
            "/metrics": self._scrape,
        }
        return [
            GuardedRoute(path, {"GET": (PUBLIC, endpoint)}) for path, endpoint in endpoints.items()
        ]

    async def _live(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _ready(self, _: Request) -> Response:
        ready, detail = self._health()
        told = {"registry": detail["registry"]} if detail.get("registry", "ok") != "ok" else {}
        return JSONResponse({"ready": ready, **told}, 200 if ready else 503)

    async def _detail(self, _: Request) -> Response:
        ready, detail = self._health()
        return JSONResponse({"ready": ready, **detail}, 200 if ready else 503)

    async def _scrape(self, request: Request) -> Response:
        body, content_type = self._metrics.render(request.headers.get("accept", ""))
        return Response(body, media_type=None, headers={"content-type": content_type})
