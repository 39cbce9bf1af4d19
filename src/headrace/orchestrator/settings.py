"""Bounds that hold for every model unless its own configuration is stricter."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class OrchestratorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How models are run in this process."""

    #: Requests that may wait for one version; one more is refused with 503 at once.
    max_queue_size: int = 1024
    #: Rows merged into one run where a model does not say.
    default_max_batch_size: int = 64
    #: Seconds between looks at the model folder; 0 looks only at the start and when asked to.
    poll_s: float = 0.0
    #: Versions of the registry that are held in memory; beyond it the one that was not asked for
    #: longest is unloaded.
    max_loaded_versions: int = 100
    #: Seconds that an unloading version may take to finish what it has.
    drain_s: float = 30.0
    #: Bytes of answers kept in memory, of all models whose own configuration asks for it with
    #: `response_cache`; 0 keeps none.
    response_cache_bytes: Annotated[int, Meta(ge=0)] = 0
    #: Seconds that an answer is kept at most; 0 has no limit, as a version answers what it was
    #: asked before with what it answered before.
    response_cache_ttl_s: Annotated[float, Meta(ge=0)] = 0.0
