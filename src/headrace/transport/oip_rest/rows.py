"""Rows of batch files for `/v2/models/.../infer`: OpenAI's lines around the protocol's bodies.

Read: `{"custom_id": "...", "method": "POST", "url": "/v2/models/m/infer", "body": {request}}`.
Written, of an answer: `{"id": "batch_req_...", "custom_id": "...", "response": {"status_code":
200, "request_id": "...", "body": {response}}, "error": null}`.

Of a failure, `error` always is `{"code", "message"}`. `response` is null where the row was never
asked about, because its job was cancelled or expired or its chunk given up. Else it holds the
status that the row would have had online, with `{"error": {"message", "type", "param", "code"}}`
as its body, which is where OpenAI's users look for what went wrong with a request. OpenAI itself
leaves `error` null beside such a response; here it repeats the code, so that one place tells of
every failure.

Source: OpenAI, API reference, "The request input object" and "The request output object".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
import orjson

from headrace.domain.errors import HeadraceError, InvalidRequest
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.tensors import InferContent
from headrace.ports.rows import Block, Heads, Row, RowHead
from headrace.transport.dialect import INTERNAL, sentence
from headrace.transport.oip_rest.payload import RestPayload
from headrace.transport.oip_rest.response import encode
from headrace.transport.oip_rest.row_layout import RowLayout, learn
from headrace.transport.status import STATUS

_MAX_CUSTOM_ID: Final = 512  # characters
_SHOWN: Final = 64  # characters of what a message repeats
#: What a line that is not JSON is called by, where it begins as nearly all do.
_BEGUN: Final = re.compile(rb'\s*\{\s*"custom_id":\s*"([^"\\\x00-\x1f]{1,512})"')
#: Errors of rows that were never asked about.
_NEVER_ASKED: Final = frozenset({"batch_cancelled", "batch_expired", "chunk_dead"})
_OUTPUT: Final = (
    b'{"id":"batch_req_%b","custom_id":%b,"response":'
    b'{"status_code":200,"request_id":"%b","body":%b},"error":null}\n'
)
_OUTPUT_IN_PARTS: Final = (
    b'{"id":"batch_req_%b-%d","custom_id":%b,"response":'
    b'{"status_code":200,"request_id":"%b-%d","body":%b[%b]%b},"error":null}\n'
)
_ERROR: Final = (
    b'{"id":"batch_req_%b","custom_id":%b,"response":%b,"error":{"code":%b,"message":%b}}\n'
)
_NUMERIC: Final = frozenset("fiu")  # kinds of numpy's that orjson writes as numbers
_NOT_IN_JSON: Final = frozenset({"FP16", "BF16"})
_NOTHING: Final = InferContent([])
_LAYOUTS_KEPT: Final = 8
_FUTILE: Final = 32  # lessons that helped with no line, after which no more are taken
_FORMS_KEPT: Final = 256


class _Object(msgspec.Struct, frozen=True, gc=False):
    """Any object of JSON: its keys are passed over, and have to be JSON."""


class _Row(msgspec.Struct, gc=False):
    """A row, if its url is the batch's. Of a key that comes twice the last one counts."""

    custom_id: Annotated[str, msgspec.Meta(min_length=1, max_length=_MAX_CUSTOM_ID)]
    method: Literal["POST"]
    url: str
    body: _Object


class _Line(msgspec.Struct, gc=False):
    """Any object, of which it is to be told what it lacks to be a row."""

    custom_id: Any = msgspec.UNSET
    method: Any = msgspec.UNSET
    url: Any = msgspec.UNSET
    body: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decode_row: Final = msgspec.json.Decoder(_Row).decode
_decode_line: Final = msgspec.json.Decoder(_Line).decode
#: What decoding raises of a line that is no row; of one without UTF-8 a ValueError.
_NO_ROW: Final = (msgspec.MsgspecError, ValueError, RecursionError)


