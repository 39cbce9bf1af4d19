"""What librdkafka has to say, in our log, and not more than somebody would read."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

_logger = logging.getLogger(__name__)
#: A broker that is away would be told of some times a second, by each connection.
_EVERY_S: Final = 10.0


class Quiet:
    """Takes the place of a logger in librdkafka's clients. `clock` answers growing seconds."""

    def __init__(self, name: str, *, clock: Callable[[], float]) -> None:
        self._name = name
        self._clock = clock
        self._lock = threading.Lock()
        self._next = float("-inf")
        self._kept_back = 0

    def log(self, level: int, message: str, *arguments: object) -> None:
        """One line in a while; the next one says how many there were between."""
        del level  # none of it is more than a warning: the client goes on by itself
        now = self._clock()
        with self._lock:
            if now < self._next:
                self._kept_back += 1
                return
            self._next = now + _EVERY_S
            kept_back, self._kept_back = self._kept_back, 0
        text = message % arguments if arguments else message
        if kept_back:
            text = f"{text} ({kept_back} more lines since the last one)"
        _logger.warning("Kafka %s: %s", self._name, text)
