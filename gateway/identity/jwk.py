"""Public keys as issuers publish them (JWK Set, RFC 7517), and which algorithm each of them may verify.

A key verifies what its type is for and no more, whatever a token's header says: there is no way to have a public key
taken for a shared secret. Where the set comes from is `jwks.py`'s business.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gateway.errors import NotJson
from gateway.identity.jws import LONGEST_KEY_ID
from gateway.wire import json_text

if TYPE_CHECKING:
    from jwt.algorithms import Algorithm

MOST_KEYS = 64
# Shorter ones are broken (NIST SP 800-131A), longer ones cost milliseconds for each token.
RSA_BITS = range(2048, 8192 + 1)
RSA_ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
BY_CURVE = {
    ("EC", "P-256"): frozenset({"ES256"}),
    ("EC", "P-384"): frozenset({"ES384"}),
    ("EC", "P-521"): frozenset({"ES512"}),
    ("OKP", "Ed25519"): frozenset({"EdDSA"}),
    ("OKP", "Ed448"): frozenset({"EdDSA"}),
}
# The private half, or a shared secret: whoever publishes it has no key any more.
PRIVATE_PARTS = frozenset({"d", "dp", "dq", "k", "oth", "p", "q", "qi"})


class NoKeys(Exception):
    """A document that holds no key set, or none with a key that can be used; the message is for logs."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key and what it may verify; `der` is the key itself, by which two of them are the same."""

    key_id: str | None
    algorithms: frozenset[str]
    der: bytes = field(repr=False)
    material: Any = field(repr=False, compare=False)
    verifiers: "Mapping[str, Algorithm]" = field(repr=False, compare=False)

    def verifies(self, algorithm: str, message: bytes, signature: bytes) -> bool:
        """Whether `signature` is this key's over `message`, by an algorithm that it may verify."""
        return algorithm in self.algorithms and self.verifiers[algorithm].verify(message, self.material, signature)


@dataclass(frozen=True, slots=True)
class KeySet:
    """An issuer's keys, as far as they can be used."""

    keys: tuple[PublicKey, ...] = ()

    def find(self, algorithm: str, key_id: str | None) -> PublicKey | None:
        """The one key for `algorithm` of that id, or of any where none is named; None unless there is just one."""
        able = [k for k in self.keys if algorithm in k.algorithms and (key_id is None or k.key_id == key_id)]
        return able[0] if len(able) == 1 else None


def key_set(document: bytes, accepted: frozenset[str]) -> KeySet:
    """The keys in a JWK Set that may verify an accepted algorithm; others are left out. Raises NoKeys."""
    try:
        entries = json_text.parse(document).get("keys")
    except NotJson:
        raise NoKeys("the key set is not JSON") from None
    if not isinstance(entries, list):
        raise NoKeys("the key set has no list of keys")
    if len(entries) > MOST_KEYS:
        raise NoKeys(f"the key set has more than {MOST_KEYS} keys")
    found = (_public_key(entry, accepted) for entry in entries if isinstance(entry, dict))
    keys = tuple(dict.fromkeys(key for key in found if key is not None))
    if not keys:
        raise NoKeys("the key set has no key that can be used")
    return KeySet(keys)


def _public_key(entry: dict[str, Any], accepted: frozenset[str]) -> PublicKey | None:
    # Imported late: a gateway without issuers needs none of this.
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
    from jwt import PyJWTError
    from jwt.algorithms import get_default_algorithms

    key_id, algorithms = entry.get("kid"), _algorithms(entry) & accepted
    named = "kid" not in entry or (type(key_id) is str and len(key_id) <= LONGEST_KEY_ID)
    if not (algorithms and named) or PRIVATE_PARTS & entry.keys():
        return None
    verifiers = {name: one for name, one in get_default_algorithms().items() if name in algorithms}
    try:
        material: Any = next(iter(verifiers.values())).from_jwk(entry)
        if entry["kty"] == "RSA" and material.key_size not in RSA_BITS:
            return None
        der = material.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (PyJWTError, UnsupportedAlgorithm, ValueError, TypeError, KeyError):
        return None
    return PublicKey(key_id, algorithms, der, material, verifiers)


def _algorithms(entry: dict[str, Any]) -> frozenset[str]:
    """What a key may verify by its type and by its own words; empty where it is for something else."""
    kind, curve, operations = entry.get("kty"), entry.get("crv"), entry.get("key_ops", ["verify"])
    if entry.get("use", "sig") != "sig" or not (isinstance(operations, list) and "verify" in operations):
        return frozenset()
    if kind == "RSA":
        able = RSA_ALGORITHMS
    elif isinstance(kind, str) and isinstance(curve, str):
        able = BY_CURVE.get((kind, curve), frozenset())
    else:
        able = frozenset()
    own = entry.get("alg")
    return able if own is None else frozenset(name for name in able if name == own)
