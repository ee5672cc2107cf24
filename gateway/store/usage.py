"""Usage in the database: single records for as long as nobody purges them, daily sums for ever.

A record whose id is known is left alone and adds nothing to the sums, so that a batch may be written twice.
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, date, datetime
from typing import Any, Literal

import orjson
from sqlalchemy import (
    JSON,
    BigInteger,
    Connection,
    Table,
    Text,
    bindparam,
    case,
    cast,
    column,
    delete,
    func,
    select,
    true,
    tuple_,
)
from sqlalchemy.dialects import postgresql, sqlite

from gateway.store.database import Database
from gateway.store.rows import Spent, UsageRecord, UsageSum, clean
from gateway.store.schema import Words, insert, spending, usage

By = Literal["day", "tenant", "key", "model"]

LARGEST = 2**48
"""A larger count of one record is kept as this one: the sums of many must fit into 64 bits."""

GROUPS = ("day", "tenant", "key", "model")
COUNTS = ("prompt_tokens", "completion_tokens", "cached_tokens", "cost_micros")
COLUMNS = tuple(field.name for field in fields(UsageRecord))
NUMBERS = tuple(name for name in COLUMNS if isinstance(usage.c[name].type, BigInteger))
TEXTS = tuple(name for name in COLUMNS if isinstance(usage.c[name].type, Words))


def write(connection: Connection, records: Iterable[UsageRecord]) -> int:
    """Writes a batch and adds it to the sums; returns how many records were new."""
    batch = {values["id"]: values for values in map(_values, records)}
    if not batch:
        return 0
    # In the order of their ids, and then of their sums: two who write at once wait in one direction only.
    adding = _insertion_of_many(connection, usage).on_conflict_do_nothing(index_elements=[usage.c.id])
    rows = [batch[id] | {"at": _text(connection, batch[id]["at"])} for id in sorted(batch)]
    known_not = connection.execute(adding.returning(usage.c.id), _many(rows)).scalars().all()
    if known_not:
        sums = _insertion_of_many(connection, spending)
        added = {name: spending.c[name] + sums.excluded[name] for name in ("calls", *COUNTS)}
        sums = sums.on_conflict_do_update(index_elements=[spending.c[name] for name in GROUPS], set_=added)
        connection.execute(sums, _many(_sums(batch[id] for id in known_not)))
    return len(known_not)


class Writer:
    """Writes usage to a database, a batch in a transaction: what a ledger needs of it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(self, records: Sequence[UsageRecord]) -> None:
        """Raises StoreLost."""
        await self._database.run(write, records)


