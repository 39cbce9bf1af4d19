"""Connections to endpoints over TLS, with certificates made for each test."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from headrace.domain.errors import EndpointFailed, InvalidSettings
from headrace.ports.upstream import Site
from headrace.transport.http.client.limits import ClientLimits
from headrace.transport.http.client.pool import ClientPool
from headrace.transport.http.tls import TlsProfile, client_context

_PEM = serialization.Encoding.PEM
_REQUEST = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


class Authority:
    """Signs certificates, and writes them into a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._signed(self._name, self._key.public_key(), authority=True)
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(certificate.public_bytes(_PEM))

    def certify(self, host: str, *, password: bytes | None = None) -> tuple[Path, Path]:
        """The files of a certificate for a host, and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        certificate = self._signed(name, key.public_key(), host=host)
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if password is not None:
            encryption = serialization.BestAvailableEncryption(password)
        files = self._folder / f"{host}.crt", self._folder / f"{host}.key"
        files[0].write_bytes(certificate.public_bytes(_PEM))
        form = serialization.PrivateFormat.PKCS8
        files[1].write_bytes(key.private_bytes(_PEM, form, encryption))
        return files

    def _signed(
        self,
        name: x509.Name,
        key: ec.EllipticCurvePublicKey,
        *,
        host: str = "",
        authority: bool = False,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )
        if host:
            names = x509.SubjectAlternativeName([x509.DNSName(host)])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self._key, hashes.SHA256())


@contextlib.asynccontextmanager
async def secured(
    certificate: Path, key: Path, *, clients: Path | None = None
) -> AsyncIterator[int]:
    """The port of a server that answers "ok" over TLS, to certified clients if so told."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def asked(port: int, profile: TlsProfile, host: str = "endpoint.test") -> list[bytes]:
    """What two requests over one connection are answered."""
    site = Site(host, port, ip_address("127.0.0.1"), secure=True)
    pool = ClientPool(site, limits=ClientLimits(), tls=client_context(profile))
    try:
        deadline = asyncio.get_running_loop().time() + 10
        answers = [await pool.exchange(_REQUEST, (), deadline) for _ in range(2)]
        assert pool.connections == 1
        return [b"".join(answer.body) for answer in answers]
    finally:
        await pool.close()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


async def test_an_endpoint_is_asked_that_its_authority_vouches_for(authority: Authority) -> None:
    async with secured(*authority.certify("endpoint.test")) as port:
        assert await asked(port, TlsProfile(ca_file=str(authority.file))) == [b"ok", b"ok"]


async def test_an_endpoint_of_another_authority_is_refused(
    authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "other")
    async with secured(*authority.certify("endpoint.test")) as port:
        for profile in (TlsProfile(ca_file=str(other.file)), TlsProfile()):
            with pytest.raises(EndpointFailed) as caught:
                await asked(port, profile)
            assert "verify failed" in caught.value.reason
            assert "verify" not in caught.value.message


async def test_an_endpoint_of_another_name_is_refused(authority: Authority) -> None:
    async with secured(*authority.certify("another.test")) as port:
        with pytest.raises(EndpointFailed) as caught:
            await asked(port, TlsProfile(ca_file=str(authority.file)))
        assert "endpoint.test" in caught.value.reason


async def test_an_endpoint_that_asks_for_a_certificate_is_shown_it(authority: Authority) -> None:
    server, client = authority.certify("endpoint.test"), authority.certify("client.test")
    both = client[0].with_suffix(".both")
    both.write_bytes(client[0].read_bytes() + client[1].read_bytes())
    async with secured(*server, clients=authority.file) as port:
        trust = TlsProfile(ca_file=str(authority.file))
        with pytest.raises(EndpointFailed):
            await asked(port, trust)
        for files in ((str(client[0]), str(client[1])), (str(both), "")):
            profile = TlsProfile(
                ca_file=str(authority.file), certificate_file=files[0], key_file=files[1]
            )
            assert await asked(port, profile) == [b"ok", b"ok"]


def test_files_that_do_not_serve_are_named(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.certify("client.test")
    locked = authority.certify("locked.test", password=b"secret")
    empty = tmp_path / "empty.pem"
    empty.touch()
    for profile, named in (
        (TlsProfile(ca_file=str(tmp_path / "none.pem")), "none.pem"),
        (TlsProfile(ca_file=str(empty)), "empty.pem"),
        (TlsProfile(certificate_file=str(certificate)), "client.test.crt"),
        (TlsProfile(certificate_file=str(certificate), key_file=str(empty)), "empty.pem"),
        (TlsProfile(certificate_file=str(certificate), key_file=str(locked[1])), "locked.test.key"),
        (TlsProfile(certificate_file=str(locked[0]), key_file=str(locked[1])), "locked.test.key"),
        (TlsProfile(key_file=str(key)), "client.test.key"),
    ):
        with pytest.raises(InvalidSettings, match=named):
            client_context(profile)
