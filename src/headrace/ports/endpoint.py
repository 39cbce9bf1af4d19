"""An address that can answer inference requests, as the router sees it."""

from __future__ import annotations

from typing import Protocol

from headrace.domain.errors import HeadraceError
from headrace.ports.inference import InferenceService


class Endpoint(InferenceService, Protocol):
    """An InferenceService that can be asked beforehand whether it would try."""

    def obstacle(self, model: str, version: str) -> HeadraceError | None:
        """What stands in the way of a request for the model now; None: it would be tried.

        UnknownModel where the endpoint does not have it, ModelNotReady where it cannot run it.
        Costs no I/O.
        """
        ...
