"""What was used and what was done, to be read: sums of usage, single calls, the audit log; in pages or as a whole.

What is exported is read a page at a time, when there is room for it, however much it is. That somebody took it away
is recorded.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple, cast

from gateway.admin.bodies import EntriesExport, EntriesWanted, RecordsExport, RecordsWanted, SumsExport, SumsWanted
from gateway.admin.cursors import cursor, moment_and_id
from gateway.admin.recorded import Note, Recorded
from gateway.admin.roles import Act, Actor
from gateway.errors import BadCall
from gateway.store import audit, usage
from gateway.store.rows import AuditEntry, UsageRecord, UsageSum

EXPORT_ROWS = 1000
MOST_SUMS = 10_000


class RecordsPage(NamedTuple):
    """Some calls, newest first, and where the next ones begin."""

    found: Sequence[UsageRecord]
    next: str | None


class EntriesPage(NamedTuple):
    """Some entries of the audit log, newest first, and where the next ones begin."""

    found: Sequence[AuditEntry]
    next: str | None


class Records:
    """Reads. Raise BadCall, RoleTooSmall, StoreAway; an export may raise StoreAway between two pages."""

    def __init__(self, recorded: Recorded, now: Callable[[], datetime]) -> None:
        self._recorded = recorded
        self._now = now

    async def sums(self, actor: Actor, wanted: SumsWanted) -> Sequence[UsageSum]:
        """Sums of a range of days, one for each group."""
        first, last = wanted.range(self._now().date())
        found = await self._recorded.read(
            actor,
            Act.USAGE_READ,
            usage.summed,
            by=cast(Sequence[usage.By], wanted.groups),
            first=first,
            last=last,
            tenant=wanted.tenant,
            key=wanted.key,
            model=wanted.model,
        )
        if len(found) > MOST_SUMS:
            raise BadCall(f"There are more than {MOST_SUMS} sums: ask for fewer days or groups, or export them.")
        return found

    async def sums_export(self, actor: Actor, wanted: SumsExport) -> AsyncIterator[Sequence[UsageSum]]:
        """The same without a bound; where days are a group, a day at a time."""
        first, last = wanted.range(self._now().date())
        await self._recorded.record(
            actor, Note(Act.USAGE_EXPORT, "sums", wanted.model_dump(mode="json", exclude_unset=True))
        )
        step = timedelta(days=0 if "day" in wanted.groups else (last - first).days)

        async def pages() -> AsyncIterator[Sequence[UsageSum]]:
            start = first
            while start <= last:
                end = start + step
                yield await self._recorded.read(
                    actor,
                    Act.USAGE_READ,
                    usage.summed,
                    by=cast(Sequence[usage.By], wanted.groups),
                    first=start,
                    last=end,
                    tenant=wanted.tenant,
                    key=wanted.key,
                    model=wanted.model,
                )
                start = end + timedelta(days=1)

        return pages()

    async def records(self, actor: Actor, wanted: RecordsWanted) -> RecordsPage:
        """A page of single calls."""
        found = await self._records(actor, wanted, wanted.limit + 1, moment_and_id(wanted.after))
        page = found[: wanted.limit]
        return RecordsPage(page, _after(page[-1]) if len(found) > wanted.limit else None)

    async def records_export(self, actor: Actor, wanted: RecordsExport) -> AsyncIterator[Sequence[UsageRecord]]:
        """All of them, in pages."""
        await self._recorded.record(
            actor, Note(Act.USAGE_EXPORT, "records", wanted.model_dump(mode="json", exclude_unset=True))
        )

        async def pages() -> AsyncIterator[Sequence[UsageRecord]]:
            before = None
            while page := await self._records(actor, wanted, EXPORT_ROWS, before):
                yield page
                before = page[-1].at, page[-1].id

        return pages()

    async def entries(self, actor: Actor, wanted: EntriesWanted) -> EntriesPage:
        """A page of the audit log."""
        found = await self._entries(actor, wanted, wanted.limit + 1, moment_and_id(wanted.after))
        page = found[: wanted.limit]
        return EntriesPage(page, _after(page[-1]) if len(found) > wanted.limit else None)

    async def entries_export(self, actor: Actor, wanted: EntriesExport) -> AsyncIterator[Sequence[AuditEntry]]:
        """All of it, in pages."""
        await self._recorded.record(
            actor, Note(Act.AUDIT_EXPORT, "", wanted.model_dump(mode="json", exclude_unset=True))
        )

        async def pages() -> AsyncIterator[Sequence[AuditEntry]]:
            before = None
            while page := await self._entries(actor, wanted, EXPORT_ROWS, before):
                yield page
                before = page[-1].at, page[-1].id

        return pages()

    async def _records(
        self,
        actor: Actor,
        wanted: RecordsWanted | RecordsExport,
        limit: int,
        before: tuple[datetime, str] | None,
    ) -> Sequence[UsageRecord]:
        return await self._recorded.read(
            actor,
            Act.USAGE_READ,
            usage.listed,
            limit=limit,
            before=before,
            tenant=wanted.tenant,
            key=wanted.key,
            model=wanted.model,
            since=wanted.start,
            until=wanted.end,
        )

    async def _entries(
        self,
        actor: Actor,
        wanted: EntriesWanted | EntriesExport,
        limit: int,
        before: tuple[datetime, str] | None,
    ) -> Sequence[AuditEntry]:
        return await self._recorded.read(
            actor,
            Act.AUDIT_READ,
            audit.listed,
            limit=limit,
            before=before,
            actor=wanted.actor,
            action=wanted.action,
            target=wanted.target,
            since=wanted.start,
            until=wanted.end,
        )


def _after(row: UsageRecord | AuditEntry) -> str:
    return cursor(row.at.isoformat(), row.id)
