"""Connections to endpoints, by whatever they speak."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.domain.calls import OPERATOR
from headrace.domain.catalog import Endpoint
from headrace.domain.errors import InvalidSettings
from headrace.ports.upstream import Site, Upstream
from headrace.settings import Settings
from headrace.transport.http.client.pool import ClientPool
from headrace.transport.http.tls import TlsProfile, client_context
from headrace.transport.oip_rest.upstream import RestUpstream
from headrace.transport.openai.upstream import OpenAiUpstream

if TYPE_CHECKING:
    import grpc

_DEFAULT = "default"


class Upstreams:
    """The port `Connect`. `in_process` makes the upstream of this process itself.

    Raises:
        InvalidSettings: from the constructor: a TLS profile cannot be used.
    """

    def __init__(self, settings: Settings, *, in_process: Callable[[Endpoint], Upstream]) -> None:
        self._settings = settings
        self._in_process = in_process
        self._contexts = {name: tls_context(settings, name) for name in settings.tls}

    def __call__(self, endpoint: Endpoint, site: Site | None) -> Upstream:
        """See Connect. Raises InvalidSettings where the endpoint's TLS profile is not there."""
        if site is None:
            return self._in_process(endpoint)
        if endpoint.reached[0] == "oip-grpc":
            from headrace.transport.oip_grpc.upstream import GrpcUpstream

            return GrpcUpstream(
                endpoint,
                site,
                settings=self._settings.endpoint_grpc,
                clock=time.monotonic,
                credentials=self._credentials(endpoint.tls) if site.secure else None,
            )
        tls = self._context(endpoint.tls) if site.secure else None
        pool = ClientPool(site, limits=self._settings.endpoint_http, tls=tls)
        if endpoint.protocol == "openai":
            return OpenAiUpstream(
                endpoint,
                site,
                pool=pool,
                tls=tls,
                secret=self.secret_of(endpoint),
                clock=time.monotonic,
                wall_clock=time.time,
            )
        return RestUpstream(endpoint, site, pool=pool, clock=time.monotonic, wall_clock=time.time)

    def secret_of(self, endpoint: Endpoint) -> str:
        """What the settings say that one of their own endpoints is shown; "" where nothing is."""
        ours = self._settings.endpoints.get(endpoint.name)
        key = self._settings.endpoint_keys.get(endpoint.name)
        # a registered one may bear the same name, and is not to learn what is not meant for it
        if key is None or ours is None or (endpoint.tenant, endpoint.url) != (OPERATOR, ours.url):
            return ""
        return key.secret

    def _context(self, name: str) -> ssl.SSLContext:
        name = name or _DEFAULT
        context = self._contexts.get(name)
        if context is None:
            context = self._contexts[name] = tls_context(self._settings, name)
        return context

    def _credentials(self, name: str) -> grpc.ChannelCredentials:
        from headrace.transport.oip_grpc.upstream import channel_credentials

        profile = _profile(self._settings, name or _DEFAULT)
        files = (profile.ca_file, profile.certificate_file, profile.key_file)
        return channel_credentials(*(Path(file).read_bytes() if file else None for file in files))


def tls_context(settings: Settings, name: str) -> ssl.SSLContext:
    """What a profile of `[tls]` secures connections with.

    Raises:
        InvalidSettings: naming the profile, where there is none of that name, or it has a file that
            cannot be used.
    """
    try:
        return client_context(_profile(settings, name))
    except InvalidSettings as error:
        raise InvalidSettings(f"tls.{name}: {error.message}") from error


def _profile(settings: Settings, name: str) -> TlsProfile:
    if name == _DEFAULT:
        return settings.tls.get(name, TlsProfile())
    profile = settings.tls.get(name)
    if profile is None:
        raise InvalidSettings("there is no such profile in the settings")
    return profile
