"""What one address of an endpoint is asked about its models, beside inference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from headrace.ports.model_control import IndexEntry, ModelMetadata


class RemoteModels(Protocol):
    """The control calls of one server: Triton's, or any that has these of its extensions.

    Each ends by `deadline` (monotonic seconds), and raises as `Upstream.infer` does: UnknownModel,
    InvalidRequest, Unsupported where the server does not have the extension, EndpointFailed,
    EndpointTimeout. Answers are checked: what is no well-formed one is EndpointFailed.
    """

    async def metadata(self, model: str, version: str, deadline: float) -> ModelMetadata:
        """Names, platform and signature of a model's version; the newest where `version` is ""."""
        ...

    async def config(self, model: str, version: str, deadline: float) -> Mapping[str, Any]:
        """Its configuration in Triton's JSON form."""
        ...

    async def statistics(
        self, model: str, version: str, deadline: float
    ) -> Sequence[dict[str, Any]]:
        """Elements of Triton's `model_stats`, counts as integers; where `model` is "", of all.

        Each has at least `name` and `version`.
        """
        ...

    async def index(self, deadline: float) -> Sequence[IndexEntry]:
        """The server's repository index."""
        ...

    async def load(self, model: str, deadline: float, *, config_json: bytes | None = None) -> None:
        """Load or reload a model. InvalidRequest with the server's reason where it cannot."""
        ...

    async def unload(self, model: str, deadline: float) -> None:
        """Unload a model."""
        ...
