"""A server of grpcio with nothing in it: no server on that library can be cheaper.

Runs as its own process, and writes its port as a JSON line. `python -m bench.grpc_bare` answers
every message with an empty one; `python -m bench.grpc_bare HOST:PORT` passes messages on to there.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from typing import Any, Final

import grpc
import uvloop

_PATIENCE_S: Final = 30.0


class _Everything(grpc.GenericRpcHandler):  # type: ignore[misc]  # the library ships no types
    """Serves every method by one function; messages stay bytes."""

    def __init__(self, answer: Any) -> None:
        self._handler = grpc.unary_unary_rpc_method_handler(answer)

    def service(self, _: Any) -> Any:
        return self._handler


async def _nothing(_: bytes, __: Any) -> bytes:
    return b""


def _passing_on(target: str) -> Any:
    channel = grpc.aio.insecure_channel(target)
    ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

    async def pass_on(message: bytes, _: Any) -> bytes:
        answer: bytes = await ask(message, timeout=_PATIENCE_S)
        return answer

    return pass_on


async def _serve(targets: list[str]) -> None:
    answer = _passing_on(targets[0]) if targets else _nothing
    server = grpc.aio.server(handlers=[_Everything(answer)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    print(json.dumps({"grpc_port": port}), flush=True)
    await stopped.wait()
    await server.stop(None)


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1:]))
