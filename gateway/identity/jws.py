"""A signed token as it is written (JWS compact form, RFC 7515), read so strictly that it can be read in one way only.

Decides what is a token at all, and which of its header's words count: the algorithm and the key's id, nothing else.
Whether it is true is another's question: nothing that is read here is proven.
"""

import enum
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any, NamedTuple

from gateway.errors import NotJson
from gateway.wire import json_text

LONGEST_TOKEN = 8 * 1024
LONGEST_HEADER = 2 * 1024
LONGEST_KEY_ID = 256
# What a JSON object begins with, in base64: a brace, then a quote or a space, or the end of a line.
BEGINNINGS = ("ey", "ew")
# Other kinds of tokens are signed with the same keys: a logout token is no permission to call.
TYPES = frozenset({"jwt", "at+jwt"})
# A header that holds one of these means something else than it seems to: it is refused unread. What names or brings a
# key of the sender's choice (jku, jwk, x5u, x5c) is never looked at.
MEANING_CHANGED = ("crit", "b64", "enc", "zip")


class Fault(enum.StrEnum):
    """What is wrong with a token: for logs and metrics, never for who sent it."""

    TOO_LONG = "too_long"
    MALFORMED = "malformed"
    HEADER = "header"
    ISSUER = "issuer"
    ALGORITHM = "algorithm"
    KEY = "key"
    SIGNATURE = "signature"
    TIMES = "times"
    EXPIRED = "expired"
    NOT_YET = "not_yet"
    LIFETIME = "lifetime"
    AUDIENCE = "audience"
    PARTY = "party"
    SUBJECT = "subject"
    TENANT = "tenant"
    MODELS = "models"
    ROLE = "role"


class Rejected(Exception):
    """A token that is not accepted; `fault` says why, to us."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.value)
        self.fault = fault


class Signed(NamedTuple):
    """A token that can be read; `signature` is over `message`. Nothing of it is proven."""

    algorithm: str
    key_id: str | None
    claims: dict[str, Any]
    message: bytes
    signature: bytes


def looks_like_token(credential: str) -> bool:
    """Whether a credential is meant to be a token: three parts, the first of which begins as a JSON object."""
    return credential.startswith(BEGINNINGS) and credential.count(".") == 2


def read(token: str) -> Signed:
    """What a token says. Raises Rejected."""
    if len(token) > LONGEST_TOKEN:
        raise Rejected(Fault.TOO_LONG)
    parts = token.split(".")
    if len(parts) != 3 or not token.isascii() or len(parts[0]) > LONGEST_HEADER:
        raise Rejected(Fault.MALFORMED)
    header, payload, signature = (_decoded(part.encode()) for part in parts)
    algorithm, key_id = _named(_object(header))
    return Signed(algorithm, key_id, _object(payload), token.rpartition(".")[0].encode(), signature)


def _named(header: dict[str, Any]) -> tuple[str, str | None]:
    """The algorithm and the key's id that a header names."""
    algorithm, key_id, kind = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    if any(name in header for name in MEANING_CHANGED):
        raise Rejected(Fault.HEADER)
    # Media types are the same in any case, and `application/` may be left out (RFC 7515, 4.1.9).
    if type(kind) is not str or kind.lower().removeprefix("application/") not in TYPES:
        raise Rejected(Fault.HEADER)
    if "kid" in header and (type(key_id) is not str or len(key_id) > LONGEST_KEY_ID):
        raise Rejected(Fault.HEADER)
    if type(algorithm) is not str:
        raise Rejected(Fault.ALGORITHM)
    return algorithm, key_id


def _decoded(part: bytes) -> bytes:
    """Base64url as RFC 7515 has it: no padding, no other letters, and no second way to write the same bytes."""
    try:
        decoded = urlsafe_b64decode(part + b"=" * (-len(part) % 4))
    except ValueError:
        raise Rejected(Fault.MALFORMED) from None
    # The decoder skips what it does not know, and the bits that are left over.
    if urlsafe_b64encode(decoded).rstrip(b"=") != part:
        raise Rejected(Fault.MALFORMED)
    return decoded


def _object(text: bytes) -> dict[str, Any]:
    try:
        return json_text.parse(text)
    except NotJson:
        raise Rejected(Fault.MALFORMED) from None
