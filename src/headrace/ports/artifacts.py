"""Where the bytes of versions are kept, and who looks at them before they are trusted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from headrace.domain.catalog import Artifact, Format
from headrace.domain.models import Signature


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """What a look at an artifact found."""

    signature: Signature
    max_batch_size: int
    warm_up_s: float  # one run on zeros
    outputs: tuple[Mapping[str, Any], ...] = ()  # of the smoke inputs, by output name


class ArtifactStore(Protocol):
    """Artifacts by their digest; the same bytes are kept once, whoever brings them.

    Every method raises StoreUnavailable where the store does not answer.
    """

    async def take(
        self,
        chunks: AsyncIterator[bytes],
        *,
        format: Format,
        expected_digest: str = "",
    ) -> Artifact:
        """Store a stream of bytes.

        Bytes that are there already become young again, see `age_s`.

        Raises:
            PayloadTooLarge: it is over the configured limit; nothing of it is kept.
            InvalidRequest: its SHA-256 is not `expected_digest`.
            StorageFull: there is no room for it.
        """
        ...

    async def copy(self, uri: str, *, format: Format, expected_digest: str = "") -> Artifact:
        """Store what lies at a URI of the configured object store, as `take` does.

        Raises:
            InvalidRequest: the URI is of another store or scheme, or there is nothing at it.
        """
        ...

    def read(self, artifact: Artifact) -> AsyncIterator[bytes]:
        """The bytes, in order."""
        ...

    async def folder(self, artifact: Artifact) -> Path:
        """A local folder with the artifact's files (`model.onnx` and what belongs to it).

        Fetched, checked against the digest and unpacked once; the same folder ever after.

        Raises:
            InvalidRequest: an archive that leaves its folder, is not one, or unpacks to too much.
        """
        ...

    async def remove(self, digest: str) -> None:
        """Forget the bytes, here and in the store; harmless where there are none."""
        ...

    async def age_s(self, digest: str) -> float | None:
        """Seconds since the bytes were last written or taken; None where there are none.

        By the store's own time of the object. A store may let it stand at a take within ten
        minutes of the one before, so up to that much may be too old.
        """
        ...

    async def digests(self) -> Sequence[str]:
        """All that are kept."""
        ...


class Inspector(Protocol):
    """Looks at artifacts in a process of its own, with limits on time and memory."""

    async def inspect(self, folder: Path, *, smoke: Sequence[Mapping[str, Any]] = ()) -> Inspection:
        """Check and load the model, run it once on zeros, and once for each smoke input.

        A smoke input maps input names to nested lists, as OIP JSON's `data` with its shape.

        Raises:
            ModelLoadFailed: it is no model that can be served; the message is the reason.
            InvalidRequest: a smoke input does not fit, or the model refuses it.
        """
        ...
