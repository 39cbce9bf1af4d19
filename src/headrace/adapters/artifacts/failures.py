"""What the disk says, in the platform's errors."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Final

from headrace.domain.errors import StorageFull, StoreUnavailable

RETRY_AFTER_S: Final = 1.0
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def disk(what: str) -> Iterator[None]:
    """Translate the OSErrors of a block that does `what`, as "store the artifact".

    Raises:
        StorageFull: the disk, or the quota on it, is used up.
        StoreUnavailable: any other failure.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            msg = f"cannot {what}: there is no room left on the disk; free some and send it again"
            raise StorageFull(msg) from error
        msg = f"cannot {what}: {error.strerror or type(error).__name__}"
        raise StoreUnavailable(msg, retry_after_s=RETRY_AFTER_S) from error