def _insertion_of_many(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """Takes `_many` rows as one parameter, which the database takes apart itself.

    Thousands of parameters would cost this process, and whatever streams in it, a hundred milliseconds.
    """
    given = bindparam("rows", type_=Text)
    if connection.dialect.name == "sqlite":
        each = func.json_each(given).table_valued("value")
        # An insertion from a selection that says what happens on a conflict needs a WHERE.
        those = select(*(func.json_extract(each.c.value, f"$.{it.name}") for it in table.c)).where(true())
    else:
        types = [column(it.name, it.type) for it in table.c]
        those = select(*func.json_to_recordset(cast(given, JSON)).table_valued(*types).render_derived(None, True).c)
    return insert(connection, table).from_select(list(table.c), those)


def _many(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {"rows": orjson.dumps(rows).decode()}


def _text(connection: Connection, at: datetime) -> str:
    """A time in UTC as the database writes it."""
    return f"{at:%Y-%m-%d %H:%M:%S.%f}" + ("" if connection.dialect.name == "sqlite" else "+00:00")


def _values(record: UsageRecord) -> dict[str, Any]:
    values = {name: getattr(record, name) for name in COLUMNS}
    for name in TEXTS:
        if values[name] is not None:
            values[name] = clean(values[name])
    for name in NUMBERS:
        if values[name] is not None:
            values[name] = max(-LARGEST, min(LARGEST, values[name]))
    values["at"] = record.at.astimezone(UTC)
    return values


def _sums(batch: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    sums: dict[tuple[date, str, str, str], list[int]] = {}
    for values in batch:
        group = (values["at"].date(), values["tenant"], values["key"], values["model"])
        total = sums.setdefault(group, [0] * (1 + len(COUNTS)))
        total[0] += 1
        for place, name in enumerate(COUNTS, 1):
            total[place] += values[name]
    return [
        dict(zip((*GROUPS, "calls", *COUNTS), (*group, *total), strict=True)) for group, total in sorted(sums.items())
    ]


def listed(
    connection: Connection,
    *,
    limit: int,
    before: tuple[datetime, str] | None = None,
    tenant: str | None = None,
    key: str | None = None,
    model: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Sequence[UsageRecord]:
    """At most `limit` records, newest first by (at, id): those before `before`, from `since` until before `until`."""
    those = select(usage).order_by(usage.c.at.desc(), usage.c.id.desc()).limit(limit)
    if before is not None:
        those = those.where(tuple_(usage.c.at, usage.c.id) < before)
    for given, wanted in ((usage.c.tenant, tenant), (usage.c.key, key), (usage.c.model, model)):
        if wanted is not None:
            those = those.where(given == wanted)
    if since is not None:
        those = those.where(usage.c.at >= since)
    if until is not None:
        those = those.where(usage.c.at < until)
    return [UsageRecord(**row) for row in connection.execute(those).mappings()]


async def exported(
    database: Database,
    *,
    page: int = 1000,
    tenant: str | None = None,
    key: str | None = None,
    model: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> AsyncIterator[Sequence[UsageRecord]]:
    """All of these records in pages, newest first, each page read when it is asked for. Raises StoreLost.

    No transaction is open between two pages: a reader who is slow holds nothing.
    """
    before = None
    while True:
        found = await database.read(
            listed, limit=page, before=before, tenant=tenant, key=key, model=model, since=since, until=until
        )
        if found:
            yield found
        if len(found) < page:
            return
        before = (found[-1].at, found[-1].id)


def summed(
    connection: Connection,
    *,
    by: Sequence[By],
    first: date,
    last: date,
    tenant: str | None = None,
    key: str | None = None,
    model: str | None = None,
) -> Sequence[UsageSum]:
    """Sums from the day `first` to the day `last`, both included, one for each group, in the order of the groups.

    Without `by` there is one sum, or none where nothing was used.
    """
    groups = [spending.c[name] for name in by]
    counts = [func.sum(spending.c[name]).label(name) for name in ("calls", *COUNTS)]
    those = select(*groups, *counts).where(spending.c.day.between(first, last)).group_by(*groups).order_by(*groups)
    for given, wanted in ((spending.c.tenant, tenant), (spending.c.key, key), (spending.c.model, model)):
        if wanted is not None:
            those = those.where(given == wanted)
    return [
        # PostgreSQL adds whole numbers up to decimal ones.
        UsageSum(*(row.get(name) for name in GROUPS), *(int(row[name]) for name in ("calls", *COUNTS)))  # type: ignore[arg-type]
        for row in connection.execute(those).mappings()
        if row["calls"] is not None
    ]


def spent(connection: Connection, day: date) -> Mapping[str, Spent]:
    """What each tenant used on `day`, and in its month up to then; who used nothing is not named."""
    tokens, cost = spending.c.prompt_tokens + spending.c.completion_tokens, spending.c.cost_micros
    today = spending.c.day == day
    those = (
        select(
            spending.c.tenant,
            func.sum(case((today, tokens), else_=0)).label("day_tokens"),
            func.sum(case((today, cost), else_=0)).label("day_cost_micros"),
            func.sum(tokens).label("month_tokens"),
            func.sum(cost).label("month_cost_micros"),
        )
        .where(spending.c.day.between(day.replace(day=1), day))
        .group_by(spending.c.tenant)
    )
    return {
        row["tenant"]: Spent(**{name: int(row[name]) for name in row if name != "tenant"})
        for row in connection.execute(those).mappings()
    }


def purge(connection: Connection, before: datetime, limit: int = 1000) -> int:
    """Removes at most `limit` of the records that ended before `before`, oldest first; returns how many."""
    oldest = select(usage.c.id).where(usage.c.at < before).order_by(usage.c.at, usage.c.id).limit(limit)
    # On PostgreSQL others that purge as well take other records; SQLite lets only one in.
    gone = delete(usage).where(usage.c.id.in_(oldest.with_for_update(skip_locked=True)))
    return connection.execute(gone).rowcount


async def purge_all(database: Database, before: datetime, limit: int = 1000) -> int:
    """The same for all of them, so many in a transaction: nobody waits long for any. Raises StoreLost."""
    purged = 0
    while gone := await database.run(purge, before, limit):
        purged += gone
    return purged
