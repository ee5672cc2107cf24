"""The audit log in the database: entries are appended, in the transaction of the act that they tell of, and read.

Nothing here changes or removes an entry.
"""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime

from sqlalchemy import Connection, insert, select, tuple_

from gateway.store.rows import AuditEntry
from gateway.store.schema import audit


def append(connection: Connection, entry: AuditEntry) -> None:
    """Writes an entry; of a denied or failed act in a transaction of its own, or it would vanish with it."""
    connection.execute(insert(audit).values(**asdict(entry)))


def listed(
    connection: Connection,
    *,
    limit: int,
    before: tuple[datetime, str] | None = None,
    actor: str | None = None,
    action: str | None = None,
    target: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Sequence[AuditEntry]:
    """At most `limit` entries, newest first by (at, id): those before `before`, from `since` until before `until`."""
    those = select(audit).order_by(audit.c.at.desc(), audit.c.id.desc()).limit(limit)
    if before is not None:
        those = those.where(tuple_(audit.c.at, audit.c.id) < before)
    for column, value in ((audit.c.actor, actor), (audit.c.action, action), (audit.c.target, target)):
        if value is not None:
            those = those.where(column == value)
    if since is not None:
        those = those.where(audit.c.at >= since)
    if until is not None:
        those = those.where(audit.c.at < until)
    return [AuditEntry(**row) for row in connection.execute(those).mappings()]
