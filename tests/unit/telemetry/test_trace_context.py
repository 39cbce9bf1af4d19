"""The cases follow those of the W3C trace-context test-suite, at its strict level."""

from __future__ import annotations

import random
import re

import pytest

from headrace.domain.calls import TraceContext
from headrace.telemetry.trace_context import RequestIds, accept, is_sampled, valid_request_id

TRACE_ID = "12345678901234567890123456789012"
PARENT = f"00-{TRACE_ID}-1234567890123456-01"
NEW_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00")


@pytest.fixture
def ids() -> RequestIds:
    return RequestIds(rng=random.Random(1))


def assert_begun_anew(context: TraceContext) -> None:
    assert NEW_TRACEPARENT.fullmatch(context.traceparent)
    assert context.trace_id not in {TRACE_ID, "0" * 32}
    assert context.tracestate == ""


def test_without_headers_an_unsampled_context_begins(ids: RequestIds) -> None:
    context = accept(None, None, ids)

    assert_begun_anew(context)
    assert not is_sampled(context)


def test_contexts_that_begin_here_differ(ids: RequestIds) -> None:
    assert len({accept(None, None, ids).trace_id for _ in range(100)}) == 100


@pytest.mark.parametrize("flags", ["00", "01", "02", "03", "ff"])
def test_a_valid_context_is_passed_on_unchanged(ids: RequestIds, flags: str) -> None:
    traceparent = f"00-{TRACE_ID}-1234567890123456-{flags}"

    assert accept(traceparent, None, ids) == TraceContext(traceparent)
    assert accept(traceparent, "foo=1,bar=2", ids) == TraceContext(traceparent, "foo=1,bar=2")


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "00",
        f"{PARENT},{PARENT}",  # the header occurred twice
        f"{PARENT}.",
        f"{PARENT}-",
        f"{PARENT}-what-the-future-will-be-like",
        f"{PARENT}\n",
        f"cc-{TRACE_ID}-1234567890123456-01.what-the-future-will-be-like",
        f"cc-{TRACE_ID}-1234567890123456-012",
        f"ff-{TRACE_ID}-1234567890123456-01",
        f"ff-{TRACE_ID}-1234567890123456-01-more",
        f".0-{TRACE_ID}-1234567890123456-01",
        f"0.-{TRACE_ID}-1234567890123456-01",
        f"000-{TRACE_ID}-1234567890123456-01",
        f"0000-{TRACE_ID}-1234567890123456-01",
        f"0-{TRACE_ID}-1234567890123456-01",
        f"CC-{TRACE_ID}-1234567890123456-01",
        f"00-{'0' * 32}-1234567890123456-01",
        f"cc-{'0' * 32}-1234567890123456-01",
        f"00-.{TRACE_ID[1:]}-1234567890123456-01",
        f"00-{TRACE_ID[:-1]}.-1234567890123456-01",
        f"00-{TRACE_ID[:-1]}A-1234567890123456-01",
        f"00-{TRACE_ID}3-1234567890123456-01",
        f"00-{TRACE_ID[:-1]}-1234567890123456-01",
        f"00-{TRACE_ID}-0000000000000000-01",
        f"cc-{TRACE_ID}-0000000000000000-01",
        f"00-{TRACE_ID}-.234567890123456-01",
        f"00-{TRACE_ID}-123456789012345.-01",
        f"00-{TRACE_ID}-123456789012345F-01",
        f"00-{TRACE_ID}-12345678901234567-01",
        f"00-{TRACE_ID}-123456789012345-01",
        f"00-{TRACE_ID}-1234567890123456-.0",
        f"00-{TRACE_ID}-1234567890123456-0.",
        f"00-{TRACE_ID}-1234567890123456-0A",
        f"00-{TRACE_ID}-1234567890123456-001",
        f"00-{TRACE_ID}-1234567890123456-1",
        f"00_{TRACE_ID}_1234567890123456_01",
        f"00-{TRACE_ID[:-1]}\N{ARABIC-INDIC DIGIT TWO}-1234567890123456-01",
        "0" * 100_000,
    ],
)
def test_a_malformed_traceparent_begins_a_new_context_and_drops_the_tracestate(
    ids: RequestIds, traceparent: str
) -> None:
    assert_begun_anew(accept(traceparent, "foo=1", ids))


