"""An issuer of tokens: its keys, what it signs, and the server that publishes the keys."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import ssl
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from jwt.algorithms import Algorithm, get_default_algorithms

ISSUER: Final = "https://issuer.example/"
AUDIENCE: Final = "headrace"
#: What time it is for tokens that say nothing else.
NOW: Final = 1_800_000_000.0
SECRET: Final = "a secret of the tests that is long enough for all three of the hashes"

_CURVES: Final = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
_ALGORITHMS: Final = get_default_algorithms()


class Signer:
    """One key of an issuer. `number` tells keys of one algorithm apart."""

    def __init__(self, algorithm: str, kid: str | None = "k1", *, number: int = 1) -> None:
        self.algorithm = algorithm
        self.kid = kid
        self.private: Any = _private(_family(algorithm), number)

    @property
    def public_pem(self) -> bytes:
        """The public key as it is handed around."""
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        pem: bytes = self.private.public_key().public_bytes(serialization.Encoding.PEM, form)
        return pem

    def jwk(self, **changes: Any) -> dict[str, Any]:
        """The public key as it is published; a change to None takes a member out."""
        public = _algorithm(self.algorithm).to_jwk(self.private.public_key(), as_dict=True)
        public.pop("key_ops", None)
        members = {**public, "kid": self.kid, "alg": self.algorithm, "use": "sig", **changes}
        return {name: value for name, value in members.items() if value is not None}

    def private_jwk(self) -> dict[str, Any]:
        """The key with all that is needed to sign."""
        private = _algorithm(self.algorithm).to_jwk(self.private, as_dict=True)
        return {**private, "kid": self.kid, "alg": self.algorithm, "key_ops": ["sign", "verify"]}

    def header(self, **changes: Any) -> dict[str, Any]:
        """The usual header; a change to None takes a member out."""
        members = {"typ": "JWT", "alg": self.algorithm, "kid": self.kid, **changes}
        return {name: value for name, value in members.items() if value is not None}

    def token(self, payload: Mapping[str, Any] | bytes | None = None, **header: Any) -> bytes:
        """A token with this signature, whatever the header says."""
        return self.sign(
            _json(self.header(**header)), _json(claims() if payload is None else payload)
        )

    def sign(self, header: bytes, payload: bytes) -> bytes:
        """The same for any bytes."""
        signed = encoded(header) + b"." + encoded(payload)
        return signed + b"." + encoded(_algorithm(self.algorithm).sign(signed, self.private))


def claims(**changes: Any) -> dict[str, Any]:
    """Good claims, at NOW; a change to None takes one out."""
    members = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "ann",
        "exp": NOW + 300,
        "nbf": NOW,
        "iat": NOW,
        "scope": "infer batch",
        **changes,
    }
    return {name: value for name, value in members.items() if value is not None}


def encoded(data: bytes) -> bytes:
    """As a part of a token is."""
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def key_set(*keys: Signer | Mapping[str, Any]) -> bytes:
    """Keys as an issuer publishes them."""
    return json.dumps({"keys": [k.jwk() if isinstance(k, Signer) else k for k in keys]}).encode()


def _json(content: Mapping[str, Any] | bytes) -> bytes:
    return content if isinstance(content, bytes) else json.dumps(content).encode()


def _algorithm(name: str) -> Algorithm:
    return _ALGORITHMS[name]


def _family(algorithm: str) -> str:
    return "RSA" if algorithm[:2] in {"RS", "PS"} else "HS" if algorithm[:2] == "HS" else algorithm


@functools.cache  # RSA keys take long to make
def _private(family: str, number: int) -> Any:
    if family == "HS":
        return SECRET.encode() + b"!" * (number - 1)
    if family == "RSA":
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    if family == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key(_CURVES[family])


Fault = Literal["500", "hang", "drip_body", "drip_head", "garbage", "redirect", "endless", "cut"]
_DRIP_S: Final = 0.05


class JwksServer:
    """Publishes `content` at `url`, unless `fault` says otherwise. `requests` are their paths."""

    def __init__(self) -> None:
        self.content = b""
        self.fault: Fault | None = None
        self.requests: list[str] = []
        self.released = threading.Event()  # lets go of what hangs or drips
        self.url = ""

    def publish(self, *keys: Signer | Mapping[str, Any]) -> None:
        """From now on it has these keys."""
        self.content = key_set(*keys)


class _Handler(BaseHTTPRequestHandler):
    jwks: JwksServer

    def do_GET(self) -> None:
        jwks = self.jwks
        jwks.requests.append(self.path)
        with contextlib.suppress(OSError):  # whoever asked had enough of it
            match jwks.fault:
                case None:
                    self._answer(200, jwks.content)
                case "garbage":
                    self._answer(200, b"<html>this is fine</html>")
                case "500":
                    self._answer(500, jwks.content)
                case "redirect":
                    self._answer(302, jwks.content, ("Location", "/elsewhere"))
                case "hang":
                    jwks.released.wait()
                case "drip_body":
                    self._head(200, len(jwks.content))
                    self._drip(jwks.content)
                case "drip_head":
                    self._drip(b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 10_000)
                case "endless":
                    self._head(200, None)
                    while not jwks.released.is_set():
                        self.wfile.write(b" " * 65536)
                case "cut":
                    self._head(200, len(jwks.content))
                    self.wfile.write(jwks.content[:-10])

    def _answer(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        self._head(status, len(body), *headers)
        self.wfile.write(body)

    def _head(self, status: int, size: int | None, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if size is not None:
            self.send_header("Content-Length", str(size))
        self.end_headers()

    def _drip(self, data: bytes) -> None:
        for at in range(len(data)):
            self.wfile.write(data[at : at + 1])
            if self.jwks.released.wait(_DRIP_S):
                return

    def log_message(self, format: str, *args: Any) -> None:
        del format, args


@contextlib.contextmanager
def jwks_server(keys: Sequence[Signer] = (), *, tls: Path | None = None) -> Iterator[JwksServer]:
    """A server on a free port; with TLS, its own certificate and key are put into the file."""
    jwks = JwksServer()
    jwks.publish(*keys)
    handler = type("Handler", (_Handler,), {"jwks": jwks})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign] # a client that hung up
    server.daemon_threads = True
    scheme = "http"
    if tls is not None:
        _certify(tls)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        scheme = "https"
    jwks.url = f"{scheme}://127.0.0.1:{server.server_port}/keys?tenant=7"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield jwks
    finally:
        jwks.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


def _certify(file: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    file.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
        + certificate.public_bytes(pem)
    )


class Clock:
    """Seconds that go on when they are told to."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
