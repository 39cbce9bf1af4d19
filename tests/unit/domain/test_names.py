from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.domain.errors import InvalidRequest
from headrace.domain.names import is_name, require_name, version_order

FIRST = string.ascii_letters + string.digits
REST = FIRST + "._-"
NAMES = st.builds(str.__add__, st.sampled_from(FIRST), st.text(st.sampled_from(REST), max_size=127))


@pytest.mark.parametrize("name", ["m", "1", "model..1", "resnet-50_v1.5", "A" * 128, "0-"])
def test_letters_digits_dots_underscores_and_dashes_are_a_name(name: str) -> None:
    assert is_name(name)
    assert require_name("model", name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "-rf",
        "_private",
        "../etc",
        "a/../b",
        "/etc/passwd",
        "a/b",
        "a\\b",
        " ..",
        " ",
        " a",
        "a ",
        "a b",
        "a\t",
        "%2e%2e",
        "a%00",
        "a\0",
        "a\n",
        "a\r\n",
        "\ufeffa",
        "é",
        "a\u0301",
        "\u0661",  # a digit, but not one of ASCII
        "\uff41",  # a letter, likewise
        "\ud800",
        "a" * 129,
        "a" * 1_000_000,
    ],
)
def test_nothing_else_is(name: str) -> None:
    assert not is_name(name)
    with pytest.raises(InvalidRequest) as caught:
        require_name("model", name)

    message = caught.value.message
    assert message.startswith("model name '")
    assert "1 to 128 letters, digits, '.', '_' or '-'" in message
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 1000


@settings(max_examples=50, deadline=None)
@given(NAMES)
def test_every_name_of_the_rule_is_one(name: str) -> None:
    assert is_name(name)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_a_name_stays_where_it_is(text: str) -> None:
    if is_name(text):
        assert set(text) <= set(REST)
        assert text[0] in FIRST
        assert len(text) <= 128


def test_versions_that_are_numbers_are_ordered_by_value() -> None:
    versions = ["10", "9", "1", "2024-01", "rc", "0", "010", "v2"]
    assert sorted(versions, key=version_order) == [
        "0", "1", "9", "010", "10", "2024-01", "rc", "v2",
    ]  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(st.lists(NAMES, max_size=8))
def test_the_order_of_versions_is_one_order(versions: list[str]) -> None:
    ordered = sorted(versions, key=version_order)
    assert len({version_order(version) for version in versions}) == len(set(versions))
    numbers = [version for version in ordered if version.isdecimal()]
    assert ordered[: len(numbers)] == numbers, "numbers come first"
    assert [int(number) for number in numbers] == sorted(int(number) for number in numbers)
