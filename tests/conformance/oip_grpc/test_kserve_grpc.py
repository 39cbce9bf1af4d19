"""KServe's gRPC client, unmodified.

It runs in a process of its own (this file as a program): its protobuf messages bear the same
names as those of NVIDIA's client, and one process cannot hold both. The platform's own messages
are loaded beside it there, to see that these two do get along.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.repositories import BINARY_ONLY, DATATYPES, example

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("kserve") is None, reason="kserve is not installed"
)
KNOWN = [datatype for datatype in DATATYPES if datatype != "BF16"]  # which the client lacks
ROOT = Path(__file__).parents[3]
MODULE = ".".join(Path(__file__).relative_to(ROOT).with_suffix("").parts)


# --- in the process of the client


async def _calls(address: str) -> dict[str, Any]:
    """Make every call, and answer what each gave."""
    import grpc  # noqa: PLC0415 - see the module's text
    from kserve import InferenceGRPCClient  # noqa: PLC0415

    from headrace.transport.oip_grpc import schema  # noqa: PLC0415

    found: dict[str, Any] = {"beside": schema.ModelInferRequest(id="42").id}
    async with InferenceGRPCClient(address, retries=0, timeout=10) as client:
        found["live"] = await client.is_server_live()
        found["ready"] = await client.is_server_ready()
        for model in ("versions", "corrupt", "nobody"):
            found[f"{model} ready"] = await client.is_model_ready(model)
        for datatype in KNOWN:
            for binary in (True, False):
                if binary or datatype not in BINARY_ONLY:
                    key = f"{datatype} {binary}"
                    found[key] = await _identity(client, datatype, binary=binary)
        try:
            await _identity(client, "nobody", binary=True)
        except grpc.aio.AioRpcError as error:
            found["error"] = [error.code().name, error.details()]
    found["repository"] = await _repository(address)
    return found


async def _identity(client: Any, datatype: str, *, binary: bool) -> Any:
    from kserve import InferInput, InferRequest  # noqa: PLC0415

    model, datatype = (
        ("nobody", "FP32") if datatype == "nobody" else (f"identity_{datatype.lower()}", datatype)
    )
    data = example(datatype)
    if binary:
        tensor = InferInput("x", [2, 3], datatype)
        tensor.set_data_from_numpy(data, binary_data=True)
    else:
        tensor = InferInput("x", [2, 3], datatype, data=data.ravel().tolist())
    response = await client.infer(InferRequest(model, [tensor], request_id="42"))
    assert (response.id, response.model_name) == ("42", model)
    return _plain(response.outputs[0].as_numpy())


async def _repository(address: str) -> list[Any]:
    """Unload and load as KServe's messages say it: the model's name is their first field."""
    import grpc  # noqa: PLC0415
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages  # noqa: PLC0415
    from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import (  # noqa: PLC0415
        GRPCInferenceServiceStub,
    )

    async with grpc.aio.insecure_channel(address) as channel:
        stub = GRPCInferenceServiceStub(channel)
        gone = await stub.RepositoryModelUnload(
            messages.RepositoryModelUnloadRequest(model_name="spare")
        )
        back = await stub.RepositoryModelLoad(
            messages.RepositoryModelLoadRequest(model_name="spare")
        )
    return [gone.model_name, gone.isUnloaded, back.model_name, back.isLoaded]


def _plain(array: np.ndarray[Any, Any]) -> Any:
    return [x.decode() if isinstance(x, bytes) else x for x in array.ravel().tolist()]


# --- in the process of the tests


@pytest.fixture(scope="module")
def found(address: str) -> dict[str, Any]:
    finished = subprocess.run(
        [sys.executable, "-m", MODULE, address],
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert finished.returncode == 0, finished.stderr
    return dict(json.loads(finished.stdout.splitlines()[-1]))


def test_the_platforms_messages_live_beside_the_clients(found: dict[str, Any]) -> None:
    assert found["beside"] == "42"


def test_the_server_is_live_and_ready(found: dict[str, Any]) -> None:
    assert (found["live"], found["ready"]) == (True, True)


def test_a_model_is_ready_if_it_can_run(found: dict[str, Any]) -> None:
    ready = [found[f"{model} ready"] for model in ("versions", "corrupt", "nobody")]
    assert ready == [True, False, False]


@pytest.mark.parametrize("datatype", KNOWN)
def test_every_datatype_of_the_client_goes_raw(found: dict[str, Any], datatype: str) -> None:
    assert found[f"{datatype} True"] == _plain(example(datatype))


@pytest.mark.parametrize("datatype", [d for d in KNOWN if d not in BINARY_ONLY])
def test_every_datatype_of_the_client_goes_typed(found: dict[str, Any], datatype: str) -> None:
    assert found[f"{datatype} False"] == _plain(example(datatype))


def test_an_error_tells_its_status_and_its_sentence(found: dict[str, Any]) -> None:
    assert found["error"] == ["NOT_FOUND", "Request for unknown model: 'nobody' is not found"]


def test_a_model_is_unloaded_and_loaded_by_kserves_messages(found: dict[str, Any]) -> None:
    assert found["repository"] == ["spare", True, "spare", True]


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_calls(sys.argv[1]))))  # noqa: T201 - the answer to the tests
