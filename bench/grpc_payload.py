"""A workload's request and answer as gRPC carries them."""

from __future__ import annotations

import time
from typing import Final

import grpc
import numpy as np

from bench.failure import BenchFailure
from bench.proxy_campaign import HEADERS, OPEN_S, POLL_S
from bench.workload import Workload
from headrace.transport.oip_grpc import schema

INFER: Final = f"/{schema.INFERENCE}/ModelInfer"
METADATA: Final = {name.lower(): value for name, value in HEADERS.items()}
_ASK_S: Final = 10.0


def message(work: Workload) -> bytes:
    """A ModelInferRequest with the row as raw contents."""
    asked = schema.ModelInferRequest(model_name=work.model)
    asked.inputs.add(name=work.input_name, datatype=work.datatype, shape=work.row.shape)
    asked.raw_input_contents.append(work.row.tobytes())
    encoded: bytes = asked.SerializeToString()
    return encoded


def check_first(work: Workload, port: int) -> None:
    """Ask once.

    Raises:
        BenchFailure: the answer is not what the model says, or none in a while is a success.
    """
    body = _first_answer(port, message(work))
    answer = schema.parse(schema.ModelInferResponse, body)
    data = np.frombuffer(answer.raw_output_contents[0], work.expected.dtype)
    work.check_figures(data, list(answer.outputs[0].shape))


def _first_answer(port: int, asked: bytes) -> bytes:
    until = time.perf_counter() + OPEN_S
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask = channel.unary_unary(INFER)
        while True:  # a proxy may look at the server behind before it sends anything there
            try:
                answer: bytes = ask(asked, timeout=_ASK_S, metadata=[*METADATA.items()])
            except grpc.RpcError as error:
                if time.perf_counter() > until:
                    raise BenchFailure(f"the first answer was {error}") from error
                time.sleep(POLL_S)
            else:
                return answer
