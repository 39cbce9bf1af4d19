"""`/docs`, which shows the document and sends requests, and the document itself.

The page is our own and brings all it needs: FastAPI's loads its script from another site, which a
machine without the internet cannot, and which would see who looks at it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib import resources
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


def docs_routes(described: Mapping[str, Any]) -> list[Route]:
    """The routes of the page and of the document."""
    text = msgspec.json.encode(described)
    page = resources.files(__package__).joinpath("docs_page.html").read_bytes()
    _, _, rest = page.partition(b"<script>")
    script = rest.partition(b"</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
    policy = (
        f"default-src 'none'; connect-src 'self'; script-src 'sha256-{digest}'; "
        "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )

    async def document(_: Request) -> Response:
        return Response(text, media_type="application/json")

    async def docs(_: Request) -> Response:
        return Response(page, media_type="text/html", headers={"Content-Security-Policy": policy})

    return [
        Route("/api/v1/openapi.json", document, methods=["GET"]),
        Route("/docs", docs, methods=["GET"]),
    ]
