"""What models take, kept for a moment: of a model at an endpoint each question is a request."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import msgspec

from headrace.domain.models import TensorSpec
from headrace.ports.model_control import ModelControl
from headrace.transport.in_time import in_time

#: Tenant, model and version; the latter is "" where none is named.
Asked: TypeAlias = tuple[str, str, str]

_KEPT_S: Final = 3.0  # how long a model that was loaded anew may be taken for what it was
_MOST_KEPT: Final = 1024


class _Learnt(msgspec.Struct, frozen=True):
    inputs: Sequence[TensorSpec]
    until: float


class LearntInputs:
    """The inputs of models, batch axis included, as `ModelControl` tells them."""

    def __init__(self, models: ModelControl, *, clock: Callable[[], float]) -> None:
        self._models = models
        self._clock = clock
        self._learnt: dict[Asked, _Learnt] = {}

    def known(self, asked: Asked) -> Sequence[TensorSpec] | None:
        """What was learnt a moment ago; None where nothing was."""
        learnt = self._learnt.get(asked)
        return learnt.inputs if learnt is not None and self._clock() < learnt.until else None

    async def learn(self, asked: Asked, deadline: float = math.inf) -> Sequence[TensorSpec]:
        """Ask, and wait until `deadline` at most. What others ask as well goes on for them.

        Raises UnknownModel, ModelNotReady, DeadlineExceeded, and where an endpoint does not answer.
        """
        tenant, model, version = asked
        async with in_time(deadline, self._clock):
            metadata = await self._models.of(tenant).metadata(model, version)
        learnt = self._learnt
        learnt.pop(asked, None)
        if len(learnt) >= _MOST_KEPT:
            del learnt[next(iter(learnt))]  # the one that was learnt first
        learnt[asked] = _Learnt(metadata.inputs, self._clock() + _KEPT_S)
        return metadata.inputs
