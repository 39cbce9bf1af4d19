"""Writes `docs/openapi.json`: the management API, and OpenAI's.

python -m tools.openapi            write it
python -m tools.openapi --check    exit with 1 where it is not up to date
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Final

from headrace.transport.management.application import operations
from headrace.transport.management.document import document
from headrace.transport.openai.document import document as openai_document

FILE: Final = Path(__file__).parents[1] / "docs" / "openapi.json"
#: The API's. A running platform puts its own there, with which this file should not change.
_VERSION: Final = "v1"


def text() -> str:
    """The whole document."""
    described = document(operations(), version=_VERSION, beside=openai_document())
    return json.dumps(described, indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str] | None = None, *, file: Path = FILE) -> int:
    """Write or check the document; answers the exit code."""
    parser = argparse.ArgumentParser(description="Write docs/openapi.json out of the routes.")
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    check: bool = parser.parse_args(arguments).check
    written = text()
    if not check:
        file.write_text(written, encoding="utf-8")
    elif not file.is_file() or file.read_text("utf-8") != written:
        sys.stderr.write(f"{file} is out of date: run python -m tools.openapi\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
