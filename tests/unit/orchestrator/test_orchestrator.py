from __future__ import annotations

import math

import numpy as np
import pytest

from headrace.domain.calls import Call
from headrace.domain.errors import ModelNotReady, UnknownModel
from headrace.domain.inference import InferRequest
from headrace.domain.models import AllVersions, ModelConfig
from headrace.domain.tensors import InferContent, Tensor
from headrace.orchestrator.orchestrator import Orchestrator
from headrace.ports.endpoint import Endpoint
from tests.support.executors import FakeExecutor, plus
from tests.unit.orchestrator.stage import House, values

CALL = Call("r", received=0.0, deadline=math.inf)


def _request(model: str, version: str = "") -> InferRequest:
    tensor = Tensor("x", "FP32", np.zeros((1, 1), np.float32))
    return InferRequest(model, version, decoded=InferContent([tensor]))


async def _loaded() -> Orchestrator:
    house = House()
    house.repository.put(
        "m", {"1": "a", "2": "a"}, config=ModelConfig("m", None, 8, version_policy=AllVersions())
    )
    for version in ("1", "2"):
        house.loader.will("m", version, [FakeExecutor(plus(int(version)))])
    house.repository.put("broken", problem="no")
    await house.models.load_all()
    return Orchestrator(house.models)


async def test_the_orchestrator_is_an_endpoint() -> None:
    endpoint: Endpoint = await _loaded()
    assert endpoint.obstacle("m", "") is None


@pytest.mark.parametrize(("asked", "answered"), [("1", "1"), ("2", "2"), ("", "2")])
async def test_a_request_runs_on_the_version_it_names_or_on_the_newest(
    asked: str, answered: str
) -> None:
    response = await (await _loaded()).infer(_request("m", asked), CALL)
    assert response.version == answered
    assert values([response.outputs[0].array]) == [int(answered)]


@pytest.mark.parametrize(
    ("model", "version", "error"),
    [("n", "", UnknownModel), ("m", "9", UnknownModel), ("broken", "", ModelNotReady)],
)
async def test_what_stands_in_the_way_is_what_a_request_would_be_told(
    model: str, version: str, error: type[Exception]
) -> None:
    orchestrator = await _loaded()
    obstacle = orchestrator.obstacle(model, version)
    assert isinstance(obstacle, error)
    with pytest.raises(error) as caught:
        await orchestrator.infer(_request(model, version), CALL)
    assert str(caught.value) == str(obstacle)
