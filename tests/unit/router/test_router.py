from __future__ import annotations

import pytest

from headrace.domain.calls import Call
from headrace.domain.errors import HeadraceError, ModelNotReady, UnknownModel
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.tensors import InferContent
from headrace.ports.endpoint import Endpoint
from headrace.ports.inference import InferenceService
from headrace.router.router import Router

UNKNOWN = UnknownModel("Request for unknown model: 'm' is not found")
LOADING = ModelNotReady("model 'm' is not ready, it is loading", retry_after_s=1.0)
HUNG = ModelNotReady("model 'm' is not ready, it is hung", retry_after_s=1.0)

CALL = Call("id")
REQUEST = InferRequest("m", "2", decoded=InferContent([]))


class FakeEndpoint:
    def __init__(
        self,
        name: str,
        obstacle: HeadraceError | None = None,
        *,
        failure: HeadraceError | None = None,
    ) -> None:
        self.name = name
        self._obstacle = obstacle
        self._failure = failure
        self.asked: list[tuple[str, str]] = []
        self.requests: list[tuple[InferRequest, Call]] = []

    def obstacle(self, model: str, version: str) -> HeadraceError | None:
        self.asked.append((model, version))
        return self._obstacle

    async def infer(self, request: InferRequest, call: Call) -> InferResponse:
        self.requests.append((request, call))
        if self._failure is not None:
            raise self._failure
        return InferResponse(request.model, self.name, [])


async def _refusal(*endpoints: Endpoint) -> HeadraceError:
    with pytest.raises(HeadraceError) as caught:
        await Router(endpoints).infer(REQUEST, CALL)
    return caught.value


def test_a_router_is_an_endpoint_itself() -> None:
    router: Endpoint = Router([FakeEndpoint("a")])
    service: InferenceService = router
    assert service is router


async def test_the_request_goes_to_the_first_ready_endpoint() -> None:
    endpoints = [
        FakeEndpoint("unknown", UNKNOWN),
        FakeEndpoint("loading", LOADING),
        FakeEndpoint("ready"),
        FakeEndpoint("ready too"),
    ]
    response = await Router(endpoints).infer(REQUEST, CALL)
    assert response.version == "ready"
    assert [endpoint.requests for endpoint in endpoints] == [[], [], [(REQUEST, CALL)], []]


async def test_endpoints_are_asked_for_the_model_and_the_version() -> None:
    endpoint = FakeEndpoint("a")
    await Router([endpoint]).infer(REQUEST, CALL)
    assert endpoint.asked == [("m", "2")]


async def test_a_model_that_no_endpoint_has_is_unknown() -> None:
    error = await _refusal(FakeEndpoint("a", UNKNOWN), FakeEndpoint("b", UNKNOWN))
    assert error is UNKNOWN


@pytest.mark.parametrize("obstacles", [(UNKNOWN, LOADING), (LOADING, UNKNOWN)])
async def test_that_a_model_is_not_ready_says_more_than_that_it_is_unknown(
    obstacles: tuple[HeadraceError, ...],
) -> None:
    endpoints = [FakeEndpoint("e", obstacle) for obstacle in obstacles]
    assert await _refusal(*endpoints) is LOADING
    assert all(not endpoint.requests for endpoint in endpoints)


async def test_of_several_that_are_not_ready_the_first_speaks() -> None:
    assert await _refusal(FakeEndpoint("a", HUNG), FakeEndpoint("b", LOADING)) is HUNG


@pytest.mark.parametrize(
    ("obstacles", "told"),
    [
        ((None,), None),
        ((UNKNOWN, None), None),
        ((LOADING, UNKNOWN), LOADING),
        ((UNKNOWN,), UNKNOWN),
    ],
)
def test_what_stands_in_the_way_is_told_beforehand(
    obstacles: tuple[HeadraceError | None, ...], told: HeadraceError | None
) -> None:
    endpoints = [FakeEndpoint("e", obstacle) for obstacle in obstacles]
    assert Router(endpoints).obstacle("m", "") is told
    assert all(not endpoint.requests for endpoint in endpoints)


async def test_an_endpoints_failure_is_passed_on_as_it_is() -> None:
    failing, other = FakeEndpoint("a", failure=HUNG), FakeEndpoint("b")
    assert await _refusal(failing, other) is HUNG
    assert other.requests == []


def test_a_router_without_endpoints_is_a_programmers_mistake() -> None:
    with pytest.raises(ValueError, match="needs an endpoint"):
        Router([])
