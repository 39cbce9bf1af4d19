"""Two candidates are drawn, the better one gets the request.

The cost of a candidate is what a request would wait there: its latency, times the requests under
way and this one. Comparing two of many, and drawing them anew each time, keeps balancers that know
nothing of each other from all choosing the same one (Mitzenmacher, "The Power of Two Choices in
Randomized Load Balancing"); the latency is a peak EWMA, as in Finagle.

Weights cannot simply divide the cost: of two idle endpoints the heavier would then always win, and
the lighter get nothing at all until there is enough load. So they come in at three places:

* The first is drawn by weight, and keeps the request unless the second, drawn evenly, is better:
  among candidates that do equally well, shares are as the weights say, also without load.
* Requests under way count in relation to the weight, so that under load, too, one with three times
  the weight holds three times as many before it costs more.
* Between different weights the second has to be better by as much as the weights differ, at most
  by half. Latencies always differ a little, and whoever is ahead would otherwise get everything.

With equal weights this is the plain rule: the lower cost wins, and chance decides ties.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from headrace.router.balancing.candidate import C
from headrace.router.balancing.shares import Shares

_MARGIN: Final = 2.0  # a cost that is so many times another's is more than noise in latencies


class P2c:
    """Power of two choices by latency and requests under way; see above.

    Who has no latency yet costs nothing while it is idle, so that it is tried soon, and more than
    anybody with one while its first request is under way, so that it is not flooded.
    """

    __slots__ = ("_chance", "_shares")

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self._shares = Shares()

    def pick(self, candidates: Sequence[C], now: float, key: str) -> C:  # noqa: ARG002
        if len(candidates) == 1:
            return candidates[0]
        shares, chance = self._shares, self._chance
        shares.read(candidates, now)
        places = shares.places
        if len(places) == 1:
            return candidates[places[0]]
        i = shares.draw(chance())
        j = int(chance() * (len(places) - 1))
        if j >= i:  # so that the two are never the same
            j += 1
        first, second = candidates[places[i]], candidates[places[j]]
        first_s, second_s = first.latency_s(now), second.latency_s(now)
        if not (first_s and second_s):
            if first_s:
                return first if second.in_flight else second
            if second_s:
                return second if first.in_flight else first
            first_s = second_s = 1.0
        if shares.alike:
            cheaper = second_s * (second.in_flight + 1) < first_s * (first.in_flight + 1)
            return second if cheaper else first
        a, b = shares.weights[i], shares.weights[j]
        mean = (a + b) / 2
        first_s *= first.in_flight * mean / a + 1
        second_s *= second.in_flight * mean / b + 1
        if second_s >= first_s:  # mostly; the margin need not be known
            return first
        margin = a / b if a > b else b / a
        return second if second_s * min(margin, _MARGIN) < first_s else first
