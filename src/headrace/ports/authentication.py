"""Who sent a request: answered from its headers, without I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from headrace.domain.calls import Principal

#: Header names are lower case. Raises Unauthenticated.
Authenticate: TypeAlias = Callable[[Mapping[bytes, bytes]], Principal]
