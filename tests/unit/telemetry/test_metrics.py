from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families

from headrace.telemetry.metrics import SECONDS, Metrics

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
TEXT = "text/plain; version=0.0.4; charset=utf-8"

# the Accept headers that Prometheus sends
PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;"
    "version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;"
    "escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(version="1.2.3")


def parse_text(metrics: Metrics) -> dict[str, Metric]:
    body, _ = metrics.render()
    families: Iterable[Metric] = text_string_to_metric_families(body.decode())
    return {family.name: family for family in families}


def parse_openmetrics(metrics: Metrics) -> dict[str, Metric]:
    body, _ = metrics.render("application/openmetrics-text")
    parse: Callable[[str], Iterable[Metric]] = openmetrics_parser.text_string_to_metric_families
    families = parse(body.decode())
    return {family.name: family for family in families}


Parse = Callable[[Metrics], dict[str, Metric]]
both_formats = pytest.mark.parametrize("parse", [parse_text, parse_openmetrics])


def samples(family: Metric) -> dict[tuple[str, tuple[str, ...]], float]:
    return {(s.name, tuple(s.labels.values())): s.value for s in family.samples}


@both_formats
def test_a_counter_is_rendered_with_its_value_for_each_child(
    metrics: Metrics, parse: Parse
) -> None:
    family = metrics.counter("headrace_requests_total", "Requests.", ("model", "code"))
    family.labels("bert", "ok").value += 2
    family.labels("bert", "queue_full").value += 1

    rendered = parse(metrics)["headrace_requests"]

    assert rendered.type == "counter"
    assert rendered.documentation == "Requests."
    assert [(s.name, s.labels, s.value) for s in rendered.samples] == [
        ("headrace_requests_total", {"model": "bert", "code": "ok"}, 2),
        ("headrace_requests_total", {"model": "bert", "code": "queue_full"}, 1),
    ]


@both_formats
def test_a_gauge_is_rendered_with_its_last_value(metrics: Metrics, parse: Parse) -> None:
    gauge = metrics.gauge("headrace_queue_requests", "Waiting.").labels()
    gauge.value = 7
    gauge.value -= 2

    rendered = parse(metrics)["headrace_queue_requests"]

    assert rendered.type == "gauge"
    assert samples(rendered) == {("headrace_queue_requests", ()): 5}


@both_formats
def test_buckets_of_a_histogram_are_cumulative_and_hold_values_equal_to_their_bound(
    metrics: Metrics, parse: Parse
) -> None:
    family = metrics.histogram("headrace_wait_seconds", "Wait.", ("model",), buckets=(0.1, 1, 5))
    wait = family.labels("bert")
    for seconds in (0.05, 0.1, 0.5, 1, 5.5):
        wait.observe(seconds)

    rendered = parse(metrics)["headrace_wait_seconds"]

    assert rendered.type == "histogram"
    assert {s.labels["le"]: s.value for s in rendered.samples if s.name.endswith("_bucket")} == {
        "0.1": 2,
        "1.0": 4,
        "5.0": 4,
        "+Inf": 5,
    }
    assert samples(rendered)["headrace_wait_seconds_count", ("bert",)] == 5
    assert samples(rendered)["headrace_wait_seconds_sum", ("bert",)] == pytest.approx(7.15)
    assert wait.count == 5


def test_the_default_buckets_are_rising() -> None:
    assert list(SECONDS) == sorted(set(SECONDS))


def test_a_metric_without_labels_is_there_before_it_is_used(metrics: Metrics) -> None:
    metrics.counter("headrace_reloads_total", "Reloads.")

    assert samples(parse_text(metrics)["headrace_reloads"]) == {("headrace_reloads_total", ()): 0}


def test_the_same_labels_give_the_same_child(metrics: Metrics) -> None:
    family = metrics.counter("headrace_requests_total", "Requests.", ("model",))

    assert family.labels("bert") is family.labels("bert")
    assert family.labels("bert") is not family.labels("resnet")


def test_a_removed_child_is_rendered_no_more_and_begins_anew(metrics: Metrics) -> None:
    family = metrics.gauge("headrace_model_ready", "Ready.", ("model",))
    family.labels("bert").value = 1
    family.labels("resnet").value = 1

    family.remove("bert")
    family.remove("never-there")

    rendered = parse_text(metrics)["headrace_model_ready"]
    assert samples(rendered) == {("headrace_model_ready", ("resnet",)): 1}
    assert family.labels("bert").value == 0


