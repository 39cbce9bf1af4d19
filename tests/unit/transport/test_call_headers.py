from __future__ import annotations

import random

from headrace.domain.calls import TraceContext
from headrace.telemetry.trace_context import RequestIds
from headrace.transport.call_headers import read_request_id, read_trace

IDS = RequestIds(rng=random.Random(1))
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_clients_own_request_id_is_taken_over() -> None:
    assert read_request_id({b"x-request-id": b"mine-1"}, IDS) == "mine-1"


def test_a_request_id_that_could_break_a_log_line_is_replaced() -> None:
    made = {
        read_request_id(headers, IDS)
        for headers in ({}, {b"x-request-id": b"a b"}, {b"x-request-id": b"\xff\n"})
    }
    assert len(made) == 3
    assert not made & {"a b", "\xff\n"}


def test_a_trace_is_read_with_its_state() -> None:
    headers = {b"traceparent": TRACEPARENT.encode(), b"tracestate": b"a=1"}
    assert read_trace(headers, IDS) == TraceContext(TRACEPARENT, "a=1")


def test_without_a_traceparent_there_is_no_trace() -> None:
    assert read_trace({b"tracestate": b"a=1"}, IDS) is None
