"""Following a batch to its end, through restarts of the platform."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

from headrace.compose.batch_client import BatchClient, is_passing
from headrace.compose.batch_views import Batch
from headrace.compose.platform_client import Read
from headrace.domain.errors import HeadraceError

#: Seconds without any answer after which it is not waited any longer.
LIMIT_S: Final = 600.0
_FIRST_WAIT_S: Final = 0.25
_MAX_WAIT_S: Final = 5.0
_POLL_S: Final = 1.0


class Patience:
    """Waits between tries, a little longer each time, and gives up in the end.

    `tell` hears a sentence, once for each time that the platform does not answer.
    """

    def __init__(
        self,
        *,
        tell: Callable[[str], None],
        limit_s: float = LIMIT_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._tell = tell
        self._limit_s = limit_s
        self._clock = clock
        self._sleep = sleep
        self._since: float | None = None  # there was no answer
        self._wait_s = _FIRST_WAIT_S

    def answered(self) -> None:
        """There was an answer: all begins anew."""
        self._since = None
        self._wait_s = _FIRST_WAIT_S

    def bear(self, error: HeadraceError) -> None:
        """Wait until it may be tried again; raises `error` where that is of no use."""
        now = self._clock()
        if self._since is None:
            self._since = now
            if is_passing(error):
                self._tell(f"{error.message.partition('; ')[0]}; trying again")
        if not is_passing(error) or now - self._since >= self._limit_s:
            raise error
        self._sleep(self._wait_s)
        self._wait_s = min(self._wait_s * 2, _MAX_WAIT_S)

    def pause(self) -> None:
        """Wait before it is asked again what was answered."""
        self._sleep(_POLL_S)


def follow(client: BatchClient, id_: str, patience: Patience) -> Iterator[Read[Batch]]:
    """What becomes of a batch; the last item is the batch as it ended.

    Raises:
        Refused: it is not there, or not for this caller.
        Unreachable: the platform did not answer for too long.
    """
    while True:
        try:
            for batch in client.events(id_):
                patience.answered()
                yield batch
                if batch.value.has_ended:
                    return
        except HeadraceError:
            pass  # where nothing streams, or not now, it is asked from time to time
        try:
            batch = client.batch(id_)
        except HeadraceError as error:
            patience.bear(error)
            continue
        patience.answered()
        yield batch
        if batch.value.has_ended:
            return
        patience.pause()