@pytest.mark.parametrize("values", [(), ("bert",), ("bert", "1", "x")])
def test_a_wrong_number_of_label_values_is_refused(
    metrics: Metrics, values: tuple[str, ...]
) -> None:
    family = metrics.counter("headrace_requests_total", "Requests.", ("model", "version"))

    with pytest.raises(ValueError, match="has the labels"):
        family.labels(*values)


def test_children_over_the_bound_share_one_and_are_counted(metrics: Metrics) -> None:
    family = metrics.counter(
        "headrace_requests_total", "Requests.", ("model", "version"), max_children=2
    )
    for model in ("a", "b", "c", "d", "c"):
        family.labels(model, "1").value += 1
    family.labels("a", "1").value += 1

    rendered = parse_text(metrics)

    assert samples(rendered["headrace_requests"]) == {
        ("headrace_requests_total", ("a", "1")): 2,
        ("headrace_requests_total", ("b", "1")): 1,
        ("headrace_requests_total", ("_other", "_other")): 3,
    }
    assert samples(rendered["headrace_metrics_overflow"]) == {
        ("headrace_metrics_overflow_total", ("headrace_requests_total",)): 3
    }


def test_a_removed_child_makes_room_for_another(metrics: Metrics) -> None:
    family = metrics.gauge("headrace_model_ready", "Ready.", ("model",), max_children=1)
    family.labels("a")
    family.labels("b").value = 9

    family.remove("a")
    family.labels("c").value = 3

    assert samples(parse_text(metrics)["headrace_model_ready"]) == {
        ("headrace_model_ready", ("_other",)): 9,
        ("headrace_model_ready", ("c",)): 3,
    }


def test_the_shared_child_can_be_removed_too(metrics: Metrics) -> None:
    family = metrics.counter("headrace_requests_total", "Requests.", ("model",), max_children=1)
    family.labels("a")
    family.labels("b").value += 1

    family.remove("_other")
    family.labels("c").value += 1

    assert samples(parse_text(metrics)["headrace_requests"]) == {
        ("headrace_requests_total", ("a",)): 0,
        ("headrace_requests_total", ("_other",)): 1,
    }


@both_formats
@pytest.mark.parametrize(
    ("given", "rendered"),
    [
        ('quote " backslash \\ newline \n end', 'quote " backslash \\ newline \n end'),
        ("ünï", "ünï"),
        ("lone \ud800 surrogate", "lone ? surrogate"),
        ("x" * 10_000, "x" * 256),
    ],
    ids=["escapes", "unicode", "surrogate", "long"],
)
def test_no_label_value_can_spoil_the_rendering(
    metrics: Metrics, parse: Parse, given: str, rendered: str
) -> None:
    family = metrics.counter("headrace_requests_total", "Requests.", ("model",))
    family.labels(given).value += 1
    family.labels(given).value += 1

    assert samples(parse(metrics)["headrace_requests"]) == {
        ("headrace_requests_total", (rendered,)): 2
    }


def test_callbacks_set_gauges_before_every_rendering(metrics: Metrics) -> None:
    gauge = metrics.gauge("headrace_queue_requests", "Waiting.").labels()
    queue = [1, 2, 3]

    def measure() -> None:
        gauge.value = len(queue)

    metrics.observe(measure)

    assert samples(parse_text(metrics)["headrace_queue_requests"]).popitem()[1] == 3
    queue.clear()
    assert samples(parse_text(metrics)["headrace_queue_requests"]).popitem()[1] == 0


def test_a_callback_that_fails_is_logged_and_counted_and_leaves_the_others_alone(
    metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    gauge = metrics.gauge("headrace_queue_requests", "Waiting.").labels()

    def fail() -> None:
        raise RuntimeError("the store is gone")

    def measure() -> None:
        gauge.value = 4

    metrics.observe(fail)
    metrics.observe(measure)
    with caplog.at_level(logging.ERROR):
        rendered = parse_text(metrics)

    assert "the store is gone" in caplog.text
    assert samples(rendered["headrace_queue_requests"]).popitem()[1] == 4
    assert samples(rendered["headrace_metrics_callback_errors"]).popitem()[1] == 1


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/html", TEXT),
        ("text/plain;version=0.0.4", TEXT),
        ("text/plain;version=nonsense", TEXT),
        ("application/openmetrics-text", OPENMETRICS),
        ("Application/OpenMetrics-Text; version=1.0.0; charset=utf-8", OPENMETRICS),
        ("application/openmetrics-text;version=0.0.1", TEXT),
        ("application/openmetrics-text;version=9.9.9", TEXT),
        ("application/openmetrics-text;q=0", TEXT),
        ("application/openmetrics-text;q=nonsense", TEXT),
        ("application/openmetrics-text;q=0.3,text/plain;q=0.5", TEXT),
        (PROMETHEUS_2, OPENMETRICS),
        (PROMETHEUS_3, OPENMETRICS),
    ],
)
def test_the_format_follows_the_accept_header(
    metrics: Metrics, accept: str, content_type: str
) -> None:
    body, answered = metrics.render(accept)

    assert answered == content_type
    assert body.endswith(b"# EOF\n") == (content_type == OPENMETRICS)


