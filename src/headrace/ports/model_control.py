"""What operators' wires ask of the models: descriptions, states, loading and unloading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import msgspec

from headrace.domain.errors import HeadraceError
from headrace.domain.models import ModelConfig, Platform, Signature, TensorSpec

#: Why a request of the Open Inference Protocol has not one answer: the model is at endpoints that
#: speak OpenAI's API alone, or it answers any number of times.
Unfit: TypeAlias = Literal["openai", "stream"]


class ModelDescription(msgspec.Struct, frozen=True):
    """A version as clients may know it."""

    name: str
    versions: tuple[str, ...]  # all that can be asked, in order
    platform: Platform
    signature: Signature
    config: ModelConfig
    max_batch_size: int


class ModelMetadata(msgspec.Struct, frozen=True):
    """What clients may know of a model, wherever it runs; shapes with the batch axis."""

    name: str
    versions: tuple[str, ...]  # all that can be asked, in order
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class IndexEntry(msgspec.Struct, frozen=True):
    """One line of the repository index; `version` is "" for a model without any."""

    name: str
    version: str
    state: str
    reason: str


class ModelControl(Protocol):
    """The models that a tenant may ask: of this process, and at endpoints.

    What endpoints are asked raises EndpointFailed and the like where they do not answer.
    """

    def of(self, tenant: str) -> ModelControl:
        """The same for another tenant: its registered models and endpoints, and what is shared."""
        ...

    async def metadata(self, model: str, version: str = "") -> ModelMetadata:
        """A version, that which answers where `version` is "". Raises UnknownModel, ModelNotReady.

        A registered version is loaded first, where it is not yet.
        """
        ...

    async def config(self, model: str, version: str = "") -> Mapping[str, Any]:
        """A version's configuration in Triton's JSON form. Raises as `metadata` does."""
        ...

    async def obstacle(self, model: str, version: str = "") -> HeadraceError | None:
        """What stands in the way of a request now: UnknownModel, ModelNotReady or nothing.

        An endpoint is asked where no check has told of this model and version there.
        """
        ...

    async def unfit(self, model: str, version: str = "") -> Unfit | None:
        """Why requests have not one answer each; None: they have, or nobody tells.

        Nothing is loaded to find out.
        """
        ...

    async def statistics(self, model: str = "", version: str = "") -> Sequence[dict[str, Any]]:
        """Triton's statistics of one version, all of a model's, or all. Raises UnknownModel."""
        ...

    async def index(self) -> Sequence[IndexEntry]:
        """Every model and version known, with its state and, where it is not ready, the reason."""
        ...

    async def load(self, model: str, *, config_json: bytes | None = None) -> None:
        """Load or reload a model.

        Raises:
            InvalidRequest: no such model in the repository, or `config_json` is not usable.
            ModelLoadFailed: a version of it cannot be served; the message tells why. One that was
                served before still is.
        """
        ...

    async def unload(self, model: str) -> None:
        """Stop serving a model; requests under way are finished. Raises UnknownModel."""
        ...
