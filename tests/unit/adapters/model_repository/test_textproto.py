from __future__ import annotations

import math
from typing import Any, TypeAlias

import pytest
from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import example, given
from hypothesis import strategies as st
from tritonclient.grpc.model_config_pb2 import ModelConfig

from headrace.adapters.model_repository.textproto import Identifier, Message, TextFormatError, parse

# Forms of fields


def test_repeated_fields_accumulate_in_the_order_written() -> None:
    assert parse("a: 1 b: 2 a: 3") == {"a": [1, 3], "b": [2]}


def test_a_list_and_repetition_mean_the_same() -> None:
    assert parse("dims: [1, 2] dims: 3") == parse("dims: 1 dims: 2 dims: 3")


@pytest.mark.parametrize(
    "text",
    [
        "m { a: 1 }",
        "m: { a: 1 }",
        "m < a: 1 >",
        "m: <a: 1>",
        "m [ { a: 1 } ]",
        "m: [ < a: 1 > ]",
        "m{a:1,}",
        "m{a:1;};",
        "m # {\n { # }\n a : # 2\n 1 }",
    ],
)
def test_a_message_may_be_written_in_each_of_its_forms(text: str) -> None:
    assert parse(text) == {"m": [{"a": [1]}]}


def test_fields_may_be_separated_by_a_comma_a_semicolon_or_nothing() -> None:
    assert parse("a:1,b:2;c:3 d:4\n,") == {"a": [1], "b": [2], "c": [3], "d": [4]}


def test_an_empty_list_is_remembered_as_set() -> None:
    assert parse("dims: []") == {"dims": []}


def test_the_line_of_a_field_is_where_it_was_first_set() -> None:
    message = parse("\n\na: 1\ninput {\n  dims: 2\n}\na: 3\n")
    assert message.lines == {"a": 3, "input": 4}
    inner = message["input"][0]
    assert isinstance(inner, Message)
    assert inner.lines == {"dims": 5}


def test_an_empty_text_is_an_empty_message() -> None:
    assert parse("  # nothing\n") == {}


# Scalars


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("42", 42),
        ("-7", -7),
        ("- 7", -7),
        ("0x1F", 31),
        ("0XaB", 171),
        ("-0x10", -16),
        ("017", 15),
        ("18446744073709551615", 2**64 - 1),
        ("1.", 1.0),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("1E-2", 0.01),
        ("1.5f", 1.5),
        ("10F", 10.0),
        ("-2.5e+1", -25.0),
        ("0.5", 0.5),
        ("inf", math.inf),
        ("-Infinity", -math.inf),
        ("1e999", math.inf),
    ],
)
def test_a_number_is_read_in_each_of_its_forms(text: str, value: float) -> None:
    read = parse(f"x: {text}")["x"][0]
    assert read == value
    assert type(read) is type(value)


def test_nan_is_read() -> None:
    (value,) = parse("x: nan")["x"]
    assert isinstance(value, float)
    assert math.isnan(value)


def test_booleans_are_values_and_other_words_are_identifiers() -> None:
    values = parse("x: [true, False, TYPE_FP32, t]")["x"]
    assert values == [True, False, "TYPE_FP32", "t"]
    assert [type(value) for value in values] == [bool, bool, Identifier, Identifier]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('"plain"', "plain"),
        ("'it is \"so\"'", 'it is "so"'),
        (r'"\a\b\f\n\r\t\v\\\'\"\?"', "\a\b\f\n\r\t\v\\'\"?"),
        (r'"\x41\X5a\7\101\0"', "AZ\x07A\x00"),
        (r'"\303\xbc \u00fc \U0001F600"', "ü ü \N{GRINNING FACE}"),
        (r'"\ud83d\ude00"', "\N{GRINNING FACE}"),
        ('"a" \'b\'\n# between\n"c"', "abc"),
        (r'"\xc3" "\xbc"', "ü"),
        ("'#not a comment'", "#not a comment"),
        ('""', ""),
        ('"ü"', "ü"),
    ],
)
def test_a_string_is_read_with_its_escapes(text: str, value: str) -> None:
    assert parse(f"x: {text}") == {"x": [value]}


# Errors


