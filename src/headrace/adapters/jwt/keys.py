"""Keys, each pinned to one algorithm, and the sets in which an issuer publishes them (RFC 7517)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import ECAlgorithm, HMACAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.exceptions import InvalidKeyError, PyJWTError

from headrace.adapters.jwt.json_object import read_object

#: A public key, or a secret.
Material: TypeAlias = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey | bytes

MAX_SET_BYTES: Final = 1024 * 1024
MAX_ID_LENGTH: Final = 256
_MAX_KEYS: Final = 100
_SHOWN: Final = 64
_RSA: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
#: By kty and crv. A curve leaves no choice, so that `alg` can only repeat it.
_BY_CURVE: Final = {
    ("EC", "P-256"): "ES256",
    ("EC", "P-384"): "ES384",
    ("EC", "P-521"): "ES512",
    ("OKP", "Ed25519"): "EdDSA",
}
_LOADERS: Final[dict[str, Callable[[dict[str, Any]], Any]]] = {
    "RSA": RSAAlgorithm.from_jwk,
    "EC": ECAlgorithm.from_jwk,
    "OKP": OKPAlgorithm.from_jwk,
}
ALGORITHMS: Final = _RSA | set(_BY_CURVE.values()) | {"HS256", "HS384", "HS512"}
_PRIVATE: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_MIN_RSA_BITS: Final = 2048
_MAX_RSA_BITS: Final = 8192  # a check takes 1 ms there, and four times that with each doubling
_MAX_RSA_EXPONENT_BITS: Final = 32  # as above: the exponent is how often is multiplied


class Key(msgspec.Struct, frozen=True):
    """What verifies signatures, and by which algorithm: the token has no say in that."""

    id: str | None
    algorithm: str
    material: Material

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """What `repr` shows: not the material, which may be a secret."""
        return [("id", self.id), ("algorithm", self.algorithm)]

    def __repr__(self) -> str:
        """As `__rich_repr__` says."""
        return f"Key(id={self.id!r}, algorithm={self.algorithm!r})"


class KeySet:
    """The keys of an issuer at one time. Of several with one id the first is meant."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self.all = tuple(keys)
        self._by_id = {key.id: key for key in reversed(keys) if key.id is not None}

    def __len__(self) -> int:
        return len(self.all)

    def lacks(self, key_id: str | None) -> bool:
        """Whether a key is named that is not here. Where no key has an id, none can be named."""
        return bool(self._by_id) and key_id is not None and key_id not in self._by_id

    def choose(self, key_id: str | None, algorithm: str) -> Key | None:
        """The key a token means, if it is pinned to the algorithm that the token says."""
        if self._by_id and key_id is not None:
            key = self._by_id.get(key_id)
            return key if key is not None and key.algorithm == algorithm else None
        fitting = [key for key in self.all if key.algorithm == algorithm]
        # none is tried after another: that would let the sender choose
        return fitting[0] if len(fitting) == 1 else None


class Published(msgspec.Struct, frozen=True):
    """What a set came to: its usable keys, and a sentence on each that should be usable."""

    keys: KeySet
    complaints: tuple[str, ...] = ()


class _Unusable(Exception):
    """Why a key is left out."""


def read_set(data: bytes, *, rsa_algorithm: str) -> Published:
    """Read a JSON Web Key Set.

    One odd key does not make the others useless. Keys for encryption are passed over silently.

    Raises:
        ValueError: it is no key set, is too large, or has no key that could verify a token.
    """
    if len(data) > MAX_SET_BYTES:
        raise ValueError(f"it has more than {MAX_SET_BYTES} bytes")
    try:
        members = read_object(data).get("keys")
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(members, list) or not all(isinstance(each, dict) for each in members):
        raise ValueError("it is not a key set: 'keys' is not a list of objects")
    if len(members) > _MAX_KEYS:
        raise ValueError(f"it has {len(members)} keys; {_MAX_KEYS} are the limit")
    keys: list[Key] = []
    seen: set[str] = set()
    complaints: list[str] = []
    for number, member in enumerate(members, 1):
        if not _is_for_signatures(member):
            continue
        name = member.get("kid")
        shown = ascii(name[:_SHOWN]) if isinstance(name, str) else f"number {number}"
        try:
            key = _key(member, rsa_algorithm)
        except _Unusable as error:
            complaints.append(f"key {shown} is left out: {error}")
            continue
        if key.id is not None and key.id in seen:
            complaints.append(f"key {shown} is left out: another one before it has the same id")
            continue
        if key.id is not None:
            seen.add(key.id)
        keys.append(key)
    if not keys:
        raise ValueError("; ".join(["it has no usable key", *complaints]))
    return Published(KeySet(keys), tuple(complaints))


def _is_for_signatures(member: dict[str, Any]) -> bool:
    operations = member.get("key_ops", ["verify"])
    return member.get("use", "sig") == "sig" and (
        isinstance(operations, list) and "verify" in operations
    )


def _key(member: dict[str, Any], rsa_algorithm: str) -> Key:
    key_id = member.get("kid")
    if key_id is not None and (not isinstance(key_id, str) or len(key_id) > MAX_ID_LENGTH):
        raise _Unusable(f"its kid is not text of at most {MAX_ID_LENGTH} characters")
    algorithm = _pinned(member, rsa_algorithm)
    if _PRIVATE & member.keys():
        raise _Unusable("it has private parts, so that whoever reads the set can sign")
    try:
        material = _LOADERS[member["kty"]](member)
    except (PyJWTError, UnsupportedAlgorithm, ValueError, TypeError, OverflowError) as error:
        raise _Unusable("its numbers are no key") from error
    if isinstance(material, RSAPublicKey):
        if not _MIN_RSA_BITS <= material.key_size <= _MAX_RSA_BITS:
            sizes = f"{_MIN_RSA_BITS} to {_MAX_RSA_BITS} are taken"
            raise _Unusable(f"it has {material.key_size} bits; {sizes}")
        if material.public_numbers().e.bit_length() > _MAX_RSA_EXPONENT_BITS:
            raise _Unusable(f"its exponent has more than {_MAX_RSA_EXPONENT_BITS} bits")
    return Key(key_id, algorithm, material)


def _pinned(member: dict[str, Any], rsa_algorithm: str) -> str:
    """The one algorithm of a key. Never one by which a public key would be a secret."""
    kind, curve, stated = (member.get(name) for name in ("kty", "crv", "alg"))
    if kind == "oct":
        raise _Unusable("it is a secret, and a published secret verifies nothing")
    if not isinstance(kind, str) or kind not in _LOADERS:
        raise _Unusable(f"kty {ascii(kind)[:_SHOWN]} is not known")
    if kind == "RSA":
        allowed, usual = _RSA, rsa_algorithm
    elif isinstance(curve, str) and (kind, curve) in _BY_CURVE:
        usual = _BY_CURVE[kind, curve]
        allowed = frozenset({usual})
    else:
        raise _Unusable(f"crv {ascii(curve)[:_SHOWN]} is not known")
    if stated is None:
        return usual
    if not isinstance(stated, str) or stated not in allowed:
        raise _Unusable(f"alg {ascii(stated)[:_SHOWN]} does not go with its kty and crv")
    return stated


def secret_key(secret: bytes, algorithm: str) -> Key:
    """A shared secret as the only key. Its length is the caller's to check.

    Raises:
        ValueError: it is a public key, which others have too.
    """
    try:
        material = HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
    except InvalidKeyError as error:
        raise ValueError("a public key is not a secret") from error
    return Key(None, algorithm, material)
