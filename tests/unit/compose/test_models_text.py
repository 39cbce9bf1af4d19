from __future__ import annotations

import json
import shlex

import pytest
from rich.console import Console
from rich.table import Table

from headrace.compose import models_text as text
from headrace.compose import text_table
from headrace.compose.registry_views import (
    Check,
    Latency,
    Model,
    Signature,
    Statistics,
    Tensor,
    Version,
)

URL = "http://127.0.0.1:8080"


def version(*inputs: Tensor) -> Version:
    return Version(model="iris", version="2", status="ready", signature=Signature(inputs=inputs))


def shown(table: Table) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def request_of(command: str) -> dict[str, object]:
    words = shlex.split(command.replace("\\\n", " "))
    found: dict[str, object] = json.loads(words[words.index("-d") + 1])
    return found


# curl


def test_an_example_request_fills_open_axes_with_one_and_tensors_with_nothing() -> None:
    asked = version(
        Tensor("x", "FP32", (-1, 2)), Tensor("t", "BYTES", (-1, 1)), Tensor("b", "BOOL", (1,))
    )
    command = text.curl(URL, asked, asked_as="2", with_token=False)
    assert f"{URL}/v2/models/iris/versions/2/infer" in shlex.split(command)
    assert request_of(command) == {
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0, 0]},
            {"name": "t", "datatype": "BYTES", "shape": [1, 1], "data": [""]},
            {"name": "b", "datatype": "BOOL", "shape": [1], "data": [False]},
        ]
    }


def test_an_example_leaves_out_what_may_be_left_out() -> None:
    asked = version(Tensor("x", "FP32", (1,)), Tensor("mask", "FP32", (1,), optional=True))
    command = text.curl(URL, asked, asked_as="2", with_token=False)
    assert "mask" not in str(request_of(command))


@pytest.mark.parametrize(
    "tensor", [Tensor("x", "FP16", (1,)), Tensor("x", "FP32", (-1, 3, 224, 224))]
)
def test_without_a_short_request_in_json_the_example_asks_what_is_taken(tensor: Tensor) -> None:
    command = text.curl(URL, version(tensor), asked_as="champion", with_token=False)
    assert command == f"curl -sS --noproxy '*' {URL}/v2/models/iris/versions/champion"


def test_a_name_with_a_quote_cannot_leave_its_place_in_the_shell() -> None:
    asked = version(Tensor("x'; rm -rf ~ #", "FP32", (1,)))
    command = text.curl(URL, asked, asked_as="2", with_token=False)
    assert "x'; rm -rf ~ #" in str(request_of(command))


def test_an_example_names_the_variable_of_the_token_and_not_the_token() -> None:
    command = text.curl(URL, version(), asked_as="2", with_token=True)
    assert '-H "Authorization: Bearer $HEADRACE_TOKEN"' in command


def test_proxies_are_passed_by_on_this_machine_only() -> None:
    assert "--noproxy" not in text.curl("https://host", version(), asked_as="2", with_token=False)


# Tables and lines


def test_what_would_steer_a_terminal_is_shown_as_what_it_is() -> None:
    table = text.models_table([Model("iris", description="[red]\x1b[2J\n\x9b")])
    assert "[red]\\u001b[2J\\n\\u009b" in shown(table)


def test_a_table_has_every_check_with_its_outcome() -> None:
    table = text.checks_table([Check("warm_up", "passed", "1.0 ms"), Check("status", "failed")])
    assert [line.split() for line in shown(table).splitlines()[2:]] == [
        ["warm", "up", "passed", "1.0", "ms"],
        ["status", "failed"],
    ]


def test_a_version_that_was_never_asked_says_so() -> None:
    lines = list(text.version_lines(version(), [], Statistics(0, 0, Latency())))
    assert "  last used    never" in lines
    assert not any("latency" in line for line in lines)


def test_long_outputs_of_smoke_inputs_are_cut() -> None:
    (line,) = text.output_lines([{"y": {"shape": [1, 9], "data": list(range(9))}}])
    assert line == "smoke input 1: y [1, 9] [0,1,2,3,4,5,6,7] …"


# Values


@pytest.mark.parametrize(
    ("size", "told"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (5 * 1024**4, "5.0 TiB")],
)
def test_sizes_are_told_in_binary_units(size: int, told: str) -> None:
    assert text.byte_size(size) == told


@pytest.mark.parametrize(("value", "told"), [(None, "-"), (0.0123, "12.3 ms"), (2.0, "2.0 s")])
def test_times_are_told_in_milliseconds_or_seconds(value: float | None, told: str) -> None:
    assert text.seconds(value) == told


def test_a_moment_that_is_none_is_shown_as_it_came() -> None:
    assert text_table.moment("soon") == "soon"