class OipRows:
    """See RowCodec. Remembers how the lines that it read looked: one object for each worker."""

    def __init__(self) -> None:
        self._layouts: list[RowLayout] = []  # the last one that fitted is the first
        self._lessons = 0  # since a layout fitted
        self._forms: dict[tuple[str, str, str, str, tuple[int, ...]], bytes] = {}

    def head(self, line: bytes | memoryview) -> RowHead:
        """See RowCodec.head."""
        try:
            str(line, "utf-8")  # the decoder does not look at the texts in a body
            row = _decode_row(line)
        except _NO_ROW:
            return _look(line)[0]
        return RowHead(row.custom_id, row.url)

    def heads(self, text: bytes, url: str) -> Heads | None:
        """See RowCodec.heads."""
        find, decode = text.find, _decode_row
        ids, ends = [], []
        start = 0
        try:
            if not text.isascii():
                str(text, "utf-8")  # as above
            while (newline := find(b"\n", start)) >= 0:
                row = decode(text[start:newline])
                if row.url != url:
                    return None
                ids.append(row.custom_id)
                start = newline + 1
                ends.append(start)
        except _NO_ROW:
            return None
        return Heads(ids, ends)

    def row(self, line: bytes | memoryview, *, model: str, version: str) -> Row:
        """See RowCodec.row."""
        text = line if type(line) is bytes else bytes(line)
        for layout in self._layouts:
            if (read := layout.read(text)) is not None:
                if layout is not self._layouts[0]:
                    self._layouts.remove(layout)
                    self._layouts.insert(0, layout)
                self._lessons = 0
                return Row(read[0], InferRequest(model, version, None, read[1]))
        head, body = _look(text)
        if head.problem:
            return Row(head.custom_id, None, InvalidRequest(head.problem))
        try:
            content = _content(body)
        except HeadraceError as error:
            return Row(head.custom_id, None, error)
        if self._lessons < _FUTILE:
            self._learn(text, body, head, content)
        return Row(head.custom_id, InferRequest(model, version, None, content))

    def block(
        self, lines: bytes, start: int, *, model: str, version: str, most: int, limit_bytes: int
    ) -> Block | None:
        """See RowCodec.block. Only lines that look like the last one are decoded so."""
        if not self._layouts or not 0 < (length := self._layouts[0].length) <= most // 2:
            return None
        many = self._layouts[0].read_many(
            lines, start, most=most // length, limit_bytes=limit_bytes
        )
        if many is None:
            return None
        request = InferRequest(model, version, None, many.content)
        return Block(many.custom_ids, request, length, many.end)

    def output_line(self, row: Row, response: InferResponse, *, request_id: str) -> bytes:
        """See RowCodec.output_line. Numbers that JSON has no form for become null."""
        identity = request_id.encode()
        _, (body,) = encode(response, _NOTHING)
        return _OUTPUT % (identity, orjson.dumps(row.custom_id), identity, body)

    def output_lines(
        self, rows: Sequence[Row], response: InferResponse, *, request_id: str, first: int = 0
    ) -> list[bytes] | None:
        """See RowCodec.output_lines."""
        if len(response.outputs) != 1 or response.parameters:
            return None
        output = response.outputs[0]
        array = output.array
        if array.dtype.kind not in _NUMERIC or output.datatype in _NOT_IN_JSON or not array.size:
            return None
        count = len(rows)
        shape = (len(array) // count, *array.shape[1:])
        form = (response.model, response.version, output.name, output.datatype, shape)
        start = self._forms.get(form) or self._form(form)
        table = np.ascontiguousarray(array).reshape(count, -1)
        cells = orjson.dumps(table, option=orjson.OPT_SERIALIZE_NUMPY)[2:-2].split(b"],[")
        asked = request_id.encode()
        lines = []
        for i, row in enumerate(rows):
            n, request = first + i, row.request
            end = b"}]}"
            if request is not None and (told := request.content.id):
                end = b'}],"id":%b}' % orjson.dumps(told)
            lines.append(
                _OUTPUT_IN_PARTS
                % (asked, n, orjson.dumps(row.custom_id), asked, n, start, cells[i], end)
            )
        return lines

    def error_line(self, custom_id: str, error: HeadraceError, *, request_id: str) -> bytes:
        """See RowCodec.error_line."""
        identity = request_id.encode()
        message = sentence(error)
        response = b"null"
        if error.code not in _NEVER_ASKED:
            status, _, kind = STATUS.get(error.code) or STATUS[INTERNAL.code]
            told = {
                "message": message,
                "type": str(kind),
                "param": error.details.get("param"),
                "code": error.code,
            }
            response = b'{"status_code":%d,"request_id":"%b","body":%b}' % (
                status,
                identity,
                msgspec.json.encode({"error": told}),
            )
        return _ERROR % (
            identity,
            msgspec.json.encode(custom_id),
            response,
            msgspec.json.encode(error.code),
            msgspec.json.encode(message),
        )

    def _form(self, form: tuple[str, str, str, str, tuple[int, ...]]) -> bytes:
        """The body of an answer with one output, up to its data."""
        model, version, name, datatype, shape = form
        document = {
            "model_name": model,
            "model_version": version,
            "outputs": [{"name": name, "datatype": datatype, "shape": shape, "data": []}],
        }
        start = orjson.dumps(document).removesuffix(b"[]}]}")
        if len(self._forms) >= _FORMS_KEPT:
            self._forms.clear()
        self._forms[form] = start
        return start

    def _learn(self, line: bytes, body: bytes, head: RowHead, content: InferContent) -> None:
        self._lessons += 1
        layout = learn(line, body, head, content, decode=_decoded)
        if layout is not None:
            self._layouts.insert(0, layout)
            del self._layouts[_LAYOUTS_KEPT:]


def _decoded(line: bytes) -> tuple[str, str, InferContent] | None:
    """A line with all checks; None where it is refused."""
    head, body = _look(line)
    if head.problem:
        return None
    try:
        return head.custom_id, head.url, _content(body)
    except HeadraceError:
        return None


def _content(body: bytes) -> InferContent:
    """What a row's body says. Raises InvalidRequest."""
    content = RestPayload(body).decode()
    if content.binary_outputs or any(output.binary for output in content.outputs or ()):
        msg = "a row's outputs are asked for in binary, which a line of JSON cannot hold: ask for "
        raise InvalidRequest(msg + "them without binary_data and binary_data_output")
    return content


def _look(line: bytes | memoryview) -> tuple[RowHead, bytes]:
    """Take a line apart, whatever its form. Never raises."""
    try:
        str(line, "utf-8")
        row = _decode_line(line)
    except msgspec.ValidationError:
        return _no_row(line, "the row is not a JSON object")
    except UnicodeDecodeError:
        return _no_row(line, "the row is not UTF-8")
    except msgspec.DecodeError as error:
        return _no_row(line, f"the row is not JSON: {error}")
    except RecursionError:
        return _no_row(line, "the row is nested too deeply")
    custom_id = row.custom_id if isinstance(row.custom_id, str) else ""
    url = row.url if isinstance(row.url, str) else ""
    problem, code, param = _problem(row, custom_id)
    if problem:
        return RowHead(custom_id[:_MAX_CUSTOM_ID], url, problem, code, param), b""
    return RowHead(custom_id, url), bytes(row.body or b"")


def _no_row(line: bytes | memoryview, problem: str) -> tuple[RowHead, bytes]:
    begun = _BEGUN.match(line)
    custom_id = str(begun[1], "utf-8", "replace") if begun is not None else ""
    return RowHead(custom_id, "", problem, "invalid_json_line"), b""


def _problem(row: _Line, custom_id: str) -> tuple[str, str, str]:
    """What is wrong with a row's keys, with the code and the key; "" where nothing is."""
    for name in ("custom_id", "method", "url", "body"):
        if getattr(row, name) is msgspec.UNSET:
            return f"the row has no {name}", "missing_required_parameter", name
    for name in ("custom_id", "method", "url"):
        value = getattr(row, name)
        if not isinstance(value, str):
            return f"{name} must be a string", "invalid_value", name
    if not custom_id:
        return "custom_id must not be empty", "invalid_value", "custom_id"
    if len(custom_id) > _MAX_CUSTOM_ID:
        what = f"custom_id may have {_MAX_CUSTOM_ID} characters at most"
        return f"{what}, got {len(custom_id)}", "invalid_value", "custom_id"
    if row.method != "POST":
        return f"method must be POST, got {row.method[:_SHOWN]!a}", "invalid_method", "method"
    if not bytes(row.body or b"").lstrip().startswith(b"{"):
        return "body must be a JSON object", "invalid_value", "body"
    return "", "", ""
