"""Where an endpoint's resources are, as requests to it begin."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from headrace.ports.upstream import Site

_DEFAULT_PORTS: Final = {False: 80, True: 443}


class Locator:
    """The paths of a site, whose names and versions are escaped, and the lines that name it."""

    def __init__(self, site: Site) -> None:
        self.root = quote(site.path, safe="/%:@!$&'()*+,;=~") + "/v2"
        host = f"[{site.host}]" if ":" in site.host and not site.host.startswith("[") else site.host
        port = "" if site.port == _DEFAULT_PORTS[site.secure] else f":{site.port}"
        self.lines = f"host: {host}{port}\r\nuser-agent: headrace\r\n"

    def model(self, model: str, version: str) -> str:
        """The path of a model or, where `version` is not "", of that version."""
        path = f"{self.root}/models/{quote(model, safe='')}"
        return f"{path}/versions/{quote(version, safe='')}" if version else path

    def repository(self, model: str) -> str:
        """The path of a model in the server's repository."""
        return f"{self.root}/repository/models/{quote(model, safe='')}"
