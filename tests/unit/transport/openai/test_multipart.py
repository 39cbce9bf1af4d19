from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest

from headrace.domain.errors import InvalidRequest, UnsupportedMediaType
from headrace.domain.parameters import InvalidParam
from headrace.transport.openai.multipart import MAX_BESIDE_BYTES, Form

BOUNDARY = "b0undary"
FILE = (
    b'content-disposition: form-data; name="file"; filename="rows.jsonl"\r\n'
    b"content-type: application/octet-stream\r\n\r\n"
)
PURPOSE = b'Content-Disposition: form-data; name="purpose"\r\n\r\nbatch'
#: What looks like a boundary for a while, and is not.
DATA = b"one\r\n--b0undar\r\n--\r\ntwo\r\n\r\n-"


def _body(*parts: bytes) -> bytes:
    lines = b"".join(b"--b0undary\r\n%b\r\n" % part for part in parts)
    return lines + b"--b0undary--\r\n"


async def _read(
    body: bytes, *, step: int = 1 << 20, known: Sequence[str] = ("purpose",)
) -> tuple[Form, list[bytes]]:
    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(body), step):
            yield body[at : at + step]

    form = Form(
        f"multipart/form-data; boundary={BOUNDARY}",
        pieces(),
        file_field="file",
        known=frozenset(known),
    )
    await form.begin()
    return form, [piece async for piece in form.pieces()]


@pytest.mark.parametrize("step", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize("parts", [(PURPOSE, FILE + DATA), (FILE + DATA, PURPOSE)])
async def test_a_form_is_read_whatever_its_order_and_its_pieces(
    parts: tuple[bytes, ...], step: int
) -> None:
    form, read = await _read(_body(*parts), step=step)
    assert (b"".join(read), form.filename) == (DATA, "rows.jsonl")
    assert form.fields == {"purpose": "batch"}


async def test_an_empty_file_is_a_file() -> None:
    form, read = await _read(_body(FILE))
    assert (b"".join(read), form.filename) == (b"", "rows.jsonl")


async def test_a_file_is_not_held_while_it_comes() -> None:
    _, read = await _read(_body(FILE + b"x" * 1_000_000), step=10_000)
    assert max(map(len, read)) <= 10_000


@pytest.mark.parametrize("name", ["/etc/rows.jsonl", "C:\\data\\rows.jsonl", "../rows.jsonl"])
async def test_of_a_files_path_its_name_is_kept(name: str) -> None:
    escaped = name.replace("\\", "\\\\").encode()
    form, _ = await _read(_body(FILE.replace(b"rows.jsonl", escaped) + DATA))
    assert form.filename == "rows.jsonl"


async def test_a_filename_may_have_any_letters() -> None:
    form, _ = await _read(_body(FILE.replace(b"rows", "žluťoučký".encode()) + DATA))
    assert form.filename == "žluťoučký.jsonl"


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ((PURPOSE,), "file"),
        ((FILE, FILE), "file"),
        ((PURPOSE, PURPOSE, FILE), "purpose"),
        ((FILE.replace(b'; filename="rows.jsonl"', b""),), "file"),
        ((PURPOSE.replace(b"purpose", b"purpos"), FILE), "purpos"),
        ((PURPOSE + b"x" * 2000, FILE), "purpose"),
        ((PURPOSE + b"\xff", FILE), "purpose"),
        ((b"content-transfer-encoding: base64\r\n" + FILE,), "file"),
    ],
)
async def test_what_is_wrong_with_a_form_is_told_with_the_fields_name(
    parts: tuple[bytes, ...], param: str
) -> None:
    with pytest.raises(InvalidParam) as refused:
        await _read(_body(*parts))
    assert refused.value.details == {"param": param}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no form",
        _body(FILE + DATA)[:-6],
        _body(FILE + DATA).removesuffix(b"--b0undary--\r\n"),
        _body(b"x: y\r\n\r\n", FILE),
        _body(b"no header\r\n\r\n", FILE),
    ],
)
async def test_what_is_no_whole_form_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        await _read(body)


@pytest.mark.parametrize(
    "body",
    [
        _body(*[PURPOSE.replace(b"purpose", b"f%d" % i) + b"x" * 1000 for i in range(70)], FILE),
        _body(FILE + DATA) + b"x" * (MAX_BESIDE_BYTES + 1),
        b"\r\n" * (MAX_BESIDE_BYTES + 1) + _body(FILE + DATA),
    ],
    ids=["fields", "behind", "before"],
)
async def test_what_is_beside_the_file_is_bounded(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="beside the file"):
        await _read(body, step=8192, known=[f"f{i}" for i in range(70)])


@pytest.mark.parametrize(
    "content_type", ["", "application/json", "multipart/form-data", "multipart/mixed; boundary=b"]
)
async def test_what_is_no_form_is_another_media_type(content_type: str) -> None:
    async def nothing() -> AsyncIterator[bytes]:
        yield b""

    with pytest.raises(UnsupportedMediaType):
        Form(content_type, nothing(), file_field="file", known=frozenset())


async def test_a_boundary_that_is_too_long_is_refused() -> None:
    async def nothing() -> AsyncIterator[bytes]:
        yield b""

    long = f"multipart/form-data; boundary={'b' * 300}"
    with pytest.raises(InvalidRequest):
        Form(long, nothing(), file_field="file", known=frozenset())
