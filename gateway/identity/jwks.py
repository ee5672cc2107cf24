"""An issuer's keys: fetched beside the calls, rotated as the issuer does, kept while it cannot be reached.

Owns when to fetch: at the start, every so often, and when a token names a key that is not known, which no flood of
such tokens makes more frequent. Which key verifies what is decided in `jwk.py`, how documents come in `documents.py`.
"""

import asyncio
import math
import random
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn, Protocol

from gateway.errors import NotJson
from gateway.identity.jwk import KeySet, NoKeys, PublicKey, key_set
from gateway.settings import IssuerSettings
from gateway.wire import json_text

DISCOVERY = "/.well-known/openid-configuration"
# Tokens with unknown keys bring a fetch forward no more often than this, whatever came of the last one.
COOLDOWN_S = 30.0
# A failed fetch is made up for after this time; while there are no keys at all sooner, from a second on.
RETRY_S = 30.0
FIRST_RETRY_S = 1.0
# How long a call waits for a fetch that may bring its key.
PATIENCE_S = 1.0
# A key that a fetch did not bring is no reason for another one for this time: somebody holds a token of old.
ABSENT_S = 60.0
MOST_ABSENT = 1024


class NotFetched(Exception):
    """A document that did not come; the message is for logs."""


class Fetch(Protocol):
    """Fetches documents."""

    async def __call__(self, url: str) -> bytes:
        """The document at `url`. Raises NotFetched."""
        ...


class IssuerKeys:
    """The keys of one issuer: `<IssuerKeys corp: 2 keys, the last fetch failed: answered 500>`.

    `watch` is to run beside the calls. `withdrawn` is told of keys that the issuer publishes no more, at once; `told`
    how each fetch ended: with None, or with what is wrong.
    """

    def __init__(
        self,
        issuer: IssuerSettings,
        fetch: Fetch,
        clock: Callable[[], float],
        rng: random.Random,
        withdrawn: Callable[[frozenset[PublicKey]], None],
        told: Callable[[str | None], None],
    ) -> None:
        self._issuer = issuer
        self._accepted: frozenset[str] = frozenset(issuer.algorithms)
        self._fetch = fetch
        self._clock = clock
        self._rng = rng
        self._withdrawn = withdrawn
        self._told = told
        self._keys = KeySet()
        self._good_until_s = -math.inf
        self._begun_s = -math.inf
        self._fetching = False
        self._failures = 0
        self._trouble: str | None = "none yet"
        self._wanted = asyncio.Event()
        # Set at the end of the fetch under way, or of the next one.
        self._over = asyncio.Event()
        # Keys that were asked for and did not come, and when that was; the oldest first.
        self._absent: dict[tuple[str, str | None], float] = {}

    @property
    def hold(self) -> bool:
        """Whether there are keys, fetched not too long ago."""
        return self._clock() < self._good_until_s

    def find(self, algorithm: str, key_id: str | None) -> PublicKey | None:
        """The key that verifies such a token, as far as known now."""
        return self._keys.find(algorithm, key_id) if self.hold else None

    async def awaited(self, algorithm: str, key_id: str | None) -> PublicKey | None:
        """The same for a key that is not known: has keys fetched if that may be, and waits for them, but not for long.

        All who wait share one fetch, and whoever leaves does not end it.
        """
        if not self._fetching:
            if not self._may_ask(algorithm, key_id):
                return None
            self._wanted.set()
        over = self._over
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                await over.wait()
        key = self.find(algorithm, key_id)
        if key is None and over.is_set():
            self._absent[algorithm, key_id] = self._clock()
            if len(self._absent) > MOST_ABSENT:
                del self._absent[next(iter(self._absent))]
        return key

    def _may_ask(self, algorithm: str, key_id: str | None) -> bool:
        now = self._clock()
        missed_s = self._absent.get((algorithm, key_id), -math.inf)
        return now - self._begun_s >= COOLDOWN_S and now - missed_s >= ABSENT_S

    async def watch(self) -> NoReturn:
        """Fetches the keys now and from then on; nothing that an issuer does ends it."""
        while True:
            self._wanted.clear()
            self._fetching, self._begun_s = True, self._clock()
            try:
                keys = key_set(await self._document(), self._accepted)
            except (NotFetched, NoKeys) as failed:
                self._fail(str(failed))
            except Exception as error:
                # Whatever an issuer publishes, it must not end the watching.
                self._fail(f"its documents cannot be read ({type(error).__name__})")
            else:
                self._take(keys)
            self._fetching = False
            over, self._over = self._over, asyncio.Event()
            over.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s()):
                    await self._wanted.wait()

    async def _document(self) -> bytes:
        """The key set, from where it is or from where the issuer says that it is (OpenID Connect Discovery 1.0)."""
        url, issuer = self._issuer.jwks_url, self._issuer.issuer
        if url is None:
            try:
                discovered = json_text.parse(await self._fetch(issuer.removesuffix("/") + DISCOVERY))
            except NotJson:
                raise NotFetched("the discovery document is not JSON") from None
            if discovered.get("issuer") != issuer:
                raise NotFetched("the discovery document is another issuer's")
            url = discovered.get("jwks_uri")
            if not isinstance(url, str):
                raise NotFetched("the discovery document names no key set")
            if issuer.startswith("https:") and not url.startswith("https:"):
                raise NotFetched("the discovery document names a key set without TLS")
        return await self._fetch(url)

    def _take(self, keys: KeySet) -> None:
        gone = frozenset(self._keys.keys) - frozenset(keys.keys)
        self._keys, self._good_until_s = keys, self._begun_s + self._issuer.max_stale_s
        self._failures, self._trouble = 0, None
        if gone:
            self._withdrawn(gone)
        self._told(None)

    def _fail(self, trouble: str) -> None:
        self._failures += 1
        self._trouble = trouble
        self._told(trouble)

    def _pause_s(self) -> float:
        """Until the next fetch, with jitter: many gateways ask the same issuer."""
        if self._trouble is None:
            return self._issuer.refresh_s * self._rng.uniform(0.8, 1.0)
        retry_s = RETRY_S if self.hold else min(RETRY_S, FIRST_RETRY_S * 2.0 ** min(self._failures - 1, 10))
        return min(self._issuer.refresh_s, retry_s * self._rng.uniform(1.0, 1.2))

    def __repr__(self) -> str:
        trouble = "" if self._trouble is None else f", the last fetch failed: {self._trouble}"
        return f"<IssuerKeys {self._issuer.name}: {len(self._keys.keys)} keys{trouble}>"
