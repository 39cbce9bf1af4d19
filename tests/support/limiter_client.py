"""A process of its own whose clients spend from one bucket that others spend from too.

Arguments: url, quota, window_s, burst, clients, takes each. Says that it is ready, begins when a
line comes, and prints how many were allowed.
"""

from __future__ import annotations

import asyncio
import sys

from headrace.adapters.redis.limiter import RedisLimiter
from headrace.adapters.redis.settings import RedisLimiterSettings
from headrace.ports.limiter import Charge, Rate


async def _main(url: str, rate: Rate, clients: int, takes: int) -> None:
    # a busy machine is no fault
    limiter = RedisLimiter(RedisLimiterSettings(url=url, timeout_s=30.0), replicas=2)
    granted = 0

    async def client() -> None:
        nonlocal granted
        for _ in range(takes):
            taken = limiter.take([Charge("shared", rate)])
            (spent,) = await taken if isinstance(taken, asyncio.Future) else taken
            granted += spent.allowed

    running = asyncio.create_task(limiter.run())
    await asyncio.sleep(0)
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    assert not limiter.degraded
    running.cancel()
    await asyncio.wait({running})
    await limiter.close()
    print(granted)  # noqa: T201 - its answer


if __name__ == "__main__":
    print("ready", flush=True)  # noqa: T201
    sys.stdin.readline()
    _, url, quota, window_s, burst, clients, takes = sys.argv
    asyncio.run(_main(url, Rate(int(quota), float(window_s), int(burst)), int(clients), int(takes)))
