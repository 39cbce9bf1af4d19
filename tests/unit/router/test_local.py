from __future__ import annotations

from headrace.domain.calls import Call
from headrace.domain.errors import HeadraceError, ModelNotReady, UnknownModel
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.tensors import InferContent
from headrace.ports.inference import Responses, single
from headrace.router.local import FolderModels


class Folder:
    """Has "ready", and "cold", which cannot run now."""

    async def infer(self, request: InferRequest, call: Call) -> InferResponse:
        del call
        return InferResponse(request.model, "1", [])

    def stream(self, request: InferRequest, call: Call) -> Responses:
        return single(self, request, call)

    def obstacle(self, model: str, version: str) -> HeadraceError | None:
        del version
        found = {"ready": None, "cold": ModelNotReady("cold")}
        return found.get(model, UnknownModel(model))


def test_a_folders_models_are_every_tenants_and_known_though_not_ready() -> None:
    models = FolderModels(Folder())
    for tenant in ("blue", "green"):
        assert [models.is_warm(tenant, model, "") for model in ("ready", "cold", "none")] == [
            True, False, False,
        ]  # fmt: skip
        assert [models.knows(tenant, model) for model in ("ready", "cold", "none")] == [
            True, True, False,
        ]  # fmt: skip
        assert isinstance(models.obstacle(tenant, "cold", ""), ModelNotReady)


async def test_a_folders_model_answers() -> None:
    request = InferRequest("ready", decoded=InferContent([]))
    assert (await FolderModels(Folder()).infer(request, Call("id"))).version == "1"


async def test_a_folders_model_streams() -> None:
    request = InferRequest("ready", decoded=InferContent([]))
    stream = FolderModels(Folder()).stream(request, Call("id"))
    assert [response.version async for response in stream] == ["1"]
