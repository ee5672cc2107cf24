"""Tokens: from what a caller presents to the subject, tenant, models and role that its issuer vouches for.

Owns the verdicts on tokens that were verified, so that a token costs its signature once. What a token is, which keys
there are and what claims mean is decided in `jws.py`, `jwk.py` and `claims.py`; a caller learns of a wrong token no
more than that it is wrong.
"""

import random
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from functools import partial
from hashlib import sha256
from typing import NamedTuple, Protocol

from gateway.errors import KeysUnknown, UnknownKey
from gateway.identity.claims import Verified, check, meaning
from gateway.identity.jwk import PublicKey
from gateway.identity.jwks import Fetch, IssuerKeys
from gateway.identity.jws import LONGEST_TOKEN, Fault, Rejected, Signed, read
from gateway.lifetime import background
from gateway.settings import IssuerSettings

# A verdict takes about a kilobyte.
MOST_VERDICTS = 16_384


class Watcher(Protocol):
    """Is told what callers are not; `issuer` is a name in the settings."""

    def token_refused(self, issuer: str | None, fault: Fault) -> None:
        """None for a token that named no known issuer."""
        ...

    def keys_fetched(self, issuer: str, trouble: str | None) -> None:
        """None for a fetch that went well."""
        ...


class _Issuer(NamedTuple):
    settings: IssuerSettings
    keys: IssuerKeys


class _Verdict(NamedTuple):
    """What was verified, with which key, and until when (wall time) that holds."""

    verified: Verified
    until_s: float
    key: PublicKey
    keys: IssuerKeys


class Tokens:
    """Verifies tokens of the issuers. Use as `async with`: keys are fetched inside the block.

    `<Tokens 7 verified; <IssuerKeys corp: 2 keys>>`. `clock` is monotonic, `wall` is wall time, both in seconds.
    """

    def __init__(
        self,
        issuers: Iterable[IssuerSettings],
        fetch: Fetch,
        clock: Callable[[], float],
        wall: Callable[[], float],
        rng: random.Random,
        watcher: Watcher,
        *,
        most_verdicts: int = MOST_VERDICTS,
    ) -> None:
        self._wall = wall
        self._watcher = watcher
        self._most_verdicts = most_verdicts
        # By a hash of the whole token, the oldest first: no token is kept, and one that differs in a bit is another.
        self._verdicts: dict[bytes, _Verdict] = {}
        self._issuers: dict[str, _Issuer] = {}
        for settings in issuers:
            told = partial(watcher.keys_fetched, settings.name)
            keys = IssuerKeys(settings, fetch, clock, rng, partial(self._withdraw, settings.issuer), told)
            self._issuers[settings.issuer] = _Issuer(settings, keys)

    async def __aenter__(self) -> "Tokens":
        async with AsyncExitStack() as up:
            if self._issuers:
                # Costs a tenth of a second and ten megabytes: not while calls wait, and not without need.
                import jwt  # noqa: F401
            group = await up.enter_async_context(background())
            for issuer in self._issuers.values():
                up.callback(group.create_task(issuer.keys.watch()).cancel)
            self._down = up.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._down.aclose()

    def known(self, token: str) -> Verified | None:
        """What was verified of this token before, if it still holds; never waits."""
        if len(token) > LONGEST_TOKEN or not token.isascii():
            return None
        verdict = self._verdicts.get(sha256(token.encode()).digest())
        if verdict is None or self._wall() >= verdict.until_s or not verdict.keys.hold:
            return None
        return verdict.verified

    async def verify(self, token: str) -> Verified:
        """For whom the token speaks. Waits a second at most, for keys. Raises UnknownKey, whatever is wrong with it.

        Raises KeysUnknown while there are no keys to judge it by: its issuer was not reached since the start, or for
        too long.
        """
        issuer: _Issuer | None = None
        try:
            signed = read(token)
            # Not proven yet: it only says whose keys to try.
            named = signed.claims.get("iss")
            issuer = self._issuers.get(named) if isinstance(named, str) else None
            if issuer is None:
                raise Rejected(Fault.ISSUER)
            return await self._verified(token, signed, *issuer)
        except Rejected as rejected:
            self._watcher.token_refused(None if issuer is None else issuer.settings.name, rejected.fault)
        raise UnknownKey

    async def _verified(self, token: str, signed: Signed, issuer: IssuerSettings, keys: IssuerKeys) -> Verified:
        if signed.algorithm not in issuer.algorithms:
            raise Rejected(Fault.ALGORITHM)
        key = keys.find(signed.algorithm, signed.key_id)
        if key is None:
            # An old token of a key that is gone is no reason to ask for new ones.
            check(signed.claims, issuer, self._wall())
            key = await keys.awaited(signed.algorithm, signed.key_id)
            if not keys.hold:
                raise KeysUnknown
        if key is None:
            raise Rejected(Fault.KEY)
        if not key.verifies(signed.algorithm, signed.message, signed.signature):
            raise Rejected(Fault.SIGNATURE)
        # Only now, so that nothing is learnt about claims by who cannot sign.
        check(signed.claims, issuer, self._wall())
        verified = meaning(signed.claims, issuer)
        self._keep(token, _Verdict(verified, verified.expires_at + issuer.leeway_s, key, keys))
        return verified

    def _keep(self, token: str, verdict: _Verdict) -> None:
        digest = sha256(token.encode()).digest()
        self._verdicts.pop(digest, None)
        self._verdicts[digest] = verdict
        if len(self._verdicts) > self._most_verdicts:
            del self._verdicts[next(iter(self._verdicts))]

    def _withdraw(self, issuer: str, gone: frozenset[PublicKey]) -> None:
        """Forgets what rests on keys that their issuer does not stand by any more."""
        keys = self._issuers[issuer].keys
        self._verdicts = {
            digest: verdict
            for digest, verdict in self._verdicts.items()
            if verdict.keys is not keys or verdict.key not in gone
        }

    def __repr__(self) -> str:
        issuers = "".join(f"; {issuer.keys!r}" for issuer in self._issuers.values())
        return f"<Tokens {len(self._verdicts)} verified{issuers}>"
