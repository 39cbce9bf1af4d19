"""Which of the waiting requests run next, and together: a decision without I/O."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from headrace.domain.models import Batching
from headrace.orchestrator.pending import Pending


class Run(msgspec.Struct, frozen=True):
    """Run these now, as one batch."""

    requests: list[Pending]
    rows: int


class Wait(msgspec.Struct, frozen=True):
    """Nothing runs yet; ask again at `until` (seconds, loop clock) or when a request comes."""

    until: float


def plan(
    waiting: Iterable[Pending], *, batching: Batching | None, max_rows: int, now: float
) -> Run | Wait | None:
    """Decide on the requests in `waiting`, the most urgent first.

    A batch is a prefix of what waits: requests of one key, together at most `max_rows` rows (one
    request may be larger: it was admitted, so it runs alone). Where the batching names preferred
    sizes, the longest prefix of such a size runs at once; else the oldest request may be held
    back for `max_delay_us` in the hope of more. None: nothing waits.

    Of batch jobs only single rows are merged, with each other, and never held back: the rows of
    one request were merged by who asks, to as many as online requests may have to wait for.
    """
    prefix: list[Pending] = []
    rows = 0
    preferred = batching.preferred_sizes if batching is not None else ()
    best, best_rows = 0, 0
    closed = False  # no later request can join
    key: object = None
    for request in waiting:
        if not prefix:
            key = request.key
        elif request.background and not (
            prefix[0].background and prefix[0].rows == request.rows == 1
        ):
            break  # else whoever asks online would wait for the rows of a batch job
        elif request.key != key or rows + request.rows > max_rows:
            closed = True
            break
        prefix.append(request)
        rows += request.rows
        if rows in preferred:
            best, best_rows = len(prefix), rows
        if rows >= max_rows:
            closed = True
            break
    if not prefix:
        return None
    if best:
        return Run(prefix[:best], best_rows)
    held_back = not (closed or prefix[0].background)
    if held_back and batching is not None and batching.max_delay_us:
        until = min(request.enqueued for request in prefix) + batching.max_delay_us / 1e6
        if until > now:
            return Wait(until)
    return Run(prefix, rows)
