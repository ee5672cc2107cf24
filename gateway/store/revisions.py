"""The number of the last change to keys and tenants, by which gateways ask for what is new.

Whoever changes a key or a tenant first takes the next number, and with it the row's lock until the end of the
transaction: changes are made one after the other, and their numbers are in the order of their commits.
"""

from sqlalchemy import Connection, select, update

from gateway.store.rows import Changes, KeyRow, TenantRow
from gateway.store.schema import LIVE, keys, revisions, tenants


def following(connection: Connection) -> int:
    """Takes the next revision, and the right to change keys and tenants until this transaction ends."""
    taken = update(revisions).values(revision=revisions.c.revision + 1).where(revisions.c.id == 1)
    return int(connection.execute(taken.returning(revisions.c.revision)).scalar_one())


def current(connection: Connection) -> int:
    """The last revision; 0 before the first change."""
    return int(connection.execute(select(revisions.c.revision).where(revisions.c.id == 1)).scalar_one())


def changed_since(connection: Connection, revision: int) -> Changes:
    """What changed after `revision`; after 0 everything that is not revoked or removed."""
    # Read first: what is committed between this statement and the next ones is then only told twice.
    now = current(connection)
    if now == revision:
        return Changes(now, (), ())
    some_keys, some_tenants = select(keys), select(tenants)
    if revision == 0:
        some_keys, some_tenants = some_keys.where(LIVE), some_tenants.where(tenants.c.removed_at.is_(None))
    else:
        some_keys = some_keys.where(keys.c.revision > revision)
        some_tenants = some_tenants.where(tenants.c.revision > revision)
    return Changes(
        now,
        tuple(KeyRow(**row) for row in connection.execute(some_keys).mappings()),
        tuple(TenantRow(**row) for row in connection.execute(some_tenants).mappings()),
    )
