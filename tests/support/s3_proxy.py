"""A proxy before an S3 store that fails as the network does: answers 500, cuts, hangs."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Fault = Literal["500", "cut_request", "cut_answer", "hang", "hold"]


class Proxy:
    """`fault` is asked of every request, by method and path; `requests` are those that came."""

    def __init__(self, url: str) -> None:
        self.requests: list[tuple[str, str]] = []
        self.fault: Callable[[str, str], Fault | None] = lambda _method, _path: None
        self.released = threading.Event()  # lets go of what hangs
        self.url = ""
        self._store = urlsplit(url).netloc

    def ask(self, method: str, path: str) -> Fault | None:
        self.requests.append((method, path))
        return self.fault(method, path)

    def forward(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self._store, timeout=30)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():  # Host as it was: it is signed
                connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()


def first_of_each() -> Callable[[str, str], Fault | None]:
    """Answers 500 to every request that comes for the first time."""
    seen: set[tuple[str, str]] = set()

    def fault(method: str, path: str) -> Fault | None:
        new = (method, path) not in seen
        seen.add((method, path))
        return "500" if new else None

    return fault


@contextlib.contextmanager
def proxying(url: str) -> Iterator[Proxy]:
    """A proxy on a port of its own, until the block ends."""
    proxy = Proxy(url)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            fault = proxy.ask(self.command, self.path)
            size = int(self.headers.get("Content-Length") or 0)
            if fault == "cut_request":
                self.rfile.read(size // 2)
                return self._cut()
            body = self.rfile.read(size)
            if fault == "hang":
                proxy.released.wait(30)
                return self._cut()
            if fault == "hold":
                proxy.released.wait(30)
            if fault == "500":
                self.send_response(500)
                self.send_header("Content-Length", "0")
                return self.end_headers()
            status, headers, answer = proxy.forward(
                self.command, self.path, body, dict(self.headers.items())
            )
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in {"transfer-encoding", "content-length"}:
                    self.send_header(name, value)
            length = dict((n.lower(), v) for n, v in headers).get("content-length", len(answer))  # noqa: C402
            self.send_header(
                "Content-Length", str(length if self.command == "HEAD" else len(answer))
            )
            self.end_headers()
            if fault == "cut_answer":
                self.wfile.write(answer[: len(answer) // 2])
                return self._cut()
            self.wfile.write(answer)
            return None

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815

        def _cut(self) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that went away is what is tested."""

    server = Server(("127.0.0.1", 0), Handler)
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