def test_a_tracestate_without_traceparent_is_dropped(ids: RequestIds) -> None:
    assert_begun_anew(accept(None, "foo=1,bar=2", ids))


@pytest.mark.parametrize("more", ["", "-", "-what-the-future-will-be-like"])
@pytest.mark.parametrize(
    ("flags", "kept"), [("00", "00"), ("01", "01"), ("ff", "03"), ("fc", "00")]
)
def test_a_later_version_is_passed_on_as_what_version_00_knows_of_it(
    ids: RequestIds, more: str, flags: str, kept: str
) -> None:
    traceparent = f"cc-{TRACE_ID}-1234567890123456-{flags}{more}"

    assert accept(traceparent, "foo=1", ids) == TraceContext(
        f"00-{TRACE_ID}-1234567890123456-{kept}", "foo=1"
    )


@pytest.mark.parametrize(
    "traceparent", [f" {PARENT}", f"\t{PARENT}", f"{PARENT} ", f"{PARENT}\t", f"\t {PARENT} \t"]
)
def test_blanks_around_a_traceparent_do_not_count(ids: RequestIds, traceparent: str) -> None:
    assert accept(traceparent, None, ids) == TraceContext(PARENT)


KEY = "abcdefghijklmnopqrstuvwxyz0123456789_-*/"
VALUE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) not in ",=")


@pytest.mark.parametrize(
    "tracestate",
    [
        "foo=1",
        "foo=1,bar=2",
        "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
        f"{KEY}={VALUE}",
        f"{KEY}@a-z0-9_-*/={VALUE}",
        f"foo=1,{'z' * 256}=1",
        f"foo=1,{'t' * 241}@{'v' * 14}=1",
        f"foo={'x' * 256}",
        "0tenant@vendor=1",
        ",".join(f"bar{n:02d}={n:02d}" for n in range(32)),
    ],
)
def test_a_well_formed_tracestate_is_passed_on_unchanged(ids: RequestIds, tracestate: str) -> None:
    assert accept(PARENT, tracestate, ids) == TraceContext(PARENT, tracestate)


@pytest.mark.parametrize(
    ("tracestate", "kept"),
    [
        ("", ""),
        (",", ""),
        ("foo=1,", "foo=1"),
        (",foo=1", "foo=1"),
        ("foo=1,,bar=2", "foo=1,bar=2"),
        ("foo=1 \t , \t bar=2, \t baz=3", "foo=1,bar=2,baz=3"),
        (" foo=1", "foo=1"),
        ("foo=1\t", "foo=1"),
        ("\t foo=1 \t", "foo=1"),
        ("foo= 1", "foo= 1"),
        (",".join(["foo=1"] + [""] * 100), "foo=1"),
    ],
)
def test_blanks_and_empty_members_of_a_tracestate_are_left_out(
    ids: RequestIds, tracestate: str, kept: str
) -> None:
    assert accept(PARENT, tracestate, ids) == TraceContext(PARENT, kept)


