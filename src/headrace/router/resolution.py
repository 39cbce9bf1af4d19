"""From the version or alias that a caller asks for to a version of a model: without I/O."""

from __future__ import annotations

from headrace.domain.errors import ModelNotReady, UnknownModel
from headrace.domain.names import version_order
from headrace.ports.catalogue import Entry

_SHOWN: int = 10
_RETRY_AFTER_S = 1.0


def resolve(entry: Entry, model: str, version: str, *, default_alias: str) -> str:
    """The version that answers a request for `model`.

    A version may be asked by its number or by an alias; without one the default alias answers, and
    where there is no such alias the newest version that is ready.

    Raises:
        UnknownModel: the model has no such version or alias.
        ModelNotReady: what is asked for is there, and cannot serve.
    """
    if version in entry.versions:
        return version
    pointed = entry.aliases.get(version or default_alias, "")
    if pointed in entry.versions:
        return pointed
    if not (version or pointed) and entry.versions:
        ready = [v for v, found in entry.versions.items() if found.status == "ready"]
        return max(ready or entry.versions, key=version_order)
    if pointed or not entry.versions:
        msg = f"model '{model}' is not ready: it has no version that can serve"
        if pointed:  # what was promoted is obeyed, also where nothing can answer for it
            alias = version or default_alias
            msg = f"model '{model}' is not ready: version {pointed}, which '{alias}' names, is not"
        raise ModelNotReady(msg, retry_after_s=_RETRY_AFTER_S)
    known = sorted(entry.versions, key=version_order)[-_SHOWN:] + sorted(entry.aliases)[:_SHOWN]
    msg = (
        f"Request for unknown model: '{model}' version {version} is not found; "
        f"it has {', '.join(known)}"
    )
    raise UnknownModel(msg)


def resolve_elsewhere(entry: Entry | None, version: str, *, default_alias: str) -> str:
    """The version that an endpoint is asked for: what the registry names, or what the caller did.

    An endpoint may have versions of which the registry knows nothing.
    """
    if entry is None:
        return version
    return entry.aliases.get(version or default_alias, version)
