from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.adapters.artifacts import objects
from headrace.domain.errors import InvalidRequest

DIGEST = "ab" + "0" * 62


def test_a_key_is_spread_by_the_first_two_digits() -> None:
    assert objects.key(DIGEST) == f"artifacts/sha256/ab/{DIGEST}"


@pytest.mark.parametrize("text", [DIGEST, DIGEST.upper(), f"sha256:{DIGEST}", f"SHA256:{DIGEST}"])
def test_a_digest_is_read_in_any_form(text: str) -> None:
    assert objects.checked_digest(text) == DIGEST


@pytest.mark.parametrize(
    "text", ["", DIGEST[1:], f"{DIGEST}0", f"{DIGEST}\n", "g" * 64, "\u0660" * 64]
)
def test_what_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="64 hexadecimal digits"):
        objects.checked_digest(text)
    assert not objects.is_digest(text)


def test_only_what_begins_as_configured_is_copied() -> None:
    assert objects.checked_key("in/x.onnx", "in/x.onnx", copy_from="in/") == "in/x.onnx"
    with pytest.raises(InvalidRequest, match="from below 'in/'"):
        objects.checked_key("out/x.onnx", "out/x.onnx", copy_from="in/")


def test_a_tenants_batch_file_is_nobodys_model() -> None:
    with pytest.raises(InvalidRequest, match="files of batch jobs"):
        objects.checked_key("batch/files/x", "batch/files/x", copy_from="")


@given(
    path=st.lists(st.sampled_from(["..", ".", "", "a", "artifacts", "batch"]), max_size=5).map(
        "/".join
    )
)
def test_a_key_that_is_taken_stays_where_callers_may_look(path: str) -> None:
    try:
        key = objects.checked_key(path, path, copy_from="")
    except InvalidRequest:
        return
    assert key == path
    assert not {"", ".", ".."} & set(key.split("/"))
    assert not key.startswith((objects.FOLDER, objects.BATCH))
