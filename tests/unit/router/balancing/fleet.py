"""Endpoints as a balancer sees them, and the traffic of a simulated minute."""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence

from headrace.router.balancing.balancer import Balancer


class FakeCandidate:
    def __init__(
        self, name: str, *, weight: float = 1.0, latency_s: float = 0.0, in_flight: int = 0
    ) -> None:
        self.name = name
        self.in_flight = in_flight
        self.weighs = weight
        self.takes_s = latency_s

    def weight(self, now: float) -> float:
        del now
        return self.weighs

    def latency_s(self, now: float) -> float:
        del now
        return self.takes_s


class Server(FakeCandidate):
    """Answers after an exponentially distributed time; its latency is a peak EWMA over 10 s."""

    def __init__(self, name: str, *, mean_s: float, weight: float = 1.0) -> None:
        super().__init__(name, weight=weight)
        self.mean_s = mean_s
        self._seen_s = 0.0
        self._at = 0.0

    def latency_s(self, now: float) -> float:
        return self._seen_s * math.exp(-(now - self._at) / 10)

    def answered(self, seconds: float, now: float) -> None:
        kept = math.exp(-(now - self._at) / 10)
        smooth = self._seen_s * kept + seconds * (1 - kept)
        self._seen_s, self._at = max(smooth, seconds), now


def picks(
    balancer: Balancer, candidates: Sequence[FakeCandidate], times: int = 1, *, key: str = ""
) -> list[str]:
    """Names of who is picked, one after the other, where every request is over at once."""
    return [balancer.pick(candidates, 0.0, key).name for _ in range(times)]


def shares(names: Iterable[str]) -> dict[str, float]:
    counts = Counter(names)
    return {name: count / counts.total() for name, count in counts.items()}


def traffic(
    balancer: Balancer, servers: Sequence[Server], *, requests: int, per_s: float
) -> dict[str, float]:
    """The share of each server in requests that come at random, `per_s` of them each second."""
    rng = random.Random(99)  # no balancer has this seed: chance would know what is to come
    now = 0.0
    under_way: list[tuple[float, int, Server, float]] = []
    picked = []
    for number in range(requests):
        now += rng.expovariate(per_s)
        while under_way and under_way[0][0] <= now:
            ended, _, server, seconds = heapq.heappop(under_way)
            server.in_flight -= 1
            server.answered(seconds, ended)
        server = balancer.pick(servers, now, "")
        server.in_flight += 1
        seconds = rng.expovariate(1 / server.mean_s)
        heapq.heappush(under_way, (now + seconds, number, server, seconds))
        picked.append(server.name)
    return shares(picked)
