"""The usual way to serve a model by hand: FastAPI, pydantic, a plain `def` endpoint, uvicorn.

`python -m bench.naive REPOSITORY` serves every `MODEL/1/model.onnx` of the folder on a free port,
and writes the port as a JSON line. Where the usual way leaves a choice, the cheaper one is taken:
one thread for each run, and no access log.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

_DTYPES: Final[dict[str, Any]] = {"FP32": np.float32, "INT32": np.int32}


class Tensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class InferRequest(BaseModel):
    id: str | None = None
    inputs: list[Tensor]


class InferResponse(BaseModel):
    model_name: str
    id: str | None = None
    outputs: list[Tensor]


def application(repository: Path) -> FastAPI:
    files = list(repository.glob("*/1/model.onnx"))
    sessions: dict[str, Any] = {}

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        for file in files:
            sessions[file.parent.parent.name] = onnxruntime.InferenceSession(str(file), options)
        yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/readyz")
    def ready() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v2/models/{model}/infer")
    def infer(model: str, request: InferRequest) -> InferResponse:
        if model not in sessions:
            raise HTTPException(404, f"model {model} is not there")
        session = sessions[model]
        feed = {
            tensor.name: np.array(tensor.data, dtype=_DTYPES[tensor.datatype]).reshape(tensor.shape)
            for tensor in request.inputs
        }
        names = [output.name for output in session.get_outputs()]
        outputs = [
            Tensor(name=name, shape=list(array.shape), datatype="FP32", data=array.ravel().tolist())
            for name, array in zip(names, session.run(names, feed), strict=True)
        ]
        return InferResponse(model_name=model, id=request.id, outputs=outputs)

    return app


def main() -> None:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    print(json.dumps({"http_port": listening.getsockname()[1]}), flush=True)
    config = uvicorn.Config(application(Path(sys.argv[1])), access_log=False, log_level="warning")
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