@pytest.mark.parametrize(
    ("text", "line", "column", "reason"),
    [
        ("a: 1\nb = 2", 2, 3, "unexpected character '='"),
        ("a 1", 1, 3, "expected ':' or '{', found '1'"),
        ("a [1]", 1, 4, "expected ':' or '{', found '1'"),
        ("a:", 1, 3, "expected a value, found the end"),
        ("a: [1, 2", 1, 9, "expected ',' or ']', found the end"),
        ("a: [1 2]", 1, 7, "expected ',' or ']', found '2'"),
        ("a: [1,]", 1, 7, "expected a value, found ']'"),
        ("a: [[1]]", 1, 5, "expected a value, found '['"),
        ("m {\n a: 1\n", 3, 1, "'{' of line 1 is not closed by '}'"),
        ("m { a: 1 >", 1, 10, "expected the name of a field, found '>'"),
        ("}", 1, 1, "expected the name of a field, found '}'"),
        ("a: 1,, b: 2", 1, 6, "expected the name of a field, found ','"),
        ("3: 1", 1, 1, "expected the name of a field, found '3'"),
        ("[ext.field]: 1", 1, 1, "extensions and Any are not supported"),
        ("a: 'x\n'", 1, 4, "the string is not closed on its line"),
        ('a: "x', 1, 4, "the string is not closed on its line"),
        (r'a: "\q"', 1, 4, r"\\q is not an escape sequence"),
        (r'a: "\777"', 1, 4, r"\\777 is not an escape sequence"),
        (r'a: "\U00110000"', 1, 4, r"\\U00110000 is not an escape sequence"),
        (r'a: "\u12"', 1, 4, r"\\u is not an escape sequence"),
        (r'a: "\xff"', 1, 4, "the string is not valid UTF-8"),
        (r'a: "\ud800"', 1, 4, "the string is not valid UTF-8"),
        ("a: '\ud800'", 1, 4, "the string is not valid UTF-8"),
        ("a: 09", 1, 4, "09 starts with 0 but is not an octal number"),
        ("a: 00.5", 1, 4, "00.5 starts with 0 but is not an octal number"),
        ("a: 12ab", 1, 4, "malformed number '12'"),
        ("a: 1.2.3", 1, 4, "malformed number '1.2'"),
        ("a: 0x", 1, 4, "malformed number '0'"),
        ("a: -", 1, 5, "expected a number after '-', found the end"),
        ("a: -x", 1, 5, "expected a number after '-', found 'x'"),
        ("a: -true", 1, 5, "expected a number after '-', found 'true'"),
        ("a: " + "9" * 5000, 1, 4, "the number is too long"),
    ],
)
def test_an_error_tells_where_and_what(text: str, line: int, column: int, reason: str) -> None:
    with pytest.raises(TextFormatError) as caught:
        parse(text)
    assert (caught.value.line, caught.value.column, caught.value.reason) == (line, column, reason)
    assert str(caught.value) == f"line {line}, column {column}: {reason}"


def test_nesting_is_bounded() -> None:
    depth = 100_000
    with pytest.raises(TextFormatError, match="messages nest deeper than 64"):
        parse("a{" * depth + "}" * depth)
    parse("a{" * 63 + "}" * 63)


def _refused_at(text: str) -> tuple[int, int] | None:
    try:
        parse(text)
    except TextFormatError as error:
        return error.line, error.column
    return None


@given(st.text())
@example('a: "\\')
@example("a: '\\\n'")
def test_any_text_is_parsed_or_refused_with_a_place(text: str) -> None:
    place = _refused_at(text)
    assert place is None or place >= (1, 1)


@given(st.text(alphabet="ab0x19.eEfF-+:;,[]{}<>\"'\\#\n utn"))
def test_any_heap_of_tokens_is_parsed_or_refused_with_a_place(text: str) -> None:
    place = _refused_at(text)
    assert place is None or place >= (1, 1)


# Against Google's own reader and writer

# protobuf ships no types
Field: TypeAlias = Any
Protobuf: TypeAlias = Any

_RANGES = {
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_FLOAT: st.floats(width=32, allow_nan=False),
    FieldDescriptor.TYPE_DOUBLE: st.floats(allow_nan=False),
    FieldDescriptor.TYPE_STRING: st.text(max_size=8),
}


def _is_map(field: Field) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


@st.composite
def _values(draw: st.DrawFn, field: Field, depth: int) -> Protobuf:
    if field.type == FieldDescriptor.TYPE_ENUM:
        return draw(st.sampled_from([value.number for value in field.enum_type.values]))
    if field.message_type is not None:
        return draw(_filled(field.message_type._concrete_class, depth + 1))  # noqa: SLF001
    return draw(_RANGES[field.type])


@st.composite
def _filled(draw: st.DrawFn, kind: Protobuf, depth: int = 0) -> Protobuf:
    message = kind()
    fields = list(message.DESCRIPTOR.fields) if depth < 5 else []
    numbers = st.lists(st.integers(0, len(fields) - 1), unique=True, max_size=3)
    for field in [fields[number] for number in draw(numbers)] if fields else ():
        target = getattr(message, field.name)
        if _is_map(field):
            key_field, value_field = field.message_type.fields
            for _ in range(draw(st.integers(1, 2))):
                key, value = draw(_values(key_field, depth)), draw(_values(value_field, depth))
                if value_field.message_type is None:
                    target[key] = value
                else:
                    target[key].CopyFrom(value)
        elif field.is_repeated:
            target.extend(draw(st.lists(_values(field, depth), max_size=3)))
        elif field.message_type is not None:
            target.SetInParent()
            target.CopyFrom(draw(_values(field, depth)))
        else:
            setattr(message, field.name, draw(_values(field, depth)))
    return message


