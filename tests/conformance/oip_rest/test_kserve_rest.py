"""KServe's REST client, unmodified: every call it has in version 2 of the protocol.

It runs in a process of its own (this file as a program): its protobuf messages bear the same
names as those of NVIDIA's gRPC client, and one process cannot hold both.
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

from tests.support.process import Server
from tests.support.repositories import DATATYPES, example

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("kserve") is None, reason="kserve is not installed"
)
KNOWN = [datatype for datatype in DATATYPES if datatype != "BF16"]  # which the client lacks
ROOT = Path(__file__).parents[3]
MODULE = ".".join(Path(__file__).relative_to(ROOT).with_suffix("").parts)
A = np.array([[1, 2, 3, 4]], np.int32)


# --- in the process of the client


async def _calls(url: str) -> dict[str, Any]:
    """Make every call, and answer what each gave."""
    from kserve import InferenceRESTClient, RESTConfig  # noqa: PLC0415 - see the module's text

    found: dict[str, Any] = {}
    async with InferenceRESTClient(RESTConfig(protocol="v2", timeout=10)) as client:
        found["live"] = await client.is_server_live(url)
        found["ready"] = await client.is_server_ready(url)
        for model in ("versions", "corrupt", "nobody"):
            found[f"{model} ready"] = await client.is_model_ready(url, model)
        for binary in (False, True):
            found[f"add_sub {binary}"] = await _add_sub(client, url, binary=binary)
            for datatype in KNOWN:
                if binary or datatype != "FP16":
                    key = f"{datatype} {binary}"
                    found[key] = await _identity(client, url, datatype, binary=binary)
        found["dict"] = await _as_dict(client, url)
        found["errors"] = await _errors(client, url)
    return found


async def _add_sub(client: Any, url: str, *, binary: bool) -> dict[str, Any]:
    from kserve import InferInput, InferRequest  # noqa: PLC0415
    from kserve.protocol.infer_type import RequestedOutput  # noqa: PLC0415

    inputs = [InferInput("a", [1, 4], "INT32"), InferInput("b", [1, 4], "INT32")]
    for each, data in zip(inputs, (A, A * 10), strict=True):
        each.set_data_from_numpy(data, binary_data=binary)
    outputs = [RequestedOutput(name, {"binary_data": binary}) for name in ("difference", "sum")]
    request = InferRequest("add_sub", inputs, request_id="42", request_outputs=outputs)
    headers: dict[str, str] = {}
    response = await client.infer(url, request, model_name="add_sub", response_headers=headers)
    return {
        "id": response.id,
        "model": response.model_name,
        "outputs": [[output.name, output.as_numpy().tolist()] for output in response.outputs],
        "type": headers["content-type"],
    }


async def _identity(client: Any, url: str, datatype: str, *, binary: bool) -> Any:
    from kserve import InferInput, InferRequest  # noqa: PLC0415

    tensor = InferInput("x", [2, 3], datatype)
    tensor.set_data_from_numpy(example(datatype), binary_data=binary)
    model = f"identity_{datatype.lower()}"
    request = InferRequest(model, [tensor], parameters={"binary_data_output": binary})
    response = await client.infer(url, request, model_name=model)
    return _plain(response.outputs[0].as_numpy())


async def _as_dict(client: Any, url: str) -> Any:
    """A request that is a plain dictionary, as KServe's own examples write it."""
    x = {"name": "x", "shape": [2, 1], "datatype": "FP32", "data": [[1.5], [2.5]]}
    response = await client.infer(url, {"inputs": [x]}, model_name="versions")
    return response.to_rest()[0]


async def _errors(client: Any, url: str) -> dict[str, str]:
    import httpx  # noqa: PLC0415

    texts = {}
    for model in ("nobody", "corrupt", "versions"):
        try:
            await client.infer(url, {"inputs": []}, model_name=model)
        except httpx.HTTPStatusError as error:
            texts[model] = f"{error.response.status_code} {error}"
    return texts


def _plain(array: np.ndarray[Any, Any]) -> Any:
    return [x.decode() if isinstance(x, bytes) else x for x in array.ravel().tolist()]


# --- in the process of the tests


@pytest.fixture(scope="module")
def found(server: Server) -> dict[str, Any]:
    finished = subprocess.run(
        [sys.executable, "-m", MODULE, server.url],
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert finished.returncode == 0, finished.stderr
    return dict(json.loads(finished.stdout.splitlines()[-1]))


def test_the_server_is_live_and_ready(found: dict[str, Any]) -> None:
    assert (found["live"], found["ready"]) == (True, True)


def test_a_model_is_ready_if_it_can_run(found: dict[str, Any]) -> None:
    ready = [found[f"{model} ready"] for model in ("versions", "corrupt", "nobody")]
    assert ready == [True, False, False]


@pytest.mark.parametrize(
    ("binary", "content_type"), [(False, "application/json"), (True, "application/octet-stream")]
)
def test_inputs_and_outputs_go_in_the_form_that_is_asked_for(
    found: dict[str, Any], *, binary: bool, content_type: str
) -> None:
    assert found[f"add_sub {binary}"] == {
        "id": "42",
        "model": "add_sub",
        "outputs": [["difference", [[-9, -18, -27, -36]]], ["sum", [[11, 22, 33, 44]]]],
        "type": content_type,
    }


@pytest.mark.parametrize("datatype", KNOWN)
def test_every_datatype_of_the_client_goes_both_ways_in_binary(
    found: dict[str, Any], datatype: str
) -> None:
    assert found[f"{datatype} True"] == _plain(example(datatype))


@pytest.mark.parametrize("datatype", [d for d in KNOWN if d != "FP16"])
def test_every_datatype_with_a_json_form_goes_both_ways_in_json(
    found: dict[str, Any], datatype: str
) -> None:
    assert found[f"{datatype} False"] == _plain(example(datatype))


def test_a_request_may_be_a_dictionary(found: dict[str, Any]) -> None:
    (output,) = found["dict"]["outputs"]
    assert (output["name"], output["shape"], output["data"]) == ("y", [2, 1], [11.5, 12.5])
    assert found["dict"]["model_name"] == "versions"


def test_an_error_tells_its_status_and_its_sentence(found: dict[str, Any]) -> None:
    texts = found["errors"]
    assert texts["nobody"].startswith("404 Request for unknown model: 'nobody' is not found,")
    assert texts["corrupt"].startswith("503 model 'corrupt' is not ready")
    assert texts["versions"].startswith("400 expected 1 inputs but got 0 inputs")


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_calls(sys.argv[1]))))  # noqa: T201 - the answer to the tests
