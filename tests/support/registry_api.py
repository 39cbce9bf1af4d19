"""The management API, as a script with an HTTP library would use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.process import Answer, Server


class Api:
    """Requests to one process; each answers the body, and fails the test on a refusal."""

    def __init__(self, server: Server, **headers: str) -> None:
        self._server = server
        self._headers = headers

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request below /api/v1, whatever its answer; `_` in header names is `-`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body)
            named = {"content-type": "application/json", **named}
        return self._server.request(
            method, f"/api/v1/{path}", body, {**self._headers, **named}, timeout_s=60.0
        )

    def do(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """A request that succeeds."""
        answer = self.call(method, path, body, **headers)
        assert answer.status < 300, (method, path, answer.status, answer.body)
        return answer.json() if answer.body else None

    def publish(self, model: str, file: Path) -> str:
        """Push a file as the model's next version; answers its number."""
        if self.call("GET", f"models/{model}").status == 404:
            self.do("POST", "models", {"name": model})
        made = self.do("POST", f"models/{model}/versions", {})
        number = str(made["version"])
        path = f"models/{model}/versions/{number}/artifact"
        uploaded = self.do(
            "PUT", path, file.read_bytes(),
            content_type="application/onnx", if_match=f'"{made["revision"]}"',
        )  # fmt: skip
        assert uploaded["status"] == "ready", uploaded
        return number

    def promote(self, model: str, version: str, alias: str = "champion") -> Any:
        """Point the alias at the version, with all checks."""
        return self.do("POST", f"models/{model}/promote", {"version": version, "alias": alias})

    def revision(self, path: str) -> str:
        """The ETag of what stands at a path."""
        answer = self.call("GET", path)
        assert answer.status == 200, (path, answer.body)
        return answer.headers["etag"]
