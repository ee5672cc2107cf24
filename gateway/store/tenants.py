"""Tenants in the database: statements as plain functions within a transaction. Every change takes a revision.

A tenant that was removed keeps its row, and its name can be added again. Its keys are the caller's business.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, select

from gateway.store import revisions
from gateway.store.rows import Missing, Taken, TenantChanges, TenantRow
from gateway.store.schema import begins_with, insert, tenants


def add(connection: Connection, tenant: TenantRow) -> TenantRow:
    """A new tenant, or again one that was removed; returns it with its revision. Raises Taken."""
    tenant = replace(tenant, removed_at=None, revision=revisions.following(connection))
    adding = insert(connection, tenants).values(**asdict(tenant))
    adding = adding.on_conflict_do_update(
        index_elements=[tenants.c.name],
        set_={column.name: adding.excluded[column.name] for column in tenants.c if not column.primary_key},
        where=tenants.c.removed_at.is_not(None),
    )
    if connection.execute(adding.returning(tenants.c.name)).first() is None:
        raise Taken("name")
    return tenant


def get(connection: Connection, name: str) -> TenantRow:
    """The tenant, also a removed one. Raises Missing."""
    row = connection.execute(select(tenants).where(tenants.c.name == name)).mappings().one_or_none()
    if row is None:
        raise Missing(name)
    return TenantRow(**row)


def listed(
    connection: Connection, *, limit: int, after: str | None = None, removed: bool | None = None, prefix: str = ""
) -> Sequence[TenantRow]:
    """At most `limit` tenants by name, those after `after`. What is None or empty does not filter."""
    those = select(tenants).order_by(tenants.c.name).limit(limit)
    if after is not None:
        those = those.where(tenants.c.name > after)
    if removed is not None:
        gone = tenants.c.removed_at
        those = those.where(gone.is_not(None) if removed else gone.is_(None))
    if prefix:
        those = those.where(begins_with(tenants.c.name, prefix))
    return [TenantRow(**row) for row in connection.execute(those).mappings()]


def update(connection: Connection, name: str, changes: TenantChanges) -> TenantRow:
    """Changes what is given; returns the tenant as it is now. Raises Missing, also for a removed one."""
    revision = revisions.following(connection)
    if get(connection, name).removed_at is not None:
        raise Missing(name)
    return _change(connection, name, revision, **changes)


def remove(connection: Connection, name: str, now: datetime) -> TenantRow:
    """Takes the tenant out; one that is removed already stays as it was. Raises Missing."""
    revision = revisions.following(connection)
    present = get(connection, name)
    if present.removed_at is not None:
        return present
    return _change(connection, name, revision, removed_at=now)


def _change(connection: Connection, name: str, revision: int, **values: Any) -> TenantRow:
    connection.execute(sqlalchemy.update(tenants).where(tenants.c.name == name).values(**values, revision=revision))
    return get(connection, name)
