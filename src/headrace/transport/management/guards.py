"""Routes of the management API by what they ask of their caller."""

from __future__ import annotations

from typing import Final

from headrace.transport.access import MANAGE, READ, WRITE, Rule
from headrace.transport.management.strict_route import StrictRoute


def _guarded(*, read: Rule, write: Rule) -> type[StrictRoute]:
    """A class of routes: GET is to read, every other method to write."""
    return type("GuardedStrictRoute", (StrictRoute,), {"read": read, "write": write})


ModelRoute: Final = _guarded(read=READ, write=WRITE)
#: What tells the platform where to send requests is the operator's.
EndpointRoute: Final = _guarded(read=READ, write=MANAGE)
AdminRoute: Final = _guarded(read=MANAGE, write=MANAGE)