@pytest.mark.parametrize(
    "tracestate",
    [
        "foo",
        "=1",
        "foo =1",
        "FOO=1",
        "foo.bar=1",
        "0foo=1",
        "foo@=1,bar=2",
        "@foo=1,bar=2",
        "foo@@bar=1,bar=2",
        "foo@bar@baz=1,bar=2",
        "foo@0bar=1",
        "foo=bar=baz",
        "foo=,bar=3",
        "foo=1,foo=1",
        "foo=1,foo=2",
        "foo=1, foo=2",
        "foo=ü",
        "foo=\x7f",
        "foo=1\nbar=2",
        f"foo=1,{'z' * 257}=1",
        f"foo=1,{'t' * 242}@v=1",
        f"foo=1,t@{'v' * 15}=1",
        f"foo={'x' * 257}",
        ",".join(f"bar{n:02d}={n:02d}" for n in range(33)),
        "," * 100_000,
        "foo=1" + "," * 100_000,
    ],
)
def test_a_malformed_tracestate_is_dropped_while_the_traceparent_is_kept(
    ids: RequestIds, tracestate: str
) -> None:
    assert accept(PARENT, tracestate, ids) == TraceContext(PARENT)


def test_of_a_long_tracestate_members_at_the_end_are_left_out_first(ids: RequestIds) -> None:
    members = [f"k{n:02d}={'x' * 96}" for n in range(10)]  # of 100 characters each

    kept = accept(PARENT, ",".join(members), ids).tracestate

    assert kept == ",".join(members[:5])
    assert len(kept) <= 512


def test_of_a_long_tracestate_long_members_are_left_out_before_short_ones(ids: RequestIds) -> None:
    long = f"long={'x' * 256}"
    short = [f"k{n:02d}={'x' * 96}" for n in range(4)]

    kept = accept(PARENT, ",".join([long, *short]), ids).tracestate

    assert kept == ",".join(short)


def test_a_tracestate_of_512_characters_is_kept_whole(ids: RequestIds) -> None:
    tracestate = f"a={'x' * 254},b={'x' * 253}"
    assert len(tracestate) == 512

    assert accept(PARENT, tracestate, ids).tracestate == tracestate
    assert accept(PARENT, tracestate + "x", ids).tracestate == f"a={'x' * 254}"


@pytest.mark.parametrize(
    ("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("03", True), ("0f", True)]
)
def test_the_sampled_flag_is_read(ids: RequestIds, flags: str, sampled: bool) -> None:  # noqa: FBT001
    assert is_sampled(accept(f"00-{TRACE_ID}-1234567890123456-{flags}", None, ids)) is sampled


def test_request_ids_are_unique_and_may_travel_as_a_header(ids: RequestIds) -> None:
    made = [ids.request_id() for _ in range(1000)]

    assert len(set(made)) == 1000
    assert all(map(valid_request_id, made))


def test_two_processes_make_different_ids() -> None:
    one, other = RequestIds(), RequestIds()

    assert one.request_id() != other.request_id()
    assert one.trace_id() != other.trace_id()


def test_ids_of_traces_and_spans_have_the_length_that_w3c_asks_for(ids: RequestIds) -> None:
    assert re.fullmatch("[0-9a-f]{32}", ids.trace_id())
    assert re.fullmatch("[0-9a-f]{16}", ids.span_id())


class Zeros(random.Random):
    def getrandbits(self, k: int, /) -> int:
        del k
        return 0


def test_no_id_is_all_zero_even_if_the_random_source_says_so() -> None:
    ids = RequestIds(rng=Zeros())

    assert int(ids.trace_id(), 16) != 0
    assert int(ids.span_id(), 16) != 0
    assert accept(ids.traceparent(), "foo=1", ids).tracestate == "foo=1"  # so it was valid


@pytest.mark.parametrize("text", ["a", "!", "~", "0af7-651916cd/x:y;z=1,2", "x" * 128, "`{|}[]"])
def test_a_request_id_of_printable_characters_is_taken_over(text: str) -> None:
    assert valid_request_id(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x" * 129,
        "a b",
        "a\tb",
        "a\nb",
        "a\n",
        'a"b',
        "a'b",
        "a\\b",
        "ü",
        "a\x7f",
        "a\x00",
        "\u0663",
    ],
)
def test_a_request_id_that_could_do_harm_is_not_taken_over(text: str) -> None:
    assert not valid_request_id(text)
