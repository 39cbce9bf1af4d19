"""What operators ask of a real Triton's models through the platform, on every pair of wires."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from tests.support.process import Server, eventually, serving
from tests.support.triton import Triton, running

_LISTED = ("identity", "versioned")
_QUICK = "[health_checks]\ninterval_s = 0.1\nstatistics_s = 0.1\n"
#: A load that failed, or a model that is being unloaded, would make the whole server unready.
_LENIENT = ("--strict-readiness=false",)
_X = np.array([[1.5, -2.0]], np.float32)


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A Triton of its own: its models are loaded and unloaded here."""
    folder = tmp_path_factory.mktemp("triton")
    models = (*_LISTED, "halves")
    with running(folder, models=models, load=("identity",), arguments=_LENIENT) as server:
        yield server


def _endpoint(triton: Triton, wire: str) -> str:
    url = f'url = "{triton.url}"\n'
    return f'{url}grpc_url = "grpc://{triton.grpc}"\n' if wire == "grpc" else url


@contextlib.contextmanager
def _platform(folder: Path, text: str, models: Path | None = None) -> Iterator[Server]:
    file = folder / "settings.toml"
    file.write_text(f"[registry]\nenabled = false\n{_QUICK}{text}", "utf-8")
    with serving(models, folder / "log", f"--settings={file}") as server:
        yield server


