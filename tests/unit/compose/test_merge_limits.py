from __future__ import annotations

from typing import Any, cast

import pytest

from headrace.compose.merge_limits import MergeLimits
from headrace.domain.errors import HeadraceError, UnknownModel
from headrace.ports.model_control import ModelControl


class Models:
    """Configurations by tenant, model and version."""

    def __init__(self) -> None:
        self.now = 100.0
        self.configs: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.asked: list[tuple[str, str, str]] = []
        self.error: HeadraceError | None = None
        self.limits = MergeLimits(lambda: cast("ModelControl", self), clock=lambda: self.now)
        self._tenant = ""

    def of(self, tenant: str) -> Models:
        self._tenant = tenant
        return self

    async def config(self, model: str, version: str) -> dict[str, Any]:
        key = (self._tenant, model, version)
        self.asked.append(key)
        if self.error is not None:
            raise self.error
        return self.configs[key]


@pytest.fixture
def models() -> Models:
    return Models()


async def test_as_many_rows_are_merged_as_the_model_says(models: Models) -> None:
    models.configs["t", "m", ""] = {"name": "m", "max_batch_size": 64}
    assert await models.limits.learn("t", "m", "") == 64


async def test_without_a_batch_axis_none_are(models: Models) -> None:
    models.configs["t", "m", ""] = {"name": "m"}
    assert await models.limits.learn("t", "m", "") == 0


async def test_an_answer_is_believed_for_a_while(models: Models) -> None:
    models.configs["t", "m", ""] = {"max_batch_size": 64}
    await models.limits.learn("t", "m", "")
    models.configs["t", "m", ""] = {"max_batch_size": 8}
    models.now += 9.0
    assert await models.limits.learn("t", "m", "") == 64
    models.now += 1.0
    assert await models.limits.learn("t", "m", "") == 8
    assert len(models.asked) == 2


async def test_tenants_models_and_versions_are_told_apart(models: Models) -> None:
    keys = [("t", "m", ""), ("u", "m", ""), ("t", "n", ""), ("t", "m", "2")]
    models.configs = {key: {"max_batch_size": n + 1} for n, key in enumerate(keys)}
    for _ in range(2):
        assert [await models.limits.learn(*key) for key in keys] == [1, 2, 3, 4]
    assert models.asked == keys


async def test_a_model_that_nobody_knows_is_asked_for_again(models: Models) -> None:
    models.error = UnknownModel("there is no model 'm'")
    assert await models.limits.learn("t", "m", "") == 0
    models.error = None
    models.configs["t", "m", ""] = {"max_batch_size": 64}
    assert await models.limits.learn("t", "m", "") == 64


async def test_what_was_known_is_forgotten(models: Models) -> None:
    for n in range(50):
        models.configs["t", f"m{n}", ""] = {"max_batch_size": 1}
        await models.limits.learn("t", f"m{n}", "")
        models.now += 1.0
    assert len(models.limits._known) <= 11  # noqa: SLF001 - memory shows nowhere else
