"""API keys: how they are made, and what of them may be kept: a digest under the gateway's secret, and no key."""

import errno
import hashlib
import os
import secrets
from contextlib import suppress
from pathlib import Path

from gateway.settings import SHORTEST_SECRET

KEY_PREFIX = "pg-"
ADMIN_KEY_PREFIX = "pga-"
ADMIN_KEY_PREFIX = "pga-"
LONGEST_KEY = 512


def new_key(prefix: str = KEY_PREFIX) -> str:
    """A new key of 256 random bits."""
    return prefix + secrets.token_urlsafe(32)


def digest(key: str, secret: bytes) -> str:
    """Keyed BLAKE2b-256 of a key (RFC 7693), in hexadecimal: what a settings file may hold."""
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), key=_short(secret), digest_size=32).hexdigest()


def cache_salt(tenant: str, secret: bytes) -> str:
    """A tenant's salt for engines' prefix caches: hexadecimal, not guessable without the secret."""
    return hashlib.blake2b(tenant.encode(), key=_short(secret), digest_size=16, person=b"cache-salt").hexdigest()


def ensure_secret(path: Path) -> bytes:
    """The secret in a file; a file that is missing is made, readable by its owner alone. Raises OSError.

    Of several that make it at once one succeeds, whole, and all of them get that one's.
    """
    if not path.exists():
        draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        try:
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_urlsafe(48).encode() + b"\n")
            with suppress(FileExistsError):
                os.link(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    secret = path.read_bytes().strip()
    if len(secret) < SHORTEST_SECRET:
        raise OSError(errno.EINVAL, f"holds no secret of at least {SHORTEST_SECRET} bytes", str(path))
    return secret


def _short(secret: bytes) -> bytes:
    """BLAKE2b takes keys up to 64 bytes; a longer secret is hashed first, as HMAC does."""
    return secret if len(secret) <= 64 else hashlib.blake2b(secret).digest()