def _as_protobuf(source: Message, target: Protobuf) -> Protobuf:
    """What was parsed, in Google's form, told by the message's descriptor what it means."""
    for name, values in source.items():
        field = target.DESCRIPTOR.fields_by_name[name]
        place = getattr(target, name)
        if not field.is_repeated:
            assert len(values) == 1
        for value in values:
            if _is_map(field):
                assert isinstance(value, Message)
                entry = _as_protobuf(value, field.message_type._concrete_class())  # noqa: SLF001
                if field.message_type.fields_by_name["value"].message_type is None:
                    place[entry.key] = entry.value
                else:
                    place[entry.key].CopyFrom(entry.value)
            elif isinstance(value, Message):
                child = place.add() if field.is_repeated else place
                child.SetInParent()
                _as_protobuf(value, child)
            else:
                plain: Any = value
                if isinstance(value, Identifier):
                    assert field.enum_type is not None
                    plain = field.enum_type.values_by_name[value].number
                if field.is_repeated:
                    place.append(plain)
                else:
                    setattr(target, name, plain)
    return target


def _bytes(message: Protobuf) -> bytes:
    serialized: bytes = message.SerializeToString(deterministic=True)
    return serialized


@given(
    message=_filled(ModelConfig),
    as_one_line=st.booleans(),
    as_utf8=st.booleans(),
    short_lists=st.booleans(),
)
def test_what_google_writes_is_read_back_the_same(
    *, message: Protobuf, as_one_line: bool, as_utf8: bool, short_lists: bool
) -> None:
    text = text_format.MessageToString(
        message,
        as_one_line=as_one_line,
        as_utf8=as_utf8,
        use_short_repeated_primitives=short_lists,
    )
    assert _bytes(_as_protobuf(parse(text), ModelConfig())) == _bytes(message)


@st.composite
def _written(draw: st.DrawFn, message: Protobuf) -> str:
    """`message` in text, in forms that people use and Google's writer does not."""
    gap = st.sampled_from(["", " ", "\n", "\t ", " # a comment: {\n", "\r\n"])
    parts = []
    for field, value in message.ListFields():
        if _is_map(field):
            entries = []
            for key in value:
                entry = field.message_type._concrete_class(key=key)  # noqa: SLF001
                if field.message_type.fields_by_name["value"].message_type is None:
                    entry.value = value[key]
                else:
                    entry.value.CopyFrom(value[key])
                entries.append(entry)
            value = entries  # noqa: PLW2901
        values = list(value) if field.is_repeated else [value]
        if field.message_type is None:
            texts, colons = [draw(_written_scalar(field, v)) for v in values], [":"]
        else:
            inner = [draw(_written(v)) for v in values]
            brackets = draw(st.sampled_from(["{}", "<>"]))
            texts, colons = [brackets[0] + t + "\n" + brackets[1] for t in inner], [":", ""]
        if field.is_repeated and draw(st.booleans()):
            texts = ["[" + (draw(gap) + ",").join(texts) + draw(gap) + "]"]
        for text in texts:
            colon, separator = draw(st.sampled_from(colons)), draw(st.sampled_from(",;\n"))
            parts += [field.name, draw(gap), colon, draw(gap), text, draw(gap), separator]
    return "".join(parts)


@st.composite
def _written_scalar(draw: st.DrawFn, field: Field, value: Protobuf) -> str:
    if field.type == FieldDescriptor.TYPE_ENUM:
        return str(field.enum_type.values_by_number[value].name)
    if isinstance(value, bool):
        return draw(st.sampled_from(["true", "True"] if value else ["false", "False"]))
    if isinstance(value, int):
        form = draw(st.sampled_from(["d", "#x", "#X", "o"]))
        digits = "0" * (form == "o") + format(abs(value), form)
        return "-" * (value < 0) + digits
    if isinstance(value, float):
        suffix = "f" if math.isfinite(value) and draw(st.booleans()) else ""
        return repr(value) + suffix
    encoded = str(value).encode()
    cut = draw(st.integers(0, len(encoded)))
    return draw(_written_bytes(encoded[:cut])) + " " + draw(_written_bytes(encoded[cut:]))


@st.composite
def _written_bytes(draw: st.DrawFn, data: bytes) -> str:
    quote = draw(st.sampled_from("\"'"))
    # a hexadecimal escape ends its literal, for it would swallow a digit that follows
    forms = st.sampled_from(["\\{:03o}", "\\x{:02x}" + quote + "\n" + quote])
    units = (
        chr(byte) if chr(byte).isalnum() and byte < 128 else draw(forms).format(byte)
        for byte in data
    )
    return quote + "".join(units) + quote


@given(st.data())
def test_what_people_write_is_read_as_google_reads_it(data: st.DataObject) -> None:
    message = data.draw(_filled(ModelConfig))
    text = data.draw(_written(message))
    expected = text_format.Parse(text, ModelConfig())
    assert _bytes(expected) == _bytes(message)
    assert _bytes(_as_protobuf(parse(text), ModelConfig())) == _bytes(message)
