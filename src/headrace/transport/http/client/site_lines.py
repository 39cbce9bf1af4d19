"""What all requests to a site have in common."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from headrace.ports.upstream import Site

_DEFAULT_PORTS: Final = {False: 80, True: 443}


def site_path(site: Site) -> str:
    """The path of the site's URL as a request line has it; "" where there is none."""
    return quote(site.path, safe="/%:@!$&'()*+,;=~")


def site_lines(site: Site) -> str:
    """The header lines that name the site and who asks."""
    host = f"[{site.host}]" if ":" in site.host and not site.host.startswith("[") else site.host
    port = "" if site.port == _DEFAULT_PORTS[site.secure] else f":{site.port}"
    return f"host: {host}{port}\r\nuser-agent: headrace\r\n"
