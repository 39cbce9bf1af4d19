"""What there is to measure, by name; `--only` picks by a part of the name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bench.server import SUBJECTS, Subject
from bench.workload import MODELS, Wire

CONCURRENCY: Final = (1, 16, 64)
IDLE: Final = "idle"
REGISTRY: Final = "registry"
GATEWAY: Final = "gateway"
OVERLOAD: Final = "overload"
_WIRES: Final[dict[Subject, tuple[Wire, ...]]] = {
    "headrace": ("json", "binary"),
    "naive": ("json",),
}


@dataclass(frozen=True)
class Scenario:
    """Requests of one kind to one server."""

    model: str
    subject: Subject
    wire: Wire
    concurrency: int

    @property
    def name(self) -> str:
        return f"{self.model}/{self.subject}/{self.wire}/c{self.concurrency}"


def compute_name(model: str) -> str:
    """The scenario that measures the compute limit of a model."""
    return f"{model}/compute"


SCENARIOS: Final = tuple(
    Scenario(model, subject, wire, concurrency)
    for model in MODELS
    for subject in SUBJECTS
    for wire in _WIRES[subject]
    for concurrency in CONCURRENCY
)


@dataclass(frozen=True)
class Plan:
    """What one run measures."""

    scenarios: tuple[Scenario, ...]
    compute: tuple[str, ...]  # models
    idle: bool
    registry: bool
    gateway: bool
    overload: bool

    @property
    def empty(self) -> bool:
        alone = self.idle or self.registry or self.gateway or self.overload
        return not (self.scenarios or self.compute or alone)

    def of(self, model: str, subject: Subject) -> list[Scenario]:
        return [s for s in self.scenarios if (s.model, s.subject) == (model, subject)]

    def has(self, model: str) -> bool:
        return model in self.compute or any(s.model == model for s in self.scenarios)


def plan(only: str = "") -> Plan:
    """Everything whose name contains `only`."""
    return Plan(
        tuple(scenario for scenario in SCENARIOS if only in scenario.name),
        tuple(model for model in MODELS if only in compute_name(model)),
        only in IDLE,
        only in REGISTRY,
        only in GATEWAY,
        only in OVERLOAD,
    )
