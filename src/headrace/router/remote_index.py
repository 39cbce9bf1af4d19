"""What endpoints tell of their repositories, put together with what is in this process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from headrace.domain.errors import HeadraceError, Unsupported
from headrace.domain.names import version_order
from headrace.ports.model_control import IndexEntry
from headrace.router.member import Member
from headrace.router.reach import Reached
from headrace.router.remote_reasons import tellable

READY: Final = "READY"
_UNAVAILABLE: Final = "UNAVAILABLE"


def entries(
    reached: Reached, answers: Sequence[tuple[Member, Sequence[IndexEntry] | HeadraceError]]
) -> list[IndexEntry]:
    """The lines of one endpoint, out of what each of its addresses answered.

    What it is said to serve is always there: unavailable where nobody can be asked, as is what it
    was known to have.
    """
    name, found = reached.endpoint.name, []
    for member, answer in answers:
        if isinstance(answer, Unsupported):  # then what is known is what the checks say
            found += [_checked(member, model) for model in sorted(reached.listed)]
        elif isinstance(answer, HeadraceError):
            found += [unavailable(member, model) for model in sorted(reached.listed)]
        else:
            told = [entry for entry in answer if reached.counts(entry.name)]
            found += [
                IndexEntry(e.name, e.version, e.state or _UNAVAILABLE, tellable(e.reason))
                for e in told
            ]
    missing = reached.listed - {entry.name for entry in found}
    why = f"endpoint '{name}' does not have it" if answers else f"endpoint '{name}' has no address"
    return [*found, *(IndexEntry(m, "", _UNAVAILABLE, why) for m in sorted(missing))]


def unavailable(member: Member, model: str, version: str = "") -> IndexEntry:
    """The line of a model at an address that does not answer."""
    why = f"endpoint '{member.endpoint.name}' cannot be asked"
    return IndexEntry(model, version, _UNAVAILABLE, why)


def merged(here: Iterable[IndexEntry], elsewhere: Iterable[IndexEntry]) -> list[IndexEntry]:
    """One line for each name and version, in order.

    What is in this process goes before; else one that is ready anywhere is ready. A line without a
    version stands only where nobody knows of any.
    """
    lines = {(entry.name, entry.version): entry for entry in here}
    own = frozenset(lines)
    for entry in elsewhere:
        key = (entry.name, entry.version)
        known = lines.get(key)
        if known is None or (entry.state == READY != known.state and key not in own):
            lines[key] = entry
    versioned = {name for name, version in lines if version}
    kept = (key for key in lines if key[1] or key in own or key[0] not in versioned)
    return [lines[key] for key in sorted(kept, key=lambda key: (key[0], version_order(key[1])))]


def _checked(member: Member, model: str) -> IndexEntry:
    checks = member.model_checks.get(model)
    if member.checks.healthy and (checks is None or checks.healthy):
        return IndexEntry(model, "", READY, "")
    why = f"endpoint '{member.endpoint.name}' is not ready for it"
    return IndexEntry(model, "", _UNAVAILABLE, why)
