from __future__ import annotations

import base64
import hashlib
import socket
import ssl

import pytest

from headrace.compose.platform_client import Refused, Unreachable
from headrace.compose.registry_client import RegistryClient, sha256_of
from headrace.domain.errors import InvalidRequest
from tests.support.prepared_http import Network, prepared

URL = "http://127.0.0.1:8080"
TOKEN = "a-secret-token"
VERSION = {"model": "iris", "version": "3", "status": "pending"}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    return prepared(monkeypatch)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def client(clock: Clock) -> RegistryClient:
    return RegistryClient(URL, token=TOKEN, clock=clock)


# Requests


def test_what_is_read_has_its_value_its_whole_answer_and_its_etag(
    client: RegistryClient, network: Network
) -> None:
    network.answer(200, {**VERSION, "new_field": 1}, {"ETag": '"17"'})
    read = client.version("iris", "3")
    assert read.value.status == "pending"
    assert read.raw["new_field"] == 1
    assert read.etag == '"17"'


def test_the_token_goes_with_every_request(client: RegistryClient, network: Network) -> None:
    network.answer(200, VERSION)
    client.version("iris", "3")
    assert f"\r\nAuthorization: Bearer {TOKEN}\r\n".encode() in network.sent[0]


def test_names_cannot_leave_their_place_in_the_path(
    client: RegistryClient, network: Network
) -> None:
    network.problem(404, "no")
    with pytest.raises(Refused):
        client.version("a/b?c#d\r\n", "3")
    assert network.lines() == ["GET /api/v1/models/a%2Fb%3Fc%23d%0D%0A/versions/3"]


def test_the_path_of_the_url_stands_before_that_of_the_api(network: Network) -> None:
    network.answer(200, VERSION)
    RegistryClient("http://gate/headrace/").version("iris", "3")
    assert network.lines() == ["GET /headrace/api/v1/models/iris/versions/3"]


def test_a_list_follows_its_cursors(client: RegistryClient, network: Network) -> None:
    network.answer(200, {"items": [{"name": "a"}, {"name": "b"}], "next_cursor": "x"})
    network.answer(200, {"items": [{"name": "c"}], "next_cursor": None})
    assert [model.value.name for model in client.models(tag="t", name="")] == ["a", "b", "c"]
    assert network.lines() == [
        "GET /api/v1/models?tag=t&limit=500",
        "GET /api/v1/models?tag=t&limit=500&cursor=x",
    ]


def test_a_list_that_goes_in_a_circle_ends(client: RegistryClient, network: Network) -> None:
    for _ in range(3):
        network.answer(200, {"items": [{"name": "a"}], "next_cursor": "x"})
    assert len(list(client.models())) == 2


def test_a_change_names_the_state_that_was_read(client: RegistryClient, network: Network) -> None:
    network.answer(200, {**VERSION, "status": "archived"})
    client.update_version("iris", "3", {"status": "archived"}, etag='"17"', force=True)
    (sent,) = network.sent
    assert sent.startswith(b"PATCH /api/v1/models/iris/versions/3?force=true HTTP/1.1\r\n")
    assert b'\r\nIf-Match: "17"\r\n' in sent
    assert b"\r\nContent-Type: application/merge-patch+json\r\n" in sent
    assert sent.endswith(b'\r\n\r\n{"status":"archived"}')


def test_an_upload_goes_piece_by_piece_with_its_size_and_digest(
    client: RegistryClient, network: Network
) -> None:
    network.answer(200, {**VERSION, "status": "ready"})
    digest = hashlib.sha256(b"abcd").digest()
    client.upload(
        "iris",
        "3",
        iter([b"ab", b"cd"]),
        size_bytes=4,
        media_type="application/onnx",
        digest=digest.hex(),
        etag='"17"',
    )
    (sent,) = network.sent
    assert f"Content-Digest: sha-256=:{base64.b64encode(digest).decode()}:".encode() in sent
    assert b"\r\nContent-Length: 4\r\n" in sent
    assert b'\r\nIf-Match: "17"\r\n' in sent
    assert sent.endswith(b"\r\n\r\nabcd")


def test_a_connection_is_used_again_but_not_after_a_pause(
    client: RegistryClient, network: Network, clock: Clock
) -> None:
    for _ in range(3):
        network.answer(200, VERSION)
    client.version("iris", "3")
    client.version("iris", "3")
    assert network.connects == 1
    clock.now += 60
    client.version("iris", "3")
    assert network.connects == 2


def test_a_download_comes_in_pieces_with_the_digest_of_its_headers(
    client: RegistryClient, network: Network
) -> None:
    digest = base64.b64encode(hashlib.sha256(b"model").digest()).decode()
    network.answer(200, b"model", {"Repr-Digest": f"sha-256=:{digest}:"})
    with client.download("iris", "3") as download:
        assert download.size_bytes == 5
        assert download.digest == hashlib.sha256(b"model").hexdigest()
        assert b"".join(download.chunks) == b"model"


