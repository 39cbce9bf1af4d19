"""From the name that a caller asks for to a version of a model: a decision without I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import msgspec

from headrace.domain.catalog import Route, Target
from headrace.domain.errors import HeadraceError, ModelNotReady, UnknownModel
from headrace.domain.names import version_order
from headrace.ports.catalogue import Entry, Name

Look: TypeAlias = Callable[[Name], Entry | None]
_SHOWN: int = 10
_RETRY_AFTER_S = 1.0


class Choice(msgspec.Struct, frozen=True):
    """A version that may answer; `weight` is its share among the choices of one request."""

    model: str
    version: str
    weight: float = 1.0


def resolve(
    look: Look, tenant: str, name: str, version: str, *, default_alias: str
) -> tuple[Choice, ...] | None:
    """The versions among which a request for `name` is shared; None where nothing stands there.

    A route goes before a model of its name, for requests that ask for no version. A version may
    be asked by its number or by an alias; without one the default alias answers, and where there is
    no such alias the newest version that is ready.

    Raises:
        UnknownModel: the model has no such version or alias.
        ModelNotReady: a route stands there, and none of its targets can serve.
    """
    entry = look((tenant, name))
    if entry is None:
        return None
    if entry.route is not None and not version:
        return _behind(entry.route, look, tenant, default_alias)
    return (Choice(name, _version(entry, name, version, default_alias)),)


def _behind(route: Route, look: Look, tenant: str, default_alias: str) -> tuple[Choice, ...]:
    choices = [
        choice
        for target in route.targets
        if target.weight > 0 and (choice := _choice(target, look, tenant, default_alias))
    ]
    if not choices:
        msg = f"route '{route.name}' is not ready: none of its targets has a version that can serve"
        raise ModelNotReady(msg, retry_after_s=_RETRY_AFTER_S)
    return tuple(choices)


def _choice(target: Target, look: Look, tenant: str, default_alias: str) -> Choice | None:
    entry = look((tenant, target.model))
    if entry is None or not entry.versions:
        return None
    try:
        version = _version(entry, target.model, target.version, default_alias)
    except HeadraceError:  # its share goes to the others
        return None
    return Choice(target.model, version, target.weight)


def _version(entry: Entry, model: str, version: str, default_alias: str) -> str:
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


def draw(choices: tuple[Choice, ...], share: float) -> Choice:
    """The choice in whose part of all weights `share` (from 0 to below 1) falls."""
    if len(choices) == 1:
        return choices[0]
    left = share * sum(choice.weight for choice in choices)
    for choice in choices:
        left -= choice.weight
        if left < 0:
            return choice
    return choices[-1]
