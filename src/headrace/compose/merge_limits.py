"""How many rows of a model one request may have, wherever it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from headrace.domain.errors import HeadraceError
from headrace.ports.model_control import ModelControl

_KEPT_S: Final = 10.0  # how long an answer is believed: a reload may change it


class MergeLimits:
    """Asks models' configurations, and remembers. `clock` answers monotonic seconds."""

    def __init__(self, control: Callable[[], ModelControl], *, clock: Callable[[], float]) -> None:
        self._control = control
        self._clock = clock
        self._known: dict[tuple[str, str, str], tuple[int, float]] = {}

    async def learn(self, tenant: str, model: str, version: str) -> int:
        """The most rows; 0 where requests have no batch axis, or nobody tells."""
        key = (tenant, model, version)
        known = self._known.get(key)
        if known is not None and self._clock() < known[1]:
            return known[0]
        try:
            config = await self._control().of(tenant).config(model, version)
        except HeadraceError:  # each row is told what stands in its way
            return 0
        rows = int(config.get("max_batch_size", 0))
        self._known = {k: v for k, v in self._known.items() if self._clock() < v[1]}
        self._known[key] = (rows, self._clock() + _KEPT_S)
        return rows