@pytest.mark.parametrize("header", ["", "sha-512=:AAAA:", "sha-256=:A:", "sha-256=AAAA"])
def test_a_header_without_a_sha_256_names_none(header: str) -> None:
    assert sha256_of(header) == ""


# Refusals


def test_a_refusal_is_its_sentence_and_a_line_for_every_other_field(
    client: RegistryClient, network: Network
) -> None:
    network.problem(
        400,
        "name: too long",
        errors=[
            {"pointer": "#/name", "detail": "too long"},
            {"pointer": "#/metrics/loss", "detail": "not finite"},
            {"parameter": "tag", "detail": "empty"},
        ],
    )
    with pytest.raises(Refused) as caught:
        client.create_model({"name": "x"})
    assert caught.value.status == 400
    assert caught.value.lines == ("name: too long", "metrics.loss: not finite", "tag: empty")


def test_a_stale_state_is_told_as_somebody_elses_change(
    client: RegistryClient, network: Network
) -> None:
    network.problem(412, "alias 'champion' was changed")
    with pytest.raises(Refused, match="somebody changed it meanwhile; look and try again"):
        client.rollback("iris", "champion", etag='"1"')


def test_a_missing_token_is_told_with_where_to_put_it(
    client: RegistryClient, network: Network
) -> None:
    network.problem(401, "no token")
    with pytest.raises(Refused, match="--token or HEADRACE_TOKEN"):
        client.model("iris")


def test_a_failure_of_the_platform_names_the_request(
    client: RegistryClient, network: Network
) -> None:
    network.problem(503, "the database does not answer", request_id="r-1")
    with pytest.raises(Refused, match=r"does not answer \(request r-1\)"):
        client.model("iris")


def test_the_answer_of_something_else_says_so(client: RegistryClient, network: Network) -> None:
    network.answer(404, b"<html>")
    with pytest.raises(Refused, match="is --url right"):
        client.model("iris")
    network.answer(200, b"<html>")
    with pytest.raises(Unreachable, match="not a Headrace platform's"):
        client.model("iris")
    network.answer(200, {"title": "a model without a name"})
    with pytest.raises(Unreachable, match="missing required field `name`"):
        client.model("iris")


def test_a_platform_that_refuses_in_the_middle_of_an_upload_is_heard(
    client: RegistryClient, network: Network
) -> None:
    network.cut_after = 500
    network.problem(413, "the artifact is over the limit")
    with pytest.raises(Refused, match="over the limit"):
        client.upload(
            "iris",
            "3",
            iter([bytes(1000)] * 3),
            size_bytes=3000,
            media_type="application/onnx",
            digest="00" * 32,
            etag='"1"',
        )


# No answer


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (ConnectionRefusedError(111, "refused"), "connection refused; is `headrace serve` running"),
        (TimeoutError("timed out"), "no answer from http://127.0.0.1:8080 within 30 s"),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (ssl.SSLError(1, "wrong version number"), "wrong version number"),
        (UnicodeError("label empty or too long"), "label empty or too long"),
    ],
)
def test_who_cannot_be_reached_is_named_with_the_reason(
    client: RegistryClient, network: Network, failure: Exception, told: str
) -> None:
    network.failure = failure
    with pytest.raises(Unreachable, match=told) as caught:
        client.model("iris")
    assert URL in caught.value.message


def test_a_connection_that_is_cut_is_no_answer(client: RegistryClient, network: Network) -> None:
    network.raw(b"")
    with pytest.raises(Unreachable, match="closed the connection"):
        client.model("iris")
    network.raw(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"name":')
    with pytest.raises(Unreachable, match="before its answer was complete"):
        client.model("iris")


def test_a_download_that_is_cut_is_no_download(client: RegistryClient, network: Network) -> None:
    network.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    with (
        client.download("iris", "3") as download,
        pytest.raises(Unreachable, match="before its answer was complete"),
    ):
        list(download.chunks)


def test_what_is_no_http_says_so(client: RegistryClient, network: Network) -> None:
    network.raw(b"\x00\x00\x18\x04\x00\x00\r\n")
    with pytest.raises(Unreachable, match="does not speak HTTP"):
        client.model("iris")


def test_after_a_failure_the_next_request_connects_anew(
    client: RegistryClient, network: Network
) -> None:
    network.raw(b"")
    with pytest.raises(Unreachable):
        client.model("iris")
    network.answer(200, {"name": "iris"})
    assert client.model("iris").value.name == "iris"


# What cannot be asked


@pytest.mark.parametrize(
    "url",
    ["localhost:8080", "ftp://host", "http://", "http://host:99999", "http://a b", "http://h/?q"],
)
def test_a_url_that_is_none_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(InvalidRequest, match="--url"):
        RegistryClient(url)


def test_no_secret_stands_in_a_message() -> None:
    with pytest.raises(InvalidRequest) as caught:
        RegistryClient("http://me:passphrase@host")
    assert "passphrase" not in caught.value.message
    with pytest.raises(InvalidRequest) as caught:
        RegistryClient(URL, token="passphrase\r\n")
    assert "passphrase" not in caught.value.message
