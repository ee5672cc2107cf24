"""The books: what a gateway keeps in a database, and how it lives with one that comes late, goes and comes back.

Composes the database, the directory's following, the ledger, and what is done now and then: budgets are told to the
limiter, old records are removed. A part of the composition root, apart so that SQLAlchemy is only imported by a
gateway that has a database.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from gateway.admission.budgets import seeds
from gateway.identity.directory import Directory
from gateway.identity.following import Following
from gateway.lifetime import background
from gateway.settings import SettingsError, StoreSettings
from gateway.store import revisions, usage
from gateway.store.database import Database, StoreLost
from gateway.store.rows import Changes, UsageRecord
from gateway.telemetry.logs import Log
from gateway.usage.ledger import Ledger
from gateway.usage.records import Spool

# How often budgets are compared with what all gateways have written, and old records looked for.
BUDGETS_S = 10.0
PURGE_EVERY = 360


class Seeded(Protocol):
    """Wants to know what is used of budgets: a limiter."""

    def seed(self, quota_id: str, stamp: int, used: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Books:
    """What there is while the books are open."""

    database: Database
    ledger: Ledger
    following: Following


class Opening:
    """A database that is entered when it can be; leaving closes it if it was."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._closing = AsyncExitStack()
        self._entered = False
        self._entering = asyncio.Lock()

    async def __aenter__(self) -> "Opening":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._closing.aclose()

    async def done(self) -> Database:
        """The database, ready. Raises StoreLost."""
        if not self._entered:
            async with self._entering:
                if not self._entered:
                    await self._closing.enter_async_context(self._database)
                    self._entered = True
        return self._database


@asynccontextmanager
async def kept(
    settings: StoreSettings, directory: Directory, limiter: Seeded, wall: Callable[[], float], log: Log
) -> AsyncIterator[Books]:
    """The books, open. Raises SettingsError for a database that will never let us in."""
    assert settings.url is not None
    database = Database(settings.url)

    async def changes(revision: int, stamp: str) -> Changes:
        found: Changes = await (await opening.done()).read(revisions.changed_since, revision, stamp)
        return found

    def told(why: str) -> None:
        if why:
            log.warning("database_lost", why=why)
        else:
            log.info("database_back")

    def noted(what: str) -> None:
        log.warning("usage", what=what)

    async with AsyncExitStack() as up:
        opening = await up.enter_async_context(Opening(database))
        try:
            await opening.done()
        except StoreLost as lost:
            if lost.refused:
                raise SettingsError("store.url", [str(lost)]) from None
        spool = None
        if settings.spool_folder is not None:
            spool = Spool(settings.spool_folder)
        elif database.file is not None:
            spool = Spool.beside(database.file)
        ledger = await up.enter_async_context(Ledger(_Writes(opening), settings, spool, noted))
        following = await up.enter_async_context(Following(directory, changes, settings.refresh_s, told))
        keeping = _Keeping(opening, settings, directory, limiter, wall, log)
        await keeping.look()
        group = await up.enter_async_context(background())
        up.callback(group.create_task(keeping.go_on()).cancel)
        yield Books(database, ledger, following)


class _Writes:
    """Where the ledger's records go."""

    def __init__(self, opening: Opening) -> None:
        self._opening = opening

    async def write(self, records: Sequence[UsageRecord]) -> None:
        await (await self._opening.done()).run(usage.write, records)


class _Keeping:
    """What is done now and then. What cannot be done now is done the next time."""

    def __init__(
        self,
        opening: Opening,
        settings: StoreSettings,
        directory: Directory,
        limiter: Seeded,
        wall: Callable[[], float],
        log: Log,
    ) -> None:
        self._log = log
        self._opening = opening
        self._kept_days = settings.usage_days
        self._directory = directory
        self._limiter = limiter
        self._wall = wall

    async def go_on(self) -> None:
        looks = 0
        while True:
            await asyncio.sleep(BUDGETS_S)
            try:
                await self.look()
                if looks % PURGE_EVERY == 0:
                    await self._purge()
            except Exception as error:
                # Whatever is in the books, it must not end the gateway.
                self._log.error("books_failed", exc_info=error)
            looks += 1

    async def look(self) -> None:
        """Tells the limiter what is used of budgets."""
        with suppress(StoreLost):
            database, wall_s = await self._opening.done(), self._wall()
            spent = await database.read(usage.spent, datetime.fromtimestamp(wall_s, UTC).date())
            for seed in seeds(self._directory.tenants(), spent, wall_s):
                self._limiter.seed(*seed)

    async def _purge(self) -> None:
        before = datetime.fromtimestamp(self._wall(), UTC) - timedelta(days=self._kept_days)
        with suppress(StoreLost):
            await usage.purge_all(await self._opening.done(), before)