@both_formats
def test_process_and_interpreter_and_version_are_reported(metrics: Metrics, parse: Parse) -> None:
    rendered = parse(metrics)

    assert {"process_cpu_seconds", "process_open_fds", "python_gc_collections"} <= set(rendered)
    assert samples(rendered["python_info"]).popitem()[1] == 1
    build = rendered.get("headrace_build") or rendered["headrace_build_info"]
    assert [(s.name, s.labels) for s in build.samples] == [
        ("headrace_build_info", {"version": "1.2.3"})
    ]


def test_two_platforms_in_a_process_count_apart() -> None:
    one, other = Metrics(version="1"), Metrics(version="1")
    one.counter("headrace_reloads_total", "Reloads.").labels().value += 1
    other.counter("headrace_reloads_total", "Reloads.")

    assert samples(parse_text(one)["headrace_reloads"]).popitem()[1] == 1
    assert samples(parse_text(other)["headrace_reloads"]).popitem()[1] == 0


@both_formats
def test_every_family_has_a_help_text(metrics: Metrics, parse: Parse) -> None:
    assert [name for name, family in parse(metrics).items() if not family.documentation] == []


@pytest.mark.parametrize(
    "name",
    [
        "requests_total",
        "headrace_total",
        "headrace__requests_total",
        "headrace_Requests_total",
        "headrace_requests_total\n",
        "headrace_requests",
        "headrace_request_ms_total",
        "headrace_sent_kb_total",
        "headrace_request_count_total",
    ],
)
def test_a_counter_with_a_wrong_name_is_refused(metrics: Metrics, name: str) -> None:
    with pytest.raises(ValueError, match="must"):
        metrics.counter(name, "Help.")


@pytest.mark.parametrize(
    "name",
    [
        "queue_requests",
        "headrace_requests_total",
        "headrace_queue_count",
        "headrace_build_info",
        "headrace_latency_milliseconds",
        "headrace_cpu_percent",
        "headrace_",
    ],
)
def test_a_gauge_with_a_wrong_name_is_refused(metrics: Metrics, name: str) -> None:
    with pytest.raises(ValueError, match="must"):
        metrics.gauge(name, "Help.")


@pytest.mark.parametrize("name", ["headrace_latency", "headrace_latency_ms", "latency_seconds"])
def test_a_histogram_without_a_base_unit_is_refused(metrics: Metrics, name: str) -> None:
    with pytest.raises(ValueError, match="must"):
        metrics.histogram(name, "Help.")


@pytest.mark.parametrize(
    "buckets", [(), (1, 1), (2, 1), (1, float("inf")), (float("nan"),)], ids=str
)
def test_buckets_that_do_not_rise_are_refused(metrics: Metrics, buckets: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="finite and rising"):
        metrics.histogram("headrace_wait_seconds", "Wait.", buckets=buckets)


@pytest.mark.parametrize("help_text", ["", " \n"])
def test_an_empty_help_text_is_refused(metrics: Metrics, help_text: str) -> None:
    with pytest.raises(ValueError, match="needs a help text"):
        metrics.gauge("headrace_queue_requests", help_text)


@pytest.mark.parametrize("labels", [("le",), ("__name__",), ("Model",), ("",), ("a", "a")])
def test_a_wrong_label_is_refused(metrics: Metrics, labels: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="label"):
        metrics.gauge("headrace_queue_requests", "Waiting.", labels)


@pytest.mark.parametrize(
    "name", ["headrace_requests", "headrace_metrics_overflow", "headrace_build"]
)
def test_a_name_that_is_taken_is_refused_whatever_the_kind(metrics: Metrics, name: str) -> None:
    metrics.counter("headrace_requests_total", "Requests.")

    with pytest.raises(ValueError, match="already registered"):
        metrics.gauge(name, "Help.")


def test_children_may_be_added_while_a_rendering_goes_over_them(metrics: Metrics) -> None:
    family = metrics.counter("headrace_requests_total", "Requests.", ("model",))
    family.labels("a")

    for (model,), _ in family.children():
        family.labels(model + "2")

    assert {values for values, _ in family.children()} == {("a",), ("a2",)}
