"""The usual way to write a proxy by hand: FastAPI in front, an httpx client behind, uvicorn.

`python -m bench.relay_naive URL` passes what it is asked on to URL, on a free port that it writes
as a JSON line. Where the usual way leaves a choice, the cheaper one is taken: one client with a
pool for all requests, whole bodies, and no access log.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import httpx
import uvicorn
from fastapi import FastAPI, Request, Response

#: What concerns one connection, or is made anew for the next one.
_OWN: Final = frozenset({"host", "connection", "content-length", "transfer-encoding"})
_PATIENCE_S: Final = 30.0


def application(url: str) -> FastAPI:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=1000)
    client = httpx.AsyncClient(base_url=url, limits=limits, timeout=_PATIENCE_S)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with client:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/readyz")
    def ready() -> dict[str, str]:
        return {"status": "ok"}

    @app.api_route("/v2/{path:path}", methods=["GET", "POST"])
    async def relay(path: str, request: Request) -> Response:
        headers = {k: v for k, v in request.headers.items() if k not in _OWN}
        answer = await client.request(
            request.method, f"/v2/{path}", headers=headers, content=await request.body()
        )
        headers = {k: v for k, v in answer.headers.items() if k not in _OWN}
        return Response(answer.content, answer.status_code, headers)

    return app


def main() -> None:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    print(json.dumps({"http_port": listening.getsockname()[1]}), flush=True)
    config = uvicorn.Config(application(sys.argv[1]), access_log=False, log_level="warning")
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
