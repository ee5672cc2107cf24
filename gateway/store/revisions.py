"""The number of the last change to keys and tenants, by which gateways ask for what is new.

Whoever changes a key or a tenant first takes the next number, and with it the row's lock until the end of the
transaction: changes are made one after the other, and their numbers are in the order of their commits.
"""

from uuid import uuid4

from sqlalchemy import Connection, insert, select, update

from gateway.store.rows import Changes, KeyRow, TenantRow
from gateway.store.schema import LIVE, keys, revisions, stamps, tenants


def following(connection: Connection) -> int:
    """Takes the next revision, and the right to change keys and tenants until this transaction ends."""
    taken = update(revisions).values(revision=revisions.c.revision + 1).where(revisions.c.id == 1)
    revision = int(connection.execute(taken.returning(revisions.c.revision)).scalar_one())
    connection.execute(insert(stamps).values(revision=revision, stamp=uuid4().hex))
    return revision


def stamp_of(connection: Connection, revision: int) -> str | None:
    """What a revision is known by; None for one that this database does not know."""
    found: str | None = connection.execute(select(stamps.c.stamp).where(stamps.c.revision == revision)).scalar()
    return found


def current(connection: Connection) -> int:
    """The last revision; 0 before the first change."""
    return int(connection.execute(select(revisions.c.revision).where(revisions.c.id == 1)).scalar_one())


def changed_since(connection: Connection, revision: int, stamp: str = "") -> Changes:
    """What changed after `revision`; after 0 everything that is not revoked or removed.

    That is told as well, and is `whole`, where the revision is not the one that is known by `stamp`: the database was
    put back since, or is another.
    """
    # Read first: what is committed between this statement and the next ones is then only told twice.
    now = current(connection)
    whole = bool(stamp) and stamp_of(connection, revision) != stamp
    if now == revision and not whole:
        return Changes(now, (), (), stamp)
    revision = 0 if whole else revision
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
        stamp_of(connection, now) or "",
        whole,
    )
