from __future__ import annotations

from headrace.domain.errors import HeadraceError, ModelNotReady
from headrace.router.in_process import InProcess
from tests.support.router_fakes import NoLocalModels, RouterHouse, endpoint


class Loading(NoLocalModels):
    """Has version 2 of "m" for the tenant "blue", once it is loaded."""

    def __init__(self) -> None:
        self.loaded = False

    def obstacle(self, tenant: str, model: str, version: str) -> HeadraceError | None:
        if (tenant, model, version) == ("blue", "m", "2"):
            return None if self.loaded else ModelNotReady("loading")
        return super().obstacle(tenant, model, version)


async def test_it_is_as_ready_as_the_models_of_its_tenant() -> None:
    models = Loading()
    upstream = InProcess(models, "blue")
    assert await upstream.unready("", "", 0) == "", "this process answers, as long as it runs"
    assert await upstream.unready("m", "2", 0)
    models.loaded = True
    assert await upstream.unready("m", "2", 0) == ""
    assert await upstream.unready("m", "1", 0)
    assert await InProcess(models, "green").unready("m", "2", 0)


async def test_this_process_is_an_endpoint_that_is_never_looked_up() -> None:
    async with RouterHouse() as house:
        await house.put(endpoint(0, url="", protocol="in-process"))
        state = house.fleet.state("default", "e0")
        assert state is not None
        assert [(each.address, each.ready) for each in state.addresses] == [("in-process", True)]
        assert (await house.ask()).version == "e0"
