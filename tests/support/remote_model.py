"""Models that stubs serve to a platform's process: how they are registered, asked and counted."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Self

from tests.support.process import Answer, Server, eventually
from tests.support.registry_api import Api

BODY: Final = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}]}
#: A change of the registry is in the data path by then.
IN_EFFECT_S: Final = 1.0
#: The same as it is sent.
JSON: Final = json.dumps(BODY)
_REST_S: Final = 0.002  # between two requests of a client that never stops: two cores do it all


class RemoteModel:
    """A model of a name of its own, so that tests may share a platform and stubs."""

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.name = name
        self.api = Api(server)

    def register(self, *urls: str, wait: bool = True, **content: Any) -> list[str]:
        """An endpoint for each URL, called as the model is with a number; their names."""
        names: list[str] = []
        for url in urls:
            name = f"{self.name}-{len(names)}"
            made = {"name": name, "url": url, "models": [self.name], **content}
            self.api.do("POST", "endpoints", made)
            names.append(name)
        if wait:
            self.until_ready(names)
        return names

    def until_ready(self, names: Sequence[str]) -> None:
        """Wait until the data path knows all of them and has found them well."""
        for name in names:
            eventually(lambda name=name: self.addresses(name), timeout_s=10 * IN_EFFECT_S)
            eventually(lambda name=name: self.addresses(name)[0]["ready"])

    def route(self, **content: Any) -> None:
        """A route called as the model is."""
        self.api.do("POST", "routes", {"name": self.name, **content})
        self.until_known()

    def until_known(self) -> None:
        """Wait until the data path has heard of the name."""
        path = f"/v2/models/{self.name}/ready"
        eventually(
            lambda: self.server.request("GET", path).status == 200, timeout_s=10 * IN_EFFECT_S
        )

    def change(self, endpoint: str, **patch: Any) -> None:
        """Patch an endpoint."""
        path = f"endpoints/{endpoint}"
        self.api.do("PATCH", path, patch, if_match=self.api.revision(path))

    def remove(self, endpoint: str) -> None:
        """Delete an endpoint."""
        path = f"endpoints/{endpoint}"
        self.api.do("DELETE", path, if_match=self.api.revision(path))

    def addresses(self, endpoint: str) -> list[dict[str, Any]]:
        """What the process says of an endpoint's addresses."""
        state = self.api.do("GET", f"endpoints/{endpoint}")["state"]
        found: list[dict[str, Any]] = [] if state is None else state["addresses"]
        return found

    def breaker(self, endpoint: str) -> dict[str, Any]:
        """The state of its breaker for this model, at its only address."""
        (address,) = self.addresses(endpoint)
        found: list[dict[str, Any]] = [
            each for each in address["breakers"] if each["model"] == self.name
        ]
        return found[0]

    def events(self, endpoint: str) -> list[str]:
        """The kinds of its events, the oldest first."""
        items = self.api.do("GET", f"endpoints/{endpoint}/events")["items"]
        return [item["kind"] for item in reversed(items)]

    def ask(self, version: str = "", **headers: str) -> Answer:
        """One request; `_` in header names is `-`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        place = f"{self.name}/versions/{version}" if version else self.name
        return self.server.request("POST", f"/v2/models/{place}/infer", JSON, named)

    def ask_often(self, count: int, **headers: str) -> Counter[str]:
        """So many requests, one after the other: which stub answered, or "status code"."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with Client(self.server, self.name) as client:
            return Counter(client.ask(named) for _ in range(count))

    def ask_at_once(self, clients: int, each: int) -> Counter[str]:
        """As `ask_often`, by so many clients at a time."""
        with ThreadPoolExecutor(clients) as threads:
            asked = [threads.submit(self.ask_often, each) for _ in range(clients)]
            return sum((one.result() for one in asked), Counter[str]())

    def attempts(self, endpoint: str = "", outcome: str = "") -> float:
        """Attempts that the platform has counted."""
        labels = {"endpoint": endpoint, "outcome": outcome}
        labels = {name: value for name, value in labels.items() if value}
        return self.server.metric("headrace_endpoint_attempts_total", model=self.name, **labels)

    def in_flight(self, endpoint: str) -> int:
        """Attempts that hold a permit of the endpoint."""
        return sum(address["in_flight"] for address in self.addresses(endpoint))

    @contextlib.contextmanager
    def load(self, clients: int = 4) -> Iterator[Counter[str]]:
        """Clients that ask all the time, until the block ends; what they were answered."""
        seen: Counter[str] = Counter()
        over = threading.Event()
        guard = threading.Lock()

        def go_on() -> None:
            with Client(self.server, self.name) as client:
                while not over.is_set():
                    answer = client.ask()
                    with guard:
                        seen[answer] += 1
                    over.wait(_REST_S)

        with ThreadPoolExecutor(clients) as threads:
            running = [threads.submit(go_on) for _ in range(clients)]
            try:
                yield seen
            finally:
                over.set()
                for one in running:
                    one.result()


class Client:
    """A connection that is kept."""

    def __init__(self, server: Server, model: str) -> None:
        self._path = f"/v2/models/{model}/infer"
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def ask(self, headers: Mapping[str, str] | None = None) -> str:
        """The name of the stub that answered, or "status code"."""
        self._connection.request("POST", self._path, JSON, dict(headers or {}))
        response = self._connection.getresponse()
        body = response.read()
        if response.status != 200:
            return f"{response.status} {response.getheader('x-error-code')}"
        return stub_of(body)


def stub_of(body: bytes) -> str:
    """Which stub wrote an answer."""
    return str(json.loads(body)["outputs"][0]["data"][0])
