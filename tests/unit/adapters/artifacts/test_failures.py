from __future__ import annotations

import errno
import os

import pytest

from headrace.adapters.artifacts.failures import disk
from headrace.domain.errors import InvalidRequest, StorageFull, StoreUnavailable


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_said_to_be_full(number: int) -> None:
    with pytest.raises(StorageFull, match="no room left"), disk("store the artifact"):
        raise OSError(number, os.strerror(number), "/srv/secret/path")


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EROFS, errno.EMFILE])
def test_other_failures_may_pass(number: int) -> None:
    with pytest.raises(StoreUnavailable) as caught, disk("store the artifact"):
        raise OSError(number, os.strerror(number), "/srv/secret/path")
    assert caught.value.retry_after_s == 1
    assert "/srv" not in caught.value.message


def test_what_was_understood_already_stays() -> None:
    with pytest.raises(InvalidRequest, match="x"), disk("store the artifact"):
        raise InvalidRequest("x")
