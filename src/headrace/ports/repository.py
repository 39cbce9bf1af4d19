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
