"""What became of requests that came with an idempotency key, so that a repeat is not run again.

Times are the store's own: processes whose clocks differ, or jump, agree on when a lease ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

import msgspec

from headrace.domain.idempotency import IdempotencyKey

#: How long a request that is under way keeps its key when its process says no more of it.
#:
#: A repeat after a crash is to be taken within 30 s, and this is what it waits for. It bounds no
#: request: whoever runs one renews three times in it (transport/idempotent.py), so inspections of
#: artifacts and the rows of a batch's file may take minutes; uploads have no key. A holder that
#: stood still for longer, or could not reach the store, loses its key to a repeat and changes
#: nothing then: the change's own transaction asks for the holder (Transaction.carry_out).
LEASE_S: Final = 20.0
#: How long an answer is kept.
KEPT_S: Final = 24 * 3600.0


class KeptAnswer(msgspec.Struct, frozen=True):
    """An answer as it is given again."""

    status: int  # of HTTP
    headers: Mapping[str, str]
    body: str


class IdempotencyStore(Protocol):
    """Keys, and the answers to the requests that came with them.

    `holder` is whoever runs the request, and nobody else's name. What a holder says after it lost
    its lease to another changes nothing. Every method raises StoreUnavailable where the store does
    not answer.

    That a request was carried out is not said here but with the change: see Transaction.carry_out.
    From then on its key is never claimed again, for as long as answers are kept.
    """

    async def claim(
        self, key: IdempotencyKey, *, request: str, holder: str, lease_s: float = LEASE_S
    ) -> KeptAnswer | None:
        """The answer to the request; None: there is none, and the holder is to make it.

        `request` is the same text for the same request. Keys whose time is over are new.

        Raises:
            IdempotencyInFlight: another holder makes the answer.
            IdempotencyAnswerLost: the request was carried out, and no answer will come of it.
            IdempotencyMismatch: the key came with another request.
        """
        ...

    async def renew(self, key: IdempotencyKey, *, holder: str, lease_s: float = LEASE_S) -> None:
        """Go on holding a key: the lease begins anew."""
        ...

    async def keep(
        self, key: IdempotencyKey, answer: KeptAnswer, *, holder: str, kept_s: float = KEPT_S
    ) -> None:
        """Keep the answer that the holder has made."""
        ...

    async def release(self, key: IdempotencyKey, *, holder: str) -> None:
        """Let go of a key that has no answer: it is new, unless its request was carried out."""
        ...

    async def forget(self) -> None:
        """Remove the keys whose time is over."""
        ...
