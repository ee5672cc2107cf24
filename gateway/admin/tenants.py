"""What can be done with tenants: made, listed, changed, removed; and what each has used of its budget."""

from collections.abc import Callable, Sequence
from datetime import date, datetime
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from gateway.admin.bodies import NewTenant, Removal, TenantChange, TenantsWanted, merged
from gateway.admin.cursors import cursor, place
from gateway.admin.declared import Declared
from gateway.admin.denials import FromFile, InTheWay, NotThere
from gateway.admin.keys import before, labelled
from gateway.admin.recorded import Note, Recorded
from gateway.admin.roles import Act, Actor
from gateway.settings import TenantSettings
from gateway.store import keys, revisions, tenants, usage
from gateway.store.rows import KeyRow, Missing, Spent, Taken, TenantChanges, TenantRow, UsageSum

if TYPE_CHECKING:
    from sqlalchemy import Connection

KEYS_AT_ONCE = 1000


class TenantsPage(NamedTuple):
    """Some tenants in the order of their names, the file's and the database's, and where the next ones begin."""

    found: Sequence[TenantSettings | TenantRow]
    next: str | None


class Removed(NamedTuple):
    """A tenant that was removed, and the keys that were revoked with it."""

    row: TenantRow
    revoked: Sequence[str]


class TenantActs:
    """The acts. Raise NotThere, InTheWay, BadCall, and what `Recorded` raises."""

    def __init__(self, recorded: Recorded, declared: Declared, now: Callable[[], datetime]) -> None:
        self._recorded = recorded
        self._declared = declared
        self._now = now

    async def create(self, actor: Actor, wanted: NewTenant) -> TenantRow:
        """A new tenant, or again one that was removed."""
        details = wanted.model_dump(mode="json", exclude_unset=True, exclude={"name"})
        note = Note(Act.TENANTS_CREATE, wanted.name, details)
        return await self._recorded.change(actor, note, self._create, wanted)

    async def listed(self, actor: Actor, wanted: TenantsWanted) -> TenantsPage:
        """A page of tenants. What the file names is never removed."""
        after, prefix = place(wanted.after, 1), wanted.prefix or ""
        rows = await self._recorded.read(
            actor,
            Act.TENANTS_READ,
            tenants.listed,
            limit=wanted.limit + 1,
            after=after[0] if after else None,
            removed=wanted.removed,
            prefix=prefix,
        )
        declared = () if wanted.removed else self._declared.tenants.values()
        own = [each for each in declared if each.name.startswith(prefix) and (after is None or each.name > after[0])]
        # A tenant of the database that the file names too does not exist beside it.
        named = {each.name for each in own}
        both: list[TenantSettings | TenantRow] = [*own, *(row for row in rows if row.name not in named)]
        found = sorted(both, key=lambda each: each.name)
        page = found[: wanted.limit]
        more = len(found) > wanted.limit or len(rows) > wanted.limit
        return TenantsPage(page, cursor(page[-1].name) if more and page else None)

    async def one(self, actor: Actor, name: str) -> tuple[TenantSettings | TenantRow, Spent]:
        """The tenant, and what it used this day and month (UTC)."""
        await self._recorded.permit(actor, Act.TENANTS_READ, name)
        spent = await self._recorded.read(actor, Act.TENANTS_READ, _spent, name, self._now().date())
        declared = self._declared.tenants.get(name)
        if declared is not None:
            return declared, spent
        return await self._recorded.read(actor, Act.TENANTS_READ, _found, name), spent

    async def update(self, actor: Actor, name: str, change: TenantChange) -> TenantRow:
        """Changes what is given."""
        note = Note(Act.TENANTS_UPDATE, name, change.model_dump(mode="json", exclude_unset=True))
        return await self._recorded.change(actor, note, partial(self._update, note), name, change)

    async def remove(self, actor: Actor, name: str, wanted: Removal) -> Removed:
        """Removes a tenant that has no keys any more, or all of its keys with it."""
        note = Note(Act.TENANTS_REMOVE, name, wanted.model_dump())
        return await self._recorded.change(actor, note, partial(self._remove, note), name, wanted)

    # What is done in the transaction.

    def _create(self, connection: "Connection", wanted: NewTenant) -> TenantRow:
        if wanted.name in self._declared.tenants:
            raise InTheWay(f"The name `{wanted.name}` is taken by a tenant in the gateway's settings file.")
        row = TenantRow(
            name=wanted.name,
            created_at=self._now(),
            models=wanted.models,
            limits=wanted.limits.model_dump(mode="json", exclude_defaults=True),
            budget=wanted.budget.model_dump(mode="json", exclude_defaults=True),
            weight=wanted.weight,
            priority=wanted.priority.value,
            metadata=wanted.metadata,
        )
        try:
            return tenants.add(connection, row)
        except Taken:
            raise InTheWay(f"There is a tenant `{wanted.name}` already.") from None

    def _update(self, note: Note, connection: "Connection", name: str, change: TenantChange) -> TenantRow:
        row = self._to_change(connection, name)
        changes: TenantChanges = {}
        if change.models is not None:
            changes["models"] = change.models
        if change.limits is not None:
            changes["limits"] = merged(row.limits, change.limits.model_dump(mode="json", exclude_unset=True))
        if change.budget is not None:
            changes["budget"] = merged(row.budget, change.budget.model_dump(mode="json", exclude_unset=True))
        if change.weight is not None:
            changes["weight"] = change.weight
        if change.priority is not None:
            changes["priority"] = change.priority.value
        if change.metadata is not None:
            changes["metadata"] = labelled(row.metadata, change.metadata)
        note.details = {**note.details, "before": before(row, changes)}
        return tenants.update(connection, name, changes)

    def _remove(self, note: Note, connection: "Connection", name: str, wanted: Removal) -> Removed:
        self._to_change(connection, name)
        live = _live_keys(connection, name)
        if live and not wanted.revoke_keys:
            raise InTheWay(
                f"The tenant `{name}` still has keys ({len(live)}, among them `{live[0].name}`): revoke them, "
                "or with the tenant (`revoke_keys=true`, `--revoke-keys`)."
            )
        for key in live:
            keys.revoke(connection, key.id, self._now())
        revoked = [key.name for key in live]
        note.details = {**note.details, "revoked": revoked}
        return Removed(tenants.remove(connection, name, self._now()), revoked)

    def _to_change(self, connection: "Connection", name: str) -> TenantRow:
        """The tenant, as nobody else changes it or its keys now."""
        revisions.following(connection)
        if name in self._declared.tenants:
            raise FromFile("tenant", name)
        row = _found(connection, name)
        if row.removed_at is not None:
            raise NotThere("tenant", name)
        return row


def _found(connection: "Connection", name: str) -> TenantRow:
    try:
        return tenants.get(connection, name)
    except Missing:
        raise NotThere("tenant", name) from None


def _live_keys(connection: "Connection", tenant: str) -> list[KeyRow]:
    found: list[KeyRow] = []
    after = None
    while page := keys.listed(connection, limit=KEYS_AT_ONCE, after=after, tenant=tenant, revoked=False):
        found += page
        after = (page[-1].name, page[-1].id)
    return found


def _spent(connection: "Connection", tenant: str, today: date) -> Spent:
    """What one tenant used today and this month: two sums, however many tenants there are."""

    def since(first: date) -> tuple[int, int]:
        sums: Sequence[UsageSum] = usage.summed(connection, by=(), first=first, last=today, tenant=tenant)
        tokens = sum(each.prompt_tokens + each.completion_tokens for each in sums)
        return tokens, sum(each.cost_micros for each in sums)

    return Spent(*since(today), *since(today.replace(day=1)))
