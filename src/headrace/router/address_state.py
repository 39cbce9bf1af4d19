"""How an address looks at the moment, for operators."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final

from headrace.ports.endpoint_states import AddressState, BreakerState
from headrace.router.lane import UNPROVEN
from headrace.router.member import Member

_MOST_BREAKERS: Final = 200


def address_state(member: Member, *, now: float, at: Callable[[float], datetime]) -> AddressState:
    """The state of `member`; `now` is monotonic seconds, of which `at` tells the time of day."""
    upstream, lanes = member.upstream, list(member.lanes.values())
    ejected = [lane.tally.ejected_until for lane in lanes if lane.tally.ejected]
    latencies = [each for lane in lanes if (each := lane.latency_s(now))]
    # names that clients made up say nothing; those of which something is to be said come first
    shown = [lane for lane in lanes if lane.label != UNPROVEN]
    shown.sort(key=lambda lane: lane.breaker.closed)
    return AddressState(
        address=member.address,
        ready=any(lane.ready(now) for lane in lanes) if lanes else member.well,
        healthy=member.checks.healthy,
        ejected_until=at(max(ejected)) if ejected else None,
        in_flight=member.in_flight,
        connections=upstream.connections,
        pending=upstream.pending,
        latency_s=max(latencies, default=0.0),
        breakers=tuple(
            BreakerState(
                model=lane.model,
                phase=lane.breaker.phase,
                since=at(lane.breaker.since),
                consecutive_failures=lane.breaker.consecutive_failures,
                opened=lane.breaker.opened,
            )
            for lane in shown[:_MOST_BREAKERS]
        ),
    )