@pytest.fixture(scope="module", params=["rest", "grpc"])
def server(
    triton: Triton, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The platform, with the Triton as its endpoint by either wire."""
    text = f"[endpoints.triton]\nmodels = {list(_LISTED)}\n{_endpoint(triton, request.param)}"
    with _platform(tmp_path_factory.mktemp("platform"), text) as found:
        yield found


class Client:
    """tritonclient over one wire of the platform; its answers as HTTP has them."""

    def __init__(self, module: ModuleType, address: str) -> None:
        self.module = module
        self.client = module.InferenceServerClient(address)
        self._options = {} if module is tritonclient.http else {"as_json": True}

    def ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        return getattr(self.client, method)(*arguments, **options, **self._options)

    def infer(self, model: str, rows: int = 1) -> Any:
        x = np.repeat(_X, rows, axis=0)
        tensor = self.module.InferInput("x", x.shape, "FP32")
        tensor.set_data_from_numpy(x)
        return self.client.infer(model, [tensor]).as_numpy("y")

    def index(self) -> dict[tuple[str, str], str]:
        found = self.ask("get_model_repository_index")
        lines = found if isinstance(found, list) else found["models"]
        return {(each["name"], each.get("version", "")): each["state"] for each in lines}


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, server: Server) -> Iterator[Client]:
    module = {"http": tritonclient.http, "grpc": tritonclient.grpc}[request.param]
    found = Client(module, _address(server, request.param))
    yield found
    found.client.close()


def _address(server: Server, wire: str) -> str:
    if wire == "http":
        return server.address
    port = next(line["grpc_port"] for line in server.log() if "grpc_port" in line)
    return f"127.0.0.1:{port}"


def test_metadata_are_tritons(client: Client, triton: Triton) -> None:
    direct = tritonclient.http.InferenceServerClient(triton.http)
    expected = direct.get_model_metadata("identity")
    direct.close()
    found = client.ask("get_model_metadata", "identity")
    assert {key: found[key] for key in ("name", "versions", "platform")} == {
        key: expected[key] for key in ("name", "versions", "platform")
    }
    for kind in ("inputs", "outputs"):
        shapes = [[int(size) for size in tensor["shape"]] for tensor in found[kind]]
        assert shapes == [tensor["shape"] for tensor in expected[kind]]
        assert [t["datatype"] for t in found[kind]] == [t["datatype"] for t in expected[kind]]


def test_the_configuration_is_tritons(client: Client) -> None:
    found = client.ask("get_model_config", "identity")
    config = found.get("config", found)
    assert (config["name"], config["backend"], config["max_batch_size"]) == (
        "identity", "python", 8,
    )  # fmt: skip
    assert [int(size) for size in config["dynamic_batching"]["preferred_batch_size"]] == [4, 8]
    assert config["input"][0]["data_type"] == "TYPE_FP32"


def test_what_triton_does_not_have_is_not_found(client: Client) -> None:
    for method in ("get_model_metadata", "get_model_config"):
        with pytest.raises(InferenceServerException, match="unknown model: 'identity'") as caught:
            client.ask(method, "identity", "7")
        assert caught.value.status() in {"404", "StatusCode.NOT_FOUND"}


def test_statistics_and_metrics_count_what_triton_counts(client: Client, server: Server) -> None:
    def count() -> int:
        (row,) = client.ask("get_inference_statistics", "identity")["model_stats"]
        return int(row.get("inference_count", 0))

    def counted(what: str) -> float:
        name = f"headrace_endpoint_model_{what}_total"
        labels = {"endpoint": "triton", "model": "identity", "version": "1"}
        return server.metric(name, **labels)

    before, rows, queued = count(), counted("inferences"), counted("queue_seconds")
    assert client.infer("identity", rows=3).shape == (3, 2)
    assert count() == before + 3
    everything = client.ask("get_inference_statistics")["model_stats"]
    assert [row["name"] for row in everything] == ["identity"]
    # another client's requests may not have been read yet when this one began
    eventually(lambda: counted("inferences") >= rows + 3)
    assert counted("queue_seconds") > queued
    assert counted("successes") <= counted("inferences")
    assert counted("compute_infer_seconds") > 0


def test_a_model_is_loaded_asked_and_unloaded(client: Client) -> None:
    assert client.index()["identity", "1"] == "READY"
    assert ("halves", "1") not in client.index()  # it is not listed
    client.client.load_model("versioned")
    tensor = client.module.InferInput("x", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 1), np.float32))
    found = client.client.infer("versioned", [tensor])  # at once: it need not be found well first
    assert found.as_numpy("version").tolist() == [[2]]
    index = client.index()
    assert (index["versioned", "1"], index["versioned", "2"]) == ("READY", "READY")
    assert sorted(client.ask("get_model_metadata", "versioned")["versions"]) == ["1", "2"]
    client.client.unload_model("versioned")
    eventually(lambda: client.index()["versioned", "2"] == "UNAVAILABLE")


def test_a_configuration_that_is_sent_is_that_of_the_load(client: Client) -> None:
    config = (
        '{"name": "versioned", "backend": "python", "max_batch_size": 2,'
        ' "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [1]}],'
        ' "output": [{"name": "version", "data_type": "TYPE_INT32", "dims": [1]}]}'
    )
    client.client.load_model("versioned", config=config)
    found = client.ask("get_model_config", "versioned")
    assert found.get("config", found)["max_batch_size"] == 2
    client.client.unload_model("versioned")
    eventually(lambda: client.index()["versioned", "2"] == "UNAVAILABLE")


def test_a_load_that_fails_says_where_and_why_but_no_place(client: Client, triton: Triton) -> None:
    program = triton.repository / "versioned" / "2" / "model.py"
    source = program.read_text("utf-8")
    program.write_text("raise ValueError('broken on purpose')\n", "utf-8")
    try:
        with pytest.raises(InferenceServerException) as caught:
            client.client.load_model("versioned")
    finally:
        program.write_text(source, "utf-8")
    said = caught.value.message()
    assert "failed to load 'versioned': endpoint 'triton': " in said
    assert "broken on purpose" in said
    assert str(triton.repository) not in said
    assert "At:" not in said
    assert caught.value.status() in {"400", "StatusCode.INVALID_ARGUMENT"}
    assert client.infer("identity").tolist() == _X.tolist()
    client.client.unload_model("versioned")
    eventually(lambda: client.index()["versioned", "2"] == "UNAVAILABLE")


@pytest.mark.parametrize("wire", ["rest", "grpc"])
def test_one_that_serves_anything_tells_of_all_it_has(
    triton: Triton, tmp_path: Path, wire: str
) -> None:
    text = (
        f'[endpoints.any]\n{_endpoint(triton, wire)}[[routes.front.targets]]\nmodel = "identity"\n'
    )
    with _platform(tmp_path, text) as server:
        index = server.request("POST", "/v2/repository/index").json()
        assert {"identity", "versioned", "halves"} <= {line["name"] for line in index}
        assert server.request("GET", "/v2/models/front").json()["name"] == "front"
        assert server.request("GET", "/v2/models/front/config").json()["name"] == "front"
        refused = server.request("POST", "/v2/repository/models/nope/load", "{}")
        assert refused.status == 400
        assert "endpoint 'any'" in refused.error
        assert server.request("POST", "/v2/repository/models/halves/load", "{}").status == 200
        assert server.request("GET", "/v2/models/halves").json()["versions"] == ["1"]
        assert server.request("POST", "/v2/repository/models/halves/unload", "{}").status == 200


def test_a_frozen_triton_does_not_hold_up_the_index(tmp_path: Path) -> None:
    with running(tmp_path / "triton", models=("identity",)) as triton:
        both = "".join(
            f'[endpoints.{wire}]\nmodels = ["identity", "{wire}"]\n{_endpoint(triton, wire)}'
            for wire in ("rest", "grpc")
        )
        with _platform(tmp_path, f"{both}[router]\ncontrol_timeout_s = 0.5\n") as server:
            path = "/v2/models/identity"
            eventually(lambda: server.request("GET", path).status == 200)
            triton.freeze()
            index = server.request("POST", "/v2/repository/index", timeout_s=3).json()
            assert {(line["name"], line["state"]) for line in index} == {
                ("identity", "UNAVAILABLE"), ("rest", "UNAVAILABLE"), ("grpc", "UNAVAILABLE"),
            }  # fmt: skip
            answer = server.request("GET", path, timeout_s=5)
            assert answer.status in {503, 504}
            assert triton.http not in answer.error
            triton.thaw()
            eventually(lambda: server.request("GET", path).status == 200)


def test_counters_go_on_when_triton_begins_anew(tmp_path: Path) -> None:
    with running(tmp_path / "triton", models=("identity",)) as triton:
        text = f'[endpoints.triton]\nmodels = ["identity"]\n{_endpoint(triton, "grpc")}'
        with _platform(tmp_path, text) as server:
            client = Client(tritonclient.http, server.address)

            def counted() -> float:
                return server.metric("headrace_endpoint_model_inferences_total", model="identity")

            eventually(lambda: "headrace_endpoint_model_inferences_total{" in _metrics(server))
            for _ in range(5):
                client.infer("identity")
            eventually(lambda: counted() == 5)
            ready = partial(server.request, "GET", "/v2/models/identity/ready")
            triton.kill()
            eventually(lambda: ready().status == 503)
            triton.start()
            eventually(lambda: ready().status == 200)
            client.infer("identity")
            client.infer("identity")
            eventually(lambda: counted() == 7)
            client.client.close()


def _metrics(server: Server) -> str:
    return server.request("GET", "/metrics").body.decode()
