"""Weighted rendezvous hashing: who has a key, the same in every process and after each restart.

Everybody runs a race for the key. How long each takes is made of the key's hash and its own, and
divided by its weight; the first to arrive has the key, and the others stand behind it in the order
in which they arrive. Whoever leaves, or gets another weight, changes nothing between the others, so
that no key moves but to or from it. Times are exponentially distributed, which makes shares as the
weights say (Schindelhauer and Schomaker, "Weighted Distributed Hash Tables", the logarithmic way).
"""

from __future__ import annotations

import math
from hashlib import blake2b
from typing import Final

_MASK: Final = (1 << 64) - 1
_BITS: Final = 52  # with the half that is added, what a float holds exactly


def stable_hash(*parts: str) -> int:
    """64 bits that are the same everywhere. Parts are kept apart: "a", "bc" is not "ab", "c"."""
    # NUL does not occur in names and headers; a lone surrogate must not be an error here
    text = "\0".join(parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big")


def arrival(key: int, runner: int, weight: float) -> float:
    """When a runner arrives in the race for a key; both are stable hashes, the weight is above 0.

    The two are mixed as SplitMix64 ends each of its numbers: a second blake2b for each runner takes
    three times as long.
    """
    mixed = key ^ runner
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & _MASK
    mixed ^= mixed >> 31
    return -math.log(((mixed >> (64 - _BITS)) + 0.5) / (1 << _BITS)) / weight
