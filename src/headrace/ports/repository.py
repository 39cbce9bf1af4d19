"""Where the models to serve come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from headrace.domain.models import ModelConfig
from headrace.ports.executor import ModelSource


class FoundVersion(msgspec.Struct, frozen=True):
    """A version that the policy says to serve.

    `fingerprint` changes whenever a file of the version, or the model's configuration, changes.
    """

    source: ModelSource
    fingerprint: str


class FoundModel(msgspec.Struct, frozen=True):
    """A model in a repository: its versions, and for those that cannot be served the reason.

    `problem` is set, and `versions` empty, where the model as a whole is unusable.
    """

    name: str
    config: ModelConfig
    versions: Mapping[str, FoundVersion]
    problems: Mapping[str, str] = {}  # version -> reason
    problem: str = ""


class ModelRepository(Protocol):
    """A place with models. Methods block on the disk: call them off the event loop."""

    def names(self) -> list[str]:
        """The models there are, sorted."""
        ...

    def find(self, name: str, *, config_json: bytes | None = None) -> FoundModel | None:
        """Read one model; None where there is none.

        `config_json` is a whole configuration in Triton's JSON form that takes the place of the
        stored one for this load.

        Raises:
            InvalidRequest: `config_json` is not a configuration.
        """
        ...


class Shelf(ModelRepository, Protocol):
    """A repository of what was fetched from somewhere else, version by version."""

    def has(self, model: str, version: str) -> bool:
        """Whether a version could be fetched, as far as is known here."""
        ...

    def holds(self, model: str, version: str) -> bool:
        """Whether what was fetched is still what would be."""
        ...

    async def fetch(self, model: str, version: str) -> None:
        """Put a version there.

        Raises:
            UnknownModel: there is no such version, or it may not serve.
            ModelLoadFailed: its files cannot be served.
            StoreUnavailable: they cannot be had at present.
        """
        ...

    def drop(self, model: str, version: str) -> None:
        """Take a version away; harmless where it is not there."""
        ...
