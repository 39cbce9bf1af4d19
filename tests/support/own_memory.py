"""Programs whose peak of memory is their own."""

from __future__ import annotations

from typing import Final

#: A process begins with the peak that it had before `exec`, which is that of whoever forked it. In
#: between stands a shell, which is small.
APART: Final = ("/bin/sh", "-c", '"$@"; exit $?', "sh")
