"""Which of a route's targets a request goes to, in which order where one cannot answer."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, chain
from typing import Final

import msgspec

from headrace.domain.catalog import Match, Route, Sticky, Target
from headrace.domain.errors import InvalidRequest
from headrace.router.balancing.rendezvous import arrival, stable_hash

_SHOWN: Final = 10
_QUOTED: Final = 64


class Preference(msgspec.Struct, frozen=True, kw_only=True):
    """Where one request goes: to the first of these that has a ready endpoint.

    The first target is the one picked; each other is what would have been picked if those before it
    were not there. A caller that forced a target gets that one or none: an answer of another would
    mislead it.
    """

    targets: tuple[Target, ...]  # empty where none has a weight
    fallbacks: tuple[Target, ...] = ()  # after them, in the route's order
    forced: bool = False


class _Group:
    """The targets among which a request is shared: the route's own, or those of a rule."""

    __slots__ = ("by_label", "ends", "fallbacks", "only", "pair", "runners", "targets", "weights")

    def __init__(self, targets: Sequence[Target], fallbacks: tuple[Target, ...]) -> None:
        self.by_label = _forced(targets)
        self.fallbacks = fallbacks
        self.targets = tuple(target for target in targets if target.weight > 0)
        self.weights = [target.weight for target in self.targets]
        self.ends = list(accumulate(self.weights))
        # by its place among targets of its label, so that two of one label share their callers too
        labels = [target.label for target in self.targets]
        self.runners = [
            stable_hash(label, str(labels[:place].count(label)))
            for place, label in enumerate(labels)
        ]
        #: Where there is nothing to choose.
        self.only = self.prefer(self.targets) if len(self.targets) < 2 else None  # noqa: PLR2004
        #: Both orders of two targets, which is what most canaries are.
        self.pair = (
            (self.prefer(self.targets), self.prefer(self.targets[::-1]))
            if len(self.targets) == 2  # noqa: PLR2004
            else None
        )

    def prefer(self, targets: tuple[Target, ...]) -> Preference:
        return Preference(targets=targets, fallbacks=self.fallbacks)


class Split:
    """A route as `choose` reads it; made once for each change of the route."""

    __slots__ = ("_labelled", "force", "group", "only", "route", "rules", "sticky")

    def __init__(self, route: Route) -> None:
        self.route = route
        self.group = _Group(route.targets, route.fallbacks)
        self.rules = tuple(
            (_Criteria(rule.match), _Group(rule.targets, route.fallbacks)) for rule in route.rules
        )
        self.force = route.force_header.encode()
        self.sticky = None if route.sticky is None else _Stickiness(route.sticky, route.name)
        #: The answer to every request, where nothing of a request matters.
        self.only = None if self.rules or self.force else self.group.only
        everything = chain(route.targets, *(rule.targets for rule in route.rules), route.fallbacks)
        self._labelled = _forced(everything)

    def forced(self, group: _Group, value: bytes) -> Preference:
        """The target whose label `value` is; the group's own go before all others of the route.

        Raises:
            InvalidRequest: it is no target's label.
        """
        label = value.decode("utf-8", "replace")
        found = group.by_label.get(label) or self._labelled.get(label)
        if found is not None:
            return found
        known = ", ".join(list(self._labelled)[:_SHOWN])
        rest = len(self._labelled) - _SHOWN
        raise InvalidRequest(
            f"header '{self.route.force_header}' names {label[:_QUOTED]!a}, which is no target of "
            f"route '{self.route.name}'; its targets are {known}"
            + (f" and {rest} more" if rest > 0 else "")
        )


class _Criteria:
    """What a rule asks of a request, in the form in which requests have it."""

    __slots__ = ("headers", "principals", "tenants")

    def __init__(self, match: Match) -> None:
        self.headers = [(name.encode(), value.encode()) for name, value in match.headers.items()]
        self.tenants = frozenset(match.tenants)
        self.principals = frozenset(match.principals)

    def met(self, headers: Mapping[bytes, bytes], tenant: str, principal: str) -> bool:
        for name, value in self.headers:
            if headers.get(name) != value:
                return False
        return (not self.tenants or tenant in self.tenants) and (
            not self.principals or principal in self.principals
        )


class _Stickiness:
    """What a caller is known by."""

    __slots__ = ("header", "route")

    def __init__(self, sticky: Sticky, route: str) -> None:
        self.header = sticky.header.encode() if sticky.by == "header" else None
        self.route = route  # hashed too: not the same callers are in the canaries of all routes

    def key(self, headers: Mapping[bytes, bytes], tenant: str, principal: str) -> int | None:
        """The hash of what the caller is known by; None where it cannot be told from others."""
        if self.header is None:
            return stable_hash(self.route, tenant, principal) if principal else None
        value = headers.get(self.header)
        return stable_hash(self.route, value.decode("latin-1")) if value else None


def choose(
    split: Split,
    *,
    headers: Mapping[bytes, bytes],
    tenant: str,
    principal: str,
    chance: Callable[[], float],
) -> Preference:
    """Where a request goes.

    The first rule that matches says among which targets, else the route does. There the header that
    forces a target decides, then what the caller is known by, then chance, by weight. Sticky shares
    are weighted rendezvous hashing: a weight that grows moves callers to its target only.

    `headers` has names in lower case; `tenant` and `principal` are the caller's, "" where nobody is
    known by that name; `chance` answers numbers from 0 to below 1.

    Raises:
        InvalidRequest: the header that forces a target names none of the route's.
    """
    if split.only is not None:
        return split.only
    group = split.group
    for criteria, targets in split.rules:
        if criteria.met(headers, tenant, principal):
            group = targets
            break
    if split.force and (forced := headers.get(split.force)) is not None:
        return split.forced(group, forced)
    if group.only is not None:
        return group.only
    key = None if split.sticky is None else split.sticky.key(headers, tenant, principal)
    if key is not None:
        return _in_order_of_arrival(group, key)
    return _drawn(group, chance)


def shadows_of(route: Route, chance: Callable[[], float]) -> tuple[Target, ...]:
    """The targets that get a copy of one request, each by its own chance."""
    if not route.shadows:
        return ()
    return tuple(shadow.target for shadow in route.shadows if chance() < shadow.share)


def _forced(targets: Sequence[Target] | chain[Target]) -> dict[str, Preference]:
    """By label; of two targets with the same, the first."""
    found: dict[str, Preference] = {}
    for target in targets:
        found.setdefault(target.label, Preference(targets=(target,), forced=True))
    return found


def _in_order_of_arrival(group: _Group, key: int) -> Preference:
    arrivals = [
        (arrival(key, runner, weight), place)
        for place, (runner, weight) in enumerate(zip(group.runners, group.weights, strict=True))
    ]
    if group.pair is not None:
        return group.pair[arrivals[1] < arrivals[0]]
    return group.prefer(tuple(group.targets[place] for _, place in sorted(arrivals)))


def _drawn(group: _Group, chance: Callable[[], float]) -> Preference:
    ends = group.ends
    first = bisect_right(ends, chance() * ends[-1], 0, len(ends) - 1)
    if group.pair is not None:
        return group.pair[first]
    left = list(group.targets)
    order = [left.pop(first)]
    while len(left) > 1:
        ends = list(accumulate(target.weight for target in left))
        order.append(left.pop(bisect_right(ends, chance() * ends[-1], 0, len(ends) - 1)))
    return group.prefer((*order, *left))
