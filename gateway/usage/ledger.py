"""The records of calls that have ended, until they are in the database. No call waits for it.

While the database is away, records are kept and tried again; when too many wait, new ones are lost and counted: what
is missing is then one stretch of time, from `usage_buffer` records on until the database is back. On leaving, what
cannot be written in time goes to the spool, and the next gateway takes it in. A process that is killed loses what was
added since the last flush, at most `usage_flush_s` and the time of one write.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from itertools import islice
from types import TracebackType
from typing import Protocol, Self

from gateway.lifetime import background
from gateway.settings import StoreSettings
from gateway.store.database import StoreLost
from gateway.store.rows import UsageRecord
from gateway.usage.records import Spool

BATCH = 500
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0


class Writes(Protocol):
    """Puts records where they stay. A record whose id is known there adds nothing."""

    async def write(self, records: Sequence[UsageRecord]) -> None:
        """All or none. Raises StoreLost."""
        ...


class Ledger:
    """Use as `async with`; leaving flushes for at most `leave_s`. `<Ledger 3 waiting, 120 written, 0 lost>`.

    `note` is told, in words, when the database goes and comes back, and what is lost. Without a spool what is left at
    the end is lost.
    """

    def __init__(
        self,
        writes: Writes,
        settings: StoreSettings,
        spool: Spool | None,
        note: Callable[[str], None],
        leave_s: float = 5.0,
    ) -> None:
        self.written = 0
        self.lost = 0
        self._writes = writes
        self._flush_s = settings.usage_flush_s
        self._buffer = settings.usage_buffer
        self._spool = spool
        self._note = note
        self._leave_s = leave_s
        # What is being written stays here until it is.
        self._records: deque[UsageRecord] = deque()
        self._some = asyncio.Event()
        self._enough = asyncio.Event()
        self._leaving = asyncio.Event()
        self._away = False
        self._full = False

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as up:
            up.callback(self._keep_rest)
            group = await up.enter_async_context(background())
            self._task = group.create_task(self._write_all())
            self._up = up.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for event in (self._leaving, self._some, self._enough):
            event.set()
        deadline = asyncio.get_running_loop().call_later(self._leave_s, self._task.cancel)
        try:
            await self._up.aclose()
        finally:
            deadline.cancel()

    @property
    def waiting(self) -> int:
        return len(self._records)

    def add(self, record: UsageRecord) -> None:
        """Takes a record, or counts it as lost if too many wait. Never waits, never raises."""
        records = self._records
        if len(records) >= self._buffer:
            self.lost += 1
            if not self._full:
                self._full = True
                self._note(f"usage is being lost: {self._buffer} records wait for the database")
            return
        records.append(record)
        self._some.set()
        if len(records) >= BATCH:
            self._enough.set()

    async def _write_all(self) -> None:
        if self._spool is not None:
            await self._take_in(self._spool)
        while True:
            await self._some.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._flush_s):
                    await self._enough.wait()
            if not self._records:
                return
            batch = list(islice(self._records, BATCH))
            await self._write(batch)
            for _ in batch:
                self._records.popleft()
            self._full = False
            if not self._leaving.is_set():
                if not self._records:
                    self._some.clear()
                if len(self._records) < BATCH:
                    self._enough.clear()

    async def _write(self, batch: list[UsageRecord]) -> None:
        """Returns when each of the batch is written, or can never be."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                await self._writes.write(batch)
            except StoreLost as error:
                if error.refused:
                    return await self._divide(batch, str(error))
                if not self._away:
                    self._away = True
                    self._note(f"usage waits for the database: {error}")
            except Exception as error:
                # Whatever is in a record, it must not keep all others from the database.
                return await self._divide(batch, type(error).__name__)
            else:
                self.written += len(batch)
                if self._away:
                    self._away = False
                    self._note("usage is written again")
                return None
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._leaving.wait()
                    # While leaving it is tried in short order, until time is up.
                    await asyncio.sleep(FIRST_PAUSE_S)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _divide(self, batch: list[UsageRecord], why: str) -> None:
        """Finds those that the database will never take by halves; the others are written."""
        if len(batch) == 1:
            self.lost += 1
            self._note(f"a record of usage is lost, the database refuses it: {why}")
            return
        half = len(batch) // 2
        await self._write(batch[:half])
        await self._write(batch[half:])

    async def _take_in(self, spool: Spool) -> None:
        """Writes what earlier gateways left. Another one may be doing the same: then its files vanish."""
        try:
            for file in await asyncio.to_thread(spool.files):
                start: int | None = 0
                unreadable = 0
                with suppress(FileNotFoundError):
                    while start is not None:
                        page = await asyncio.to_thread(spool.read, file, start, BATCH)
                        start, unreadable = page.end, unreadable + page.unreadable
                        if page.records:
                            await self._write(page.records)
                    await asyncio.to_thread(spool.drop, file, unreadable)
                if unreadable:
                    self.lost += unreadable
                    self._note(f"{unreadable} records of usage that were left behind cannot be read: lost")
        except OSError as error:
            self._note(f"usage that was left behind cannot be taken in: {error.strerror}")

    def _keep_rest(self) -> None:
        rest = list(self._records)
        self._records.clear()
        if not rest:
            return
        if self._spool is not None:
            try:
                self._spool.keep(rest)
            except OSError as error:
                self._note(f"usage cannot be left for the next start: {error.strerror}")
            else:
                self._note(f"{len(rest)} records of usage are left for the next start")
                return
        self.lost += len(rest)
        self._note(f"{len(rest)} records of usage are lost with the end of this process")

    def __repr__(self) -> str:
        return f"<Ledger {self.waiting} waiting, {self.written} written, {self.lost} lost>"
