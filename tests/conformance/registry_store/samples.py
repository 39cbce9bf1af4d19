"""Entities, with what a test does not care about filled in."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from headrace.domain.catalog import (
    Alias,
    ApiKey,
    Artifact,
    AuditEvent,
    Endpoint,
    Entity,
    Match,
    Model,
    Route,
    RoutePolicy,
    RouteRule,
    Shadow,
    Sticky,
    Target,
    Version,
)
from headrace.domain.models import Signature, TensorSpec

TENANT: Final = "acme"
START: Final = datetime(2026, 1, 1, tzinfo=UTC)
SIGNATURE: Final = Signature(
    (TensorSpec("x", "FP32", (-1, 4)),),
    (TensorSpec("y", "FP32", (-1, 2), labels=("yes", "no")),),
)
_numbers = itertools.count(1)


def at(seconds: float) -> datetime:
    """A time after the start."""
    return START + timedelta(seconds=seconds)


def model(name: str = "bert", **fields: Any) -> Model:
    return Model(**{**_common("mdl"), "name": name, **fields})


def version(number: str = "1", model: str = "bert", **fields: Any) -> Version:
    return Version(**{**_common("ver"), "model": model, "version": number, **fields})


def alias(name: str = "live", model: str = "bert", version: str = "1", **fields: Any) -> Alias:
    common = _common("")
    del common["id"]
    return Alias(**{**common, "model": model, "alias": name, "version": version, **fields})


def endpoint(name: str = "triton", **fields: Any) -> Endpoint:
    common = _common("")
    del common["id"]
    return Endpoint(**{**common, "name": name, "url": "http://10.0.0.1:8000", **fields})


def route(name: str = "split", **fields: Any) -> Route:
    common = _common("")
    del common["id"]
    return Route(**{**common, "name": name, "targets": (Target(model="bert"),), **fields})


def key(name: str = "ci", **fields: Any) -> ApiKey:
    return ApiKey(**{**_common("key"), "name": name, "digest": "0" * 64, **fields})


def event(action: str = "model.create", **fields: Any) -> AuditEvent:
    given = {"tenant": TENANT, "at": START, "principal": "ann", "subject": "models/bert"}
    return AuditEvent(**{**given, "action": action, **fields})


def full() -> list[Entity]:
    """One of each kind with every field set to something."""
    times = {"created_at": at(0.000001), "updated_at": at(1)}
    return [
        model("Bert-2", description="é ✓ 𝄞", owner="ann", tags=("a", "b"),
              metadata={"a": [1, 2.5, None, True, {"b": "\0"}]}, **times),
        version("7", "Bert-2", status="failed", reason="it is broken",
                artifact=Artifact(digest="f" * 64, size_bytes=2**40, format="zip", source="s3://a"),
                signature=SIGNATURE, description="d", tags=("x",), metadata={"k": -1},
                metrics={"f1": 0.1 + 0.2, "big": 1e300}, created_by="bob", **times),
        alias("live", "Bert-2", "7", previous="6", updated_by="bob", **times),
        endpoint("t-1", protocol="oip-grpc", models=("a", "b"), weight=0.25,
                 labels={"zone": "eu"}, enabled=False, max_in_flight=7, tls="mesh",
                 grpc_url="grpcs://t-1:8001", **times),
        route("r-1", targets=(Target(model="a", version="1", weight=0.9, name="new",
                                     endpoints={"zone": "eu"}), Target(model="b")),
              rules=(RouteRule(match=Match(headers={"x-a": "é"}, tenants=("t",),
                                           principals=("ann",)), targets=(Target(model="b"),)),),
              fallbacks=(Target(model="c"),),
              shadows=(Shadow(target=Target(model="d"), share=0.25),),
              sticky=Sticky(by="header", header="x-user"), force_header="x-target",
              policy=RoutePolicy(balancer="random", hash_header="x-h", timeout_s=0.5,
                                 try_timeout_s=0.1, max_attempts=2, hedge_percentile=99.9),
              description="both", **times),
        key("deploy", digest="a" * 64, scopes=("models:read", "infer"), expires_at=at(9),
            revoked_at=at(8), **times),
    ]  # fmt: skip


def _common(prefix: str) -> dict[str, Any]:
    return {
        "tenant": TENANT,
        "id": f"{prefix}_{next(_numbers):026}",
        "created_at": START,
        "updated_at": START,
    }
