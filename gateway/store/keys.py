"""Keys in the database, of callers and of administrators: statements as plain functions within a transaction.

Every change takes a revision. A name is taken until its key is revoked, then it can be used again; a digest is taken
for ever. Whether somebody may do this, and writing it down (`audit.append`, in the same transaction), is the caller's.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

import sqlalchemy
from sqlalchemy import ColumnElement, Connection, or_, select, tuple_

from gateway.store import revisions
from gateway.store.rows import KeyChanges, KeyRow, Missing, Revoked, Taken
from gateway.store.schema import ADMINISTRATORS, LIVE, begins_with, keys


def add(connection: Connection, key: KeyRow) -> KeyRow:
    """A new key; returns it with its revision. Raises Taken."""
    key = replace(key, revision=revisions.following(connection))
    # Nobody else adds a key between these and the insertion: the revision is held.
    _refuse_if(connection, keys.c.id == key.id, "id")
    _refuse_if(connection, (keys.c.name == key.name) & LIVE, "name")
    _refuse_digest(connection, key.digest)
    connection.execute(sqlalchemy.insert(keys).values(**asdict(key)))
    return key


def get(connection: Connection, id: str) -> KeyRow:
    """The key of this id, also a revoked one. Raises Missing."""
    row = connection.execute(select(keys).where(keys.c.id == id)).mappings().one_or_none()
    if row is None:
        raise Missing(id)
    return KeyRow(**row)


def named(connection: Connection, name: str) -> KeyRow:
    """The key that has this name now, or if there is none the one last revoked that had it. Raises Missing."""
    row = connection.execute(select(keys).where(keys.c.name == name, LIVE)).mappings().one_or_none()
    if row is None:
        those = select(keys).where(keys.c.name == name).order_by(keys.c.revoked_at.desc()).limit(1)
        row = connection.execute(those).mappings().one_or_none()
    if row is None:
        raise Missing(name)
    return KeyRow(**row)


def listed(
    connection: Connection,
    *,
    limit: int,
    after: tuple[str, str] | None = None,
    tenant: str | None = None,
    revoked: bool | None = None,
    administrators: bool | None = None,
    prefix: str = "",
) -> Sequence[KeyRow]:
    """At most `limit` keys by (name, id), those after `after`. What is None or empty does not filter."""
    those = select(keys).order_by(keys.c.name, keys.c.id).limit(limit)
    if after is not None:
        those = those.where(tuple_(keys.c.name, keys.c.id) > after)
    if tenant is not None:
        those = those.where(keys.c.tenant == tenant)
    if revoked is not None:
        those = those.where(~LIVE if revoked else LIVE)
    if administrators is not None:
        those = those.where(ADMINISTRATORS if administrators else ~ADMINISTRATORS)
    if prefix:
        those = those.where(begins_with(keys.c.name, prefix))
    return [KeyRow(**row) for row in connection.execute(those).mappings()]


def update(connection: Connection, id: str, changes: KeyChanges) -> KeyRow:
    """Changes what is given; returns the key as it is now. Raises Missing, Revoked."""
    return _change(connection, id, revisions.following(connection), **changes)


def rotate(connection: Connection, id: str, *, digest: str, hint: str, previous_until: datetime) -> KeyRow:
    """Another digest; the present one opens too until `previous_until`, one before it no more.

    Raises Missing, Revoked, Taken.
    """
    revision = revisions.following(connection)
    present = _live(connection, id)
    _refuse_digest(connection, digest)
    return _change(
        connection,
        id,
        revision,
        digest=digest,
        hint=hint,
        previous_digest=present.digest,
        previous_until=previous_until,
    )


def revoke(connection: Connection, id: str, now: datetime) -> KeyRow:
    """Ends the key for ever; one that is revoked already stays as it was. Raises Missing."""
    revision = revisions.following(connection)
    present = get(connection, id)
    if present.revoked_at is not None:
        return present
    return _change(connection, id, revision, revoked_at=now)


def _change(connection: Connection, id: str, revision: int, **values: Any) -> KeyRow:
    _live(connection, id)
    connection.execute(sqlalchemy.update(keys).where(keys.c.id == id).values(**values, revision=revision))
    return get(connection, id)


def _live(connection: Connection, id: str) -> KeyRow:
    key = get(connection, id)
    if key.revoked_at is not None:
        raise Revoked(id)
    return key


def _refuse_digest(connection: Connection, digest: str) -> None:
    _refuse_if(connection, or_(keys.c.digest == digest, keys.c.previous_digest == digest), "digest")


def _refuse_if(connection: Connection, taken: ColumnElement[bool], field: str) -> None:
    if connection.execute(select(keys.c.id).where(taken).limit(1)).first() is not None:
        raise Taken(field)
