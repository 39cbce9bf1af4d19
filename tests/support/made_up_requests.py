"""Requests that Schemathesis makes up out of an OpenAPI document, the same ones in every run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import schemathesis
from hypothesis import HealthCheck, settings

App = TypeVar("App")

#: The only token that is good for anything.
TOKEN = "made-up"


class Current(Generic[App]):
    """The application that is asked at the moment; the schema is read before there is any."""

    def __init__(self) -> None:
        self.served: App | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        served: Any = self.served
        assert served is not None
        await served(scope, receive, send)


def schema(
    document: Mapping[str, Any],
    app: Current[App],
    *,
    mode: str,
    expected: Mapping[str, Sequence[str]],
) -> Any:
    """The document, for requests that fit it ("positive"), or for others ("negative").

    `expected` are the statuses that each of Schemathesis's checks takes for right.
    """
    config = schemathesis.Config.from_dict(
        {
            "auth": {"openapi": {"bearer": {"bearer": TOKEN}}},
            "generation": {"mode": mode, "allow-x00": False, "deterministic": True},
            # the document links its operations; guesses take an id for a name
            "phases": {"stateful": {"inference": {"algorithms": []}}},
            "checks": {
                check: {"expected-statuses": list(statuses)} for check, statuses in expected.items()
            },
        }
    )
    found = schemathesis.openapi.from_dict(dict(document), config=config)
    found.app = app
    return found


def bounded(examples: int, **more: Any) -> settings:
    """Settings of Hypothesis: as many examples, however long each takes."""
    return settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        **more,
    )
