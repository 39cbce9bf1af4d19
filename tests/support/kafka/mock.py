"""The Kafka cluster that librdkafka brings for its own tests: there at once, failing on demand.

It speaks the real protocol on TCP; it has no admin API and forgets everything at its end.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import confluent_kafka

#: Numbers of the protocol's requests.
PRODUCE: Final = 0
METADATA: Final = 3
OFFSET_COMMIT: Final = 8
#: Numbers of the protocol's errors.
REQUEST_TIMED_OUT: Final = 7
COORDINATOR_LOAD_IN_PROGRESS: Final = 14
TOPIC_AUTHORIZATION_FAILED: Final = 29

_ERROR_BYTES: Final = 512


class MockKafka:
    """Brokers with the numbers from 1, in this process."""

    def __init__(self, brokers: int = 1) -> None:
        self._brokers = brokers
        self._c = _library()
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        conf = self._c.rd_kafka_conf_new()
        self._client = self._c.rd_kafka_new(0, conf, error, _ERROR_BYTES)
        assert self._client, error.value
        self._cluster = self._c.rd_kafka_mock_cluster_new(self._client, brokers)
        self.bootstrap: str = self._c.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()
        self._c.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, 50)

    def create_topic(self, name: str, partitions: int) -> None:
        """A topic with one copy of each partition."""
        failed = self._c.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, 1)
        assert failed == 0, name

    def down(self) -> None:
        """Let no broker answer."""
        for broker in range(1, self._brokers + 1):
            self._c.rd_kafka_mock_broker_set_down(self._cluster, broker)

    def up(self) -> None:
        """Let them answer again."""
        for broker in range(1, self._brokers + 1):
            self._c.rd_kafka_mock_broker_set_up(self._cluster, broker)

    def fail(self, request: int, errors: Sequence[int]) -> None:
        """Answer the next requests of a kind with errors, one each."""
        codes = (ctypes.c_int * len(errors))(*errors)
        self._c.rd_kafka_mock_push_request_errors_array(self._cluster, request, len(codes), codes)

    def close(self) -> None:
        """End it."""
        self._c.rd_kafka_mock_cluster_destroy(self._cluster)
        self._c.rd_kafka_destroy(self._client)


@contextlib.contextmanager
def mocking(brokers: int = 1) -> Iterator[MockKafka]:
    """A mock cluster until the block ends."""
    cluster = MockKafka(brokers)
    try:
        yield cluster
    finally:
        cluster.close()


def _library() -> ctypes.CDLL:
    """The very librdkafka that the client uses: it is loaded once."""
    folder = Path(confluent_kafka.__file__).parent.with_name("confluent_kafka.libs")
    library = ctypes.CDLL(str(next(folder.glob("librdkafka*.so*"))))
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    broker = ctypes.c_int32
    signatures = {
        "rd_kafka_conf_new": (pointer, []),
        "rd_kafka_new": (pointer, [number, pointer, text, ctypes.c_size_t]),
        "rd_kafka_destroy": (None, [pointer]),
        "rd_kafka_mock_cluster_new": (pointer, [pointer, number]),
        "rd_kafka_mock_cluster_destroy": (None, [pointer]),
        "rd_kafka_mock_cluster_bootstraps": (text, [pointer]),
        "rd_kafka_mock_topic_create": (number, [pointer, text, number, number]),
        "rd_kafka_mock_broker_set_down": (number, [pointer, broker]),
        "rd_kafka_mock_broker_set_up": (number, [pointer, broker]),
        "rd_kafka_mock_group_initial_rebalance_delay_ms": (None, [pointer, broker]),
        "rd_kafka_mock_push_request_errors_array": (
            None,
            [pointer, ctypes.c_int16, ctypes.c_size_t, ctypes.POINTER(number)],
        ),
    }
    for name, (answer, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = answer, arguments
    return library
