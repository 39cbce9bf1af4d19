from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from headrace.domain.errors import InvalidSettings
from headrace.transport.http.tls import TlsProfile, client_context
from tests.support.tls_front import authority


def test_without_settings_certificates_are_verified_by_whom_the_system_trusts() -> None:
    context = client_context(TlsProfile())
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_an_authority_of_ones_own_is_the_only_one_that_counts(tmp_path: Path) -> None:
    context = client_context(TlsProfile(ca_file=str(authority(tmp_path).ca_file)))
    (trusted,) = context.get_ca_certs()
    assert trusted["subject"] == ((("commonName", "authority"),),)
    assert context.verify_mode is ssl.CERT_REQUIRED


def test_a_certificate_may_have_its_key_in_the_same_file(tmp_path: Path) -> None:
    client_context(TlsProfile(certificate_file=str(authority(tmp_path).client_file)))


@pytest.mark.parametrize(
    ("profile", "told"),
    [
        (TlsProfile(key_file="own.key"), "'own.key' needs a certificate_file"),
        (TlsProfile(ca_file="{}/none.pem"), "ca_file '.*none.pem' must hold .*: No such file"),
        (TlsProfile(ca_file="{}/odd.pem"), "ca_file '.*odd.pem' must hold certificates"),
        (TlsProfile(certificate_file="{}/odd.pem"), "certificate_file '.*odd.pem' and key_file"),
        (TlsProfile(certificate_file="{}/ca.pem"), "its unencrypted key"),
    ],
)
def test_a_file_that_does_not_serve_is_named(
    tmp_path: Path, profile: TlsProfile, told: str
) -> None:
    authority(tmp_path)
    (tmp_path / "odd.pem").write_text("odd")
    placed = TlsProfile(
        ca_file=profile.ca_file.format(tmp_path),
        certificate_file=profile.certificate_file.format(tmp_path),
        key_file=profile.key_file,
    )
    with pytest.raises(InvalidSettings, match=told):
        client_context(placed)
