from __future__ import annotations

from typing import Any

import pytest

from headrace.domain.errors import UnknownModel
from headrace.domain.models import TensorSpec
from headrace.ports.model_control import ModelMetadata
from headrace.transport.oip_rest.learnt_inputs import LearntInputs


class Models:
    """Every tenant's model has one input, named as the tenant."""

    def __init__(self, tenant: str = "") -> None:
        self._tenant = tenant

    def of(self, tenant: str) -> Any:
        return Models(tenant)

    async def metadata(self, model: str, version: str = "") -> ModelMetadata:
        if model == "nope":
            raise UnknownModel("nope")
        inputs = (TensorSpec(f"{self._tenant}-{model}-{version}", "FP32", (-1,)),)
        return ModelMetadata(model, ("1",), "python", inputs, ())


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_what_is_learnt_is_known_for_a_few_seconds() -> None:
    clock = Clock()
    learnt = LearntInputs(Models(), clock=clock)  # type: ignore[arg-type] # as much as is asked
    asked = ("a", "m", "1")
    assert learnt.known(asked) is None
    inputs = await learnt.learn(asked)
    assert learnt.known(asked) == inputs

    clock.now = 3.0
    assert learnt.known(asked) is None


async def test_tenants_models_and_versions_are_known_apart() -> None:
    learnt = LearntInputs(Models(), clock=Clock())  # type: ignore[arg-type]
    for asked in (("a", "m", ""), ("b", "m", ""), ("a", "n", ""), ("a", "m", "1")):
        assert learnt.known(asked) is None
        (spec,) = await learnt.learn(asked)
        assert spec.name == "-".join(asked)


async def test_a_model_that_is_unknown_is_asked_for_again() -> None:
    learnt = LearntInputs(Models(), clock=Clock())  # type: ignore[arg-type]
    with pytest.raises(UnknownModel):
        await learnt.learn(("a", "nope", ""))
    assert learnt.known(("a", "nope", "")) is None


async def test_as_many_are_kept_as_there_is_room_for_and_the_first_learnt_goes() -> None:
    learnt = LearntInputs(Models(), clock=Clock())  # type: ignore[arg-type]
    for number in range(1025):
        await learnt.learn(("a", f"m{number}", ""))
    assert learnt.known(("a", "m0", "")) is None
    assert learnt.known(("a", "m1", "")) is not None
    assert learnt.known(("a", "m1024", "")) is not None
