"""TLS before a server that has none, on loopback, for clients that show a certificate."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_PATIENCE_S: Final = 20.0
_CHUNK_BYTES: Final = 65_536
_PEM: Final = serialization.Encoding.PEM


class Authority(msgspec.Struct, frozen=True):
    """Files in PEM form: whom to trust, and certificates with their keys."""

    ca_file: Path
    server_file: Path  # of localhost and 127.0.0.1
    client_file: Path  # of "headrace"


class Front(msgspec.Struct):
    """Where it listens, and whose certificates clients have shown, one for each connection."""

    port: int = 0
    subjects: list[str] = []


def authority(folder: Path) -> Authority:
    """Make an authority that has signed a server and a client."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("authority")
    made = _signed(_builder(name, name, key), key, ca=True)
    files = Authority(folder / "ca.pem", folder / "server.pem", folder / "client.pem")
    files.ca_file.write_bytes(made.public_bytes(_PEM))
    for file, subject in ((files.server_file, "localhost"), (files.client_file, "headrace")):
        own = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName(subject), x509.IPAddress(IPv4Address("127.0.0.1"))]
        builder = _builder(_name(subject), name, own).add_extension(
            x509.SubjectAlternativeName(names), critical=False
        )
        text = own.private_bytes(
            _PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        file.write_bytes(text + _signed(builder, key, ca=False).public_bytes(_PEM))
    return files


@contextlib.contextmanager
def tls_front(behind_port: int, files: Authority) -> Iterator[Front]:
    """Pass on what comes, decrypted, to a port of this machine, until the block ends."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.server_file)
    context.load_verify_locations(files.ca_file)
    context.verify_mode = ssl.CERT_REQUIRED
    front, ready, loop = Front(), threading.Event(), asyncio.new_event_loop()
    over = asyncio.Event()

    async def passed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        shown = writer.get_extra_info("peercert")
        front.subjects.append(dict(pair for (pair,) in shown["subject"])["commonName"])
        behind, onward = await asyncio.open_connection("127.0.0.1", behind_port)
        await asyncio.gather(_copy(reader, onward), _copy(behind, writer))

    async def serve() -> None:
        server = await asyncio.start_server(passed, "127.0.0.1", 0, ssl=context)
        front.port = server.sockets[0].getsockname()[1]
        ready.set()
        await over.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), name="tls front")
    thread.start()
    try:
        assert ready.wait(_PATIENCE_S)
        yield front
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(_PATIENCE_S)
        loop.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(_CHUNK_BYTES):
                writer.write(data)
                await writer.drain()
    finally:
        writer.close()


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
    )


def _signed(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, *, ca: bool
) -> x509.Certificate:
    basic = x509.BasicConstraints(ca=ca, path_length=None)
    return builder.add_extension(basic, critical=True).sign(key, hashes.SHA256())
