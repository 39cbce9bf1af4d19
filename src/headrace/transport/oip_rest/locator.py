"""Where an endpoint's resources are, as requests to it begin."""

from __future__ import annotations

from urllib.parse import quote

from headrace.ports.upstream import Site
from headrace.transport.http.client.site_lines import site_lines, site_path


class Locator:
    """The paths of a site, whose names and versions are escaped, and the lines that name it."""

    def __init__(self, site: Site) -> None:
        self.root = site_path(site) + "/v2"
        self.lines = site_lines(site)

    def model(self, model: str, version: str) -> str:
        """The path of a model or, where `version` is not "", of that version."""
        path = f"{self.root}/models/{quote(model, safe='')}"
        return f"{path}/versions/{quote(version, safe='')}" if version else path

    def repository(self, model: str) -> str:
        """The path of a model in the server's repository."""
        return f"{self.root}/repository/models/{quote(model, safe='')}"
