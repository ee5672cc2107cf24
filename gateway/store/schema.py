"""The tables, once for both databases, and how values are kept in them.

Text is compared by code point on both, times are UTC to the microsecond, and what is not in the columns that are
searched is kept as JSON text. The migrations make these tables; a test holds the two together.
"""

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Date,
    DateTime,
    Dialect,
    Double,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    and_,
)
from sqlalchemy.dialects import postgresql, sqlite

from gateway.store.rows import LONGEST, clean


class Words(TypeDecorator[str]):
    """A text, cleaned. Compared by code point, so that prefixes are ranges and pages have one order everywhere."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        return dialect.type_descriptor(Text(collation="C" if dialect.name == "postgresql" else None))

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else clean(value)


class Json(TypeDecorator[Any]):
    """A JSON text of ASCII alone, which holds every text. Lists come back as tuples, what is no JSON as its text."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(value, separators=(",", ":"), allow_nan=False)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        try:
            found = json.loads(value)
        except ValueError:
            return value
        return tuple(found) if isinstance(found, list) else found


class Instant(TypeDecorator[datetime]):
    """An aware time in UTC. A naive one is a mistake of the program and raises ValueError."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a time zone")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = MetaData()

revisions = Table(
    "revisions",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("revision", BigInteger, nullable=False),
)
"""One row: the number of the last change to keys or tenants."""

stamps = Table(
    "stamps",
    metadata,
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
    Column("stamp", Words, nullable=False),
)
"""What each revision is known by: a database that was put back and went on has others for the same numbers."""

keys = Table(
    "keys",
    metadata,
    Column("id", Words, primary_key=True),
    Column("name", Words, nullable=False),
    Column("tenant", Words, nullable=False),
    Column("digest", Words, nullable=False),
    Column("hint", Words, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("models", Json, nullable=False),
    Column("limits", Json, nullable=False),
    Column("priority", Words),
    Column("metadata", Json, nullable=False),
    Column("role", Words),
    Column("expires_at", Instant),
    Column("revoked_at", Instant),
    Column("previous_digest", Words),
    Column("previous_until", Instant),
    Column("revision", BigInteger, nullable=False),
)
LIVE = keys.c.revoked_at.is_(None)
ADMINISTRATORS = keys.c.role.is_not(None)
Index("keys_by_live_name", keys.c.name, unique=True, sqlite_where=LIVE, postgresql_where=LIVE)
Index("keys_by_name", keys.c.name, keys.c.id)
Index("keys_revoked", keys.c.name, keys.c.id, sqlite_where=~LIVE, postgresql_where=~LIVE)
Index("keys_of_administrators", keys.c.name, keys.c.id, sqlite_where=ADMINISTRATORS, postgresql_where=ADMINISTRATORS)
Index("keys_by_tenant", keys.c.tenant, keys.c.name, keys.c.id)
# A revoked key never comes to life again, so digests are unique among all.
Index("keys_by_digest", keys.c.digest, unique=True)
Index("keys_by_previous_digest", keys.c.previous_digest, unique=True)
Index("keys_by_revision", keys.c.revision)

tenants = Table(
    "tenants",
    metadata,
    Column("name", Words, primary_key=True),
    Column("created_at", Instant, nullable=False),
    Column("models", Json, nullable=False),
    Column("limits", Json, nullable=False),
    Column("budget", Json, nullable=False),
    Column("weight", Double, nullable=False),
    Column("priority", Words, nullable=False),
    Column("metadata", Json, nullable=False),
    Column("removed_at", Instant),
    Column("revision", BigInteger, nullable=False),
)
Index("tenants_by_revision", tenants.c.revision)

usage = Table(
    "usage",
    metadata,
    Column("id", Words, primary_key=True),
    Column("at", Instant, nullable=False),
    Column("tenant", Words, nullable=False),
    Column("key", Words, nullable=False),
    Column("model", Words, nullable=False),
    Column("version", Words),
    Column("replica", Words),
    Column("endpoint", Words, nullable=False),
    Column("stream", Boolean, nullable=False),
    Column("outcome", Words, nullable=False),
    Column("error", Words),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("measured", Boolean, nullable=False),
    Column("cost_micros", BigInteger, nullable=False),
    Column("duration_ms", BigInteger, nullable=False),
    Column("queue_ms", BigInteger, nullable=False),
    Column("first_token_ms", BigInteger),
    Column("attempts", BigInteger, nullable=False),
    Column("trace_id", Words, nullable=False),
)
Index("usage_by_time", usage.c.at, usage.c.id)
Index("usage_by_tenant", usage.c.tenant, usage.c.at, usage.c.id)
Index("usage_by_key", usage.c.key, usage.c.at, usage.c.id)
Index("usage_by_model", usage.c.model, usage.c.at, usage.c.id)

spending = Table(
    "spending",
    metadata,
    Column("day", Date, primary_key=True),
    Column("tenant", Words, primary_key=True),
    Column("key", Words, primary_key=True),
    Column("model", Words, primary_key=True),
    Column("calls", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("cost_micros", BigInteger, nullable=False),
)
"""Sums of usage by day (UTC); they stay when single records are purged."""
Index("spending_by_tenant", spending.c.tenant, spending.c.day)
Index("spending_by_key", spending.c.key, spending.c.day)
Index("spending_by_model", spending.c.model, spending.c.day)

audit = Table(
    "audit",
    metadata,
    Column("id", Words, primary_key=True),
    Column("at", Instant, nullable=False),
    Column("actor", Words, nullable=False),
    Column("role", Words, nullable=False),
    Column("action", Words, nullable=False),
    Column("target", Words, nullable=False),
    Column("outcome", Words, nullable=False),
    Column("details", Json, nullable=False),
    Column("address", Words, nullable=False),
    Column("call_id", Words, nullable=False),
)
Index("audit_by_time", audit.c.at, audit.c.id)
Index("audit_by_actor", audit.c.actor, audit.c.at, audit.c.id)
Index("audit_by_action", audit.c.action, audit.c.at, audit.c.id)
Index("audit_by_target", audit.c.target, audit.c.at, audit.c.id)


def insert(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """An insertion that can say what happens on a conflict: both databases say it alike."""
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


def begins_with(column: Column[str], prefix: str) -> ColumnElement[bool]:
    """Whether a text begins so, as a range that an index finds; nothing in `prefix` is a wildcard."""
    # The last of all code points, which is no character and in no text; there must be room for it.
    prefix = prefix[: LONGEST - 1]
    return and_(column >= prefix, column < prefix + "\U0010ffff")
