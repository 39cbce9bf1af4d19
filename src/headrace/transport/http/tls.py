"""How endpoints are told apart from impostors, and how this platform shows them who it is."""

from __future__ import annotations

import ssl

import msgspec

from headrace.domain.errors import InvalidSettings


class TlsProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a connection to an endpoint trusts and shows. Certificates are always verified."""

    #: PEM file of the authorities that may have signed an endpoint's certificate; "" for those
    #: that the system trusts.
    ca_file: str = ""
    #: PEM file of the certificate that is shown to endpoints that ask for one, with the chain
    #: behind it; "" for none.
    certificate_file: str = ""
    #: PEM file of its private key, not encrypted; "" where `certificate_file` holds it too.
    key_file: str = ""


def client_context(profile: TlsProfile) -> ssl.SSLContext:
    """Make what connections of a profile are secured with: TLS 1.2 or later, verified.

    Raises:
        InvalidSettings: a file is not there or does not hold what it should; it is named.
    """
    if profile.key_file and not profile.certificate_file:
        msg = f"key_file '{profile.key_file}' needs a certificate_file beside it"
        raise InvalidSettings(msg)
    try:
        context = ssl.create_default_context(cafile=profile.ca_file or None)
    except (OSError, ValueError) as error:
        msg = f"ca_file '{profile.ca_file}' must hold certificates in PEM form: {_why(error)}"
        raise InvalidSettings(msg) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if profile.certificate_file:
        try:
            # a password, even one that opens nothing: without any it would be asked for at the
            # terminal, and the start would wait for it
            context.load_cert_chain(profile.certificate_file, profile.key_file or None, password="")
        except (OSError, ValueError) as error:
            key_file = profile.key_file or profile.certificate_file
            msg = (
                f"certificate_file '{profile.certificate_file}' and key_file '{key_file}' must "
                f"hold a certificate and its unencrypted key in PEM form: {_why(error)}"
            )
            raise InvalidSettings(msg) from error
    context.set_alpn_protocols(["http/1.1"])
    return context


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or "it cannot be read"
