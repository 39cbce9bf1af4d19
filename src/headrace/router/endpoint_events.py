"""What became of endpoints lately, for whoever asks why."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

from headrace.domain.catalog import Endpoint
from headrace.ports.endpoint_states import EndpointEvent, EventKind

_logger = logging.getLogger(__name__)
_KEPT: Final = 1000  # of all endpoints together
_BAD: Final = frozenset({"breaker-opened", "ejected", "unhealthy", "address-refused", "unresolved"})


class EndpointEvents:
    """The last turns of all endpoints; each is a line of the log too."""

    def __init__(self, *, now: Callable[[], datetime]) -> None:
        self._now = now
        self._events: deque[tuple[str, EndpointEvent]] = deque(maxlen=_KEPT)

    def add(
        self,
        endpoint: Endpoint,
        kind: EventKind,
        *,
        address: str = "",
        model: str = "",
        detail: str = "",
    ) -> None:
        """Keep one event."""
        event = EndpointEvent(
            at=self._now(),
            endpoint=endpoint.name,
            address=address,
            model=model,
            kind=kind,
            detail=detail,
        )
        self._events.append((endpoint.tenant, event))
        _logger.log(
            logging.WARNING if kind in _BAD else logging.INFO,
            "endpoint %s: %s", endpoint.name, kind,
            extra={"tenant": endpoint.tenant, "address": address, "model": model, "why": detail},
        )  # fmt: skip

    def of(self, tenant: str, endpoint: str = "") -> Sequence[EndpointEvent]:
        """A tenant's events, or those of one of its endpoints, the newest first."""
        return [
            event
            for owner, event in reversed(self._events)
            if owner == tenant and endpoint in {"", event.endpoint}
        ]
