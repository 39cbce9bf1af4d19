from __future__ import annotations

import pytest

from headrace.adapters.artifacts.batch_keys import checked, checked_prefix, is_prefix


@pytest.mark.parametrize(
    "key", ["batch/x", "batch/jobs/batch_1/00000000/1/output.jsonl", "batch/a.b"]
)
def test_a_key_below_batch_is_taken(key: str) -> None:
    assert checked(key) == key
    assert not is_prefix(key)
    assert is_prefix(f"{key}/")
    assert checked_prefix(f"{key}/") == f"{key}/"


@pytest.mark.parametrize(
    "key",
    ["", "batch", "batch/", "/batch/x", "batches/x", "artifacts/sha256/ab", "batch/../artifacts/x",
     "batch/x/..", "batch/./x", "batch//x", "batch/x//", "/"],
)  # fmt: skip
def test_a_key_that_leads_elsewhere_is_a_mistake(key: str) -> None:
    with pytest.raises(ValueError, match="no key of a batch object"):
        is_prefix(key)


@pytest.mark.parametrize(
    "prefix", ["batch/x", "batch", "", "/", "artifacts/", "batch/", "batch/../"]
)
def test_what_is_listed_is_below_a_slash(prefix: str) -> None:
    with pytest.raises(ValueError, match=r"no prefix|no key"):
        checked_prefix(prefix)
