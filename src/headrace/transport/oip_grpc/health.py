"""grpc.health.v1: what load balancers and Kubernetes' probes ask. Watch is not offered."""

from __future__ import annotations

from collections.abc import Callable

from headrace.domain.errors import UnknownModel
from headrace.transport.oip_grpc import schema
from headrace.transport.oip_grpc.edge import Exchange, Rpc
