from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.domain.errors import InvalidRequest
from headrace.transport.oip_rest.payload import RestPayload
from headrace.transport.oip_rest.timeout import with_timeout

LEFT_US = 1_500_000
BARE = b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1]}]}'

_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_values = st.one_of(st.booleans(), st.integers(-(2**63), 2**64 - 1), _texts)
_parameters = st.dictionaries(st.one_of(_texts, st.just("timeout"), st.just("é")), _values)
_others = st.dictionaries(_texts.filter(lambda key: key not in {"inputs", "parameters"}), _values)


@st.composite
def _requests(draw: st.DrawFn) -> dict[str, Any]:
    tensor: dict[str, Any] = {"name": draw(_texts), "shape": [1], "datatype": "BYTES"}
    if draw(st.booleans()):
        tensor["parameters"] = draw(st.dictionaries(_texts, _values))
    tensor["data"] = [draw(st.one_of(_texts, st.just('"parameters"')))]
    request: dict[str, Any] = {"inputs": [tensor], **draw(_others)}
    request.pop("id", None)
    request.pop("outputs", None)
    if draw(st.booleans()):
        request["parameters"] = draw(_parameters)
    return {key: request[key] for key in draw(st.permutations(list(request)))}


def in_parts(body: bytes, cuts: Sequence[int]) -> list[bytes | memoryview]:
    places = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    return [memoryview(body)[a:b] for a, b in itertools.pairwise(places)]


@given(
    request=_requests(),
    form=st.tuples(st.booleans(), st.sampled_from([None, 2]), st.sampled_from(["", " \r\n\t"])),
    binary=st.one_of(st.none(), st.binary(max_size=8)),
    cuts=st.one_of(st.none(), st.lists(st.integers(0, 10_000), max_size=3)),
)
def test_the_endpoint_reads_the_same_request_with_its_timeout(
    request: dict[str, Any],
    form: tuple[bool, int | None, str],
    binary: bytes | None,
    cuts: list[int] | None,
) -> None:
    ascii_only, indent, blanks = form
    text = blanks + json.dumps(request, indent=indent, ensure_ascii=ascii_only)
    body = text.encode() + (binary or b"")
    length = None if binary is None else len(text.encode())
    received: Any = body if cuts is None else in_parts(body, cuts)

    header_length, parts = with_timeout(RestPayload(received, length), LEFT_US)

    sent = b"".join(parts)
    assert (header_length is None) == (length is None)
    end = len(sent) if header_length is None else header_length
    assert sent[end:] == (binary or b"")
    own = request.get("parameters", {})
    timeout = own.get("timeout")
    kept = type(timeout) is int and 0 < timeout < LEFT_US
    parameters = {**own, "timeout": timeout if kept else LEFT_US}
    pairs = json.loads(sent[:end], object_pairs_hook=list)
    assert sorted(key for key, _ in pairs) == sorted({*request, "parameters"})
    assert json.loads(sent[:end]) == {**request, "parameters": parameters}


def test_a_clients_shorter_timeout_stays_and_none_of_no_time_does() -> None:
    for own, told in ((1000, 1000), (LEFT_US + 1, LEFT_US), (0, LEFT_US), (True, LEFT_US)):
        body = BARE[:-1] + b',"parameters":{"timeout":%b,"a":1}}' % json.dumps(own).encode()
        _, parts = with_timeout(RestPayload(body), LEFT_US)
        assert json.loads(b"".join(parts))["parameters"] == {"timeout": told, "a": 1}


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
@pytest.mark.parametrize("own", [{"binary_data_output": True}, None])
def test_a_request_of_nvidias_client_keeps_what_it_says(
    separators: tuple[str, str], own: dict[str, bool] | None
) -> None:
    x = {"name": "x", "shape": [2], "datatype": "UINT8", "parameters": {"binary_data_size": 2}}
    request = {"inputs": [x]} | ({} if own is None else {"parameters": own})
    text = json.dumps(request, separators=separators).encode()
    length, parts = with_timeout(RestPayload(text + b"ab", len(text)), LEFT_US)
    sent = b"".join(parts)
    assert sent[length:] == b"ab"
    told = {**(own or {}), "timeout": LEFT_US}
    assert json.loads(sent[:length]) == {"inputs": [x], "parameters": told}
    assert RestPayload(sent, length).parameters() == told


def test_a_key_that_is_written_with_escapes_is_not_there_twice() -> None:
    body = BARE[:-1] + b',"p\\u0061rameters":{"sequence_id":7}}'
    _, parts = with_timeout(RestPayload(body), LEFT_US)
    pairs = dict(json.loads(b"".join(parts)))
    assert pairs["parameters"] == {"sequence_id": 7, "timeout": LEFT_US}
    assert b"".join(parts).count(b"rameters") == 1


def test_numbers_that_no_float_holds_are_passed_on_as_they_were_written() -> None:
    body = BARE[:-1] + b',"parameters":{"a":0.10000000000000000555},"mine":1e400}'
    _, parts = with_timeout(RestPayload(body), LEFT_US)
    assert b'"a":0.10000000000000000555' in b"".join(parts)
    assert b'"mine":1e400' in b"".join(parts)


@pytest.mark.parametrize("length", [None, 99])
def test_what_is_large_is_not_copied(length: int | None) -> None:
    text = b'{"inputs":[%b]}' % (b" " * (200_000 if length is None else length - 13))
    tensor = memoryview(b"x" * 200_000)
    received: Any = text if length is None else [text + b"ab", tensor]
    _, parts = with_timeout(RestPayload(received, length), LEFT_US)
    last = parts[-1]
    assert isinstance(last, memoryview)
    assert last.obj is (text if length is None else tensor.obj)


def test_raw_bytes_stay_as_they_are() -> None:
    assert with_timeout(RestPayload(b"\0\1", 0), LEFT_US) == (0, (b"\0\1",))


@pytest.mark.parametrize("body", [b"", b"[1]", b"{}x", b"nonsense", b' {"a"\\u', b"\xff"])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not a JSON object"):
        with_timeout(RestPayload(body), LEFT_US)


def test_an_object_without_keys_becomes_one_that_is_whole() -> None:
    for body in (b"{}", b" { } "):
        _, parts = with_timeout(RestPayload(body), LEFT_US)
        assert json.loads(b"".join(parts)) == {"parameters": {"timeout": LEFT_US}}
