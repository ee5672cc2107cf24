"""What a gateway has only where its settings ask for it: limits shared through Redis, issuers' tokens, the admin API.

A part of the composition root. What is not asked for is not even imported.
"""

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING

from starlette.routing import Route

from gateway.admission.limits import LocalLimits
from gateway.admission.shared import SharedLimits
from gateway.identity.identities import Identities
from gateway.redis import Redis
from gateway.settings import IdentitySettings, RedisSettings, Settings
from gateway.telemetry.logs import Log

if TYPE_CHECKING:
    from gateway.books import Books
    from gateway.identity.jws import Fault
    from gateway.identity.tokens import Tokens

Clock = Callable[[], float]


@asynccontextmanager
async def limiting(
    settings: RedisSettings, instance: str, log: Log, clock: Clock, wall: Clock, rng: random.Random
) -> AsyncIterator[LocalLimits | SharedLimits]:
    """The limiter: through Redis where there is one, else of this process."""
    local = LocalLimits(clock, wall)
    if settings.url is None:
        yield local
        return

    def told(why: str | None) -> None:
        if why is None:
            log.info("redis_back")
        else:
            log.warning("redis_away", why=why)

    async with Redis(settings, rng) as redis, SharedLimits(redis, settings, local, instance, clock, told) as shared:
        yield shared


class TokenWatch:
    """What was wrong with tokens, counted: callers are not told. `refused` is by issuer (empty: unknown) and fault."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.refused = Counter[tuple[str, str]]()
        self.not_fetched = Counter[str]()

    def token_refused(self, issuer: str | None, fault: "Fault") -> None:
        self.refused[issuer or "", fault.value] += 1

    def keys_fetched(self, issuer: str, trouble: str | None) -> None:
        if trouble is not None:
            self.not_fetched[issuer] += 1
            self._log.warning("issuer_keys_not_fetched", issuer=issuer, why=trouble)


@asynccontextmanager
async def judging(
    settings: IdentitySettings, watch: TokenWatch, clock: Clock, wall: Clock, rng: random.Random
) -> "AsyncIterator[Tokens | None]":
    """The judge of tokens, where there are issuers."""
    if not settings.issuers:
        yield None
        return
    from gateway.identity.documents import HttpDocuments
    from gateway.identity.tokens import Tokens

    async with (
        HttpDocuments() as documents,
        Tokens(settings.issuers, documents.fetch, clock, wall, rng, watch) as tokens,
    ):
        yield tokens


def administered(
    settings: Settings,
    books: "Books",
    secret: bytes,
    identities: Identities,
    wall: Clock,
    status: Callable[[], Mapping[str, str]],
) -> list[Route]:
    """The routes of the admin API."""
    from gateway.admin.administration import Administration
    from gateway.admin.api import AdminApi
    from gateway.admin.declared import Declared

    administration = Administration(
        books.database,
        Declared.of(settings.identity, settings.admin),
        secret,
        now=lambda: datetime.fromtimestamp(wall(), UTC),
        changed=books.following.at_once,
        status=status,
        unit=settings.pricing.unit,
    )
    return AdminApi(administration, identities.administrator, version("pagegate")).routes()
