from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from headrace.domain.scopes import is_scope
from headrace.transport.management.fields import Scope

_SCOPE: TypeAdapter[str] = TypeAdapter(Scope)
_PLAIN = ["infer", "batch", "models:read", "models:write", "admin"]


def _is_taken(text: str) -> bool:
    try:
        _SCOPE.validate_python(text)
    except ValidationError:
        return False
    return True


@given(
    st.one_of(
        st.text(),
        st.sampled_from(_PLAIN),
        st.from_regex(r"infer:[A-Za-z0-9._*?-]{0,3}\n?"),
        st.text(st.sampled_from("infer:*?a-Z\né "), max_size=140).map(lambda text: f"infer:{text}"),
    )
)
def test_the_document_takes_exactly_what_is_a_scope(text: str) -> None:
    assert _is_taken(text) == is_scope(text)


@pytest.mark.parametrize("text", [*_PLAIN, "infer:" + "a" * 128, "infer:*", "infer:fraud-?"])
def test_every_form_of_a_scope_is_taken(text: str) -> None:
    assert _is_taken(text)
    assert is_scope(text)


@pytest.mark.parametrize(
    "text", ["", "infer:", "infer:" + "a" * 129, "models:*", "Admin", "admin\n"]
)
def test_what_grants_nothing_is_not_taken(text: str) -> None:
    assert not _is_taken(text)
    assert not is_scope(text)
