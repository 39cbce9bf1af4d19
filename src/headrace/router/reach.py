"""Which models of which endpoints the requests of a tenant may come to.

As the router has it: what a tenant's own endpoints list goes before what the settings' list; both
before endpoints that list nothing, which serve what nothing else does, a tenant's own again first.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypeAlias

import msgspec

from headrace.domain.catalog import Endpoint
from headrace.router.groups import IN_PROCESS
from headrace.router.member import Member

Stations: TypeAlias = Sequence[tuple[Endpoint, Sequence[Member]]]


class Reached(msgspec.Struct, frozen=True):
    """An endpoint, and which of its models count: `listed`, or all but `others`'."""

    endpoint: Endpoint
    members: Sequence[Member]
    listed: frozenset[str] = frozenset()
    others: frozenset[str] = frozenset()

    def counts(self, model: str) -> bool:
        """Whether requests for a model may come here."""
        return model in self.listed if self.endpoint.models else model not in self.others


def reach(own: Stations, shared: Stations, here: Collection[str]) -> list[Reached]:
    """What can be asked of other servers; `here` are the models of this process."""
    own = [each for each in own if each[0].protocol != IN_PROCESS]
    shared = [each for each in shared if each[0].protocol != IN_PROCESS]
    before = _listed(own)
    others = before | _listed(shared) | frozenset(here)
    anything = [each for each in own if not each[0].models] or [
        each for each in shared if not each[0].models
    ]
    return [
        *(Reached(*each, frozenset(each[0].models)) for each in own if each[0].models),
        *(Reached(*each, frozenset(each[0].models) - before) for each in shared if each[0].models),
        *(Reached(*each, others=others) for each in anything),
    ]


def _listed(stations: Stations) -> frozenset[str]:
    return frozenset(model for endpoint, _ in stations for model in endpoint.models)
