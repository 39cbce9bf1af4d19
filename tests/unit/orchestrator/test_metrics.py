from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from headrace.orchestrator.metrics import OrchestratorMetrics
from headrace.telemetry.metrics import Metrics

GAUGES = {"headrace_queue_requests", "headrace_executor_hung_instances", "headrace_model_ready"}


def _samples(metrics: Metrics) -> set[tuple[str, str, str]]:
    body, _ = metrics.render()
    return {
        (family.name, sample.labels["model"], sample.labels["version"])
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if "version" in sample.labels and "model" in sample.labels
    }


def test_a_version_that_is_gone_loses_its_gauges_and_keeps_its_counts() -> None:
    metrics = Metrics(version="test")
    orchestrator = OrchestratorMetrics(metrics)
    for version in ("1", "2"):
        orchestrator.version("m", version).abandoned.value += 1
        orchestrator.ready.labels("m", version).value = 1
    assert {name for name, _, version in _samples(metrics) if version == "1"} >= GAUGES
    orchestrator.forget("m", "1", counts=False)
    left = {name for name, _, version in _samples(metrics) if version == "1"}
    assert not left & GAUGES
    assert "headrace_executor_abandoned" in left
    assert {name for name, _, version in _samples(metrics) if version == "2"} >= GAUGES


def test_a_version_that_comes_back_counts_on() -> None:
    orchestrator = OrchestratorMetrics(Metrics(version="test"))
    orchestrator.version("m", "1").queue_seconds.observe(0.5)
    orchestrator.forget("m", "1", counts=False)
    assert orchestrator.version("m", "1").queue_seconds.count == 1


def test_forgetting_what_was_never_known_is_harmless() -> None:
    OrchestratorMetrics(Metrics(version="test")).forget("m", "1", counts=False)


def test_all_that_is_told_of_a_version_can_go_with_it() -> None:
    metrics = Metrics(version="test")
    orchestrator = OrchestratorMetrics(metrics)
    version = orchestrator.version("m", "1")
    version.batch_rows.observe(1)
    version.abandoned.value += 1
    orchestrator.forget("m", "1", counts=True)
    assert b'model="m"' not in metrics.render("")[0]
