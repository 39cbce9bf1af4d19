from __future__ import annotations

import pytest

from headrace.domain.errors import EndpointFailed
from tests.support.router_fakes import RouterHouse, endpoint, failed

ATTEMPTS = "headrace_endpoint_attempts_total"


def models(house: RouterHouse, family: str = ATTEMPTS) -> set[str]:
    """The models by which a metric of lanes is counted."""
    return {values[3] for values in house.counted(family)}


async def test_names_that_nobody_has_answered_for_are_counted_together() -> None:
    async with RouterHouse() as house:
        await house.put(endpoint(0, models=()))
        (upstream,) = house.upstreams.values()
        upstream.always = failed()
        for name in ("made", "up"):
            with pytest.raises(EndpointFailed):
                await house.ask(name)
        assert models(house) == {"*"}
        upstream.always = None
        await house.ask("real")
        assert models(house) == {"*", "real"}
        assert models(house, "headrace_breaker_state") <= {"real"}


async def test_models_that_an_endpoint_lists_are_counted_by_name_from_the_first() -> None:
    async with RouterHouse() as house:
        await house.put(endpoint(0))
        (upstream,) = house.upstreams.values()
        upstream.always = failed()
        with pytest.raises(EndpointFailed):
            await house.ask()
        assert models(house) == {"m"}
