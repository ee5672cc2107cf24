"""The first tables."""

import sqlalchemy as sa
from alembic.operations import Operations

from gateway.store.schema import Instant, Json, Words

revision = "0001"
down_revision = None


def upgrade(op: Operations) -> None:
    op.create_table(
        "revisions",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "stamps",
        sa.Column("revision", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("stamp", Words(), nullable=False),
    )
    op.create_table(
        "keys",
        sa.Column("id", Words(), primary_key=True),
        sa.Column("name", Words(), nullable=False),
        sa.Column("tenant", Words(), nullable=False),
        sa.Column("digest", Words(), nullable=False),
        sa.Column("hint", Words(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("models", Json(), nullable=False),
        sa.Column("limits", Json(), nullable=False),
        sa.Column("priority", Words()),
        sa.Column("metadata", Json(), nullable=False),
        sa.Column("role", Words()),
        sa.Column("expires_at", Instant()),
        sa.Column("revoked_at", Instant()),
        sa.Column("previous_digest", Words()),
        sa.Column("previous_until", Instant()),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )
    op.create_index(
        "keys_by_live_name",
        "keys",
        ["name"],
        unique=True,
        sqlite_where=sa.text("revoked_at IS NULL"),
        postgresql_where=sa.text("revoked_at IS NULL"),
    )
    op.create_index("keys_by_name", "keys", ["name", "id"])
    op.create_index(
        "keys_revoked",
        "keys",
        ["name", "id"],
        sqlite_where=sa.text("revoked_at IS NOT NULL"),
        postgresql_where=sa.text("revoked_at IS NOT NULL"),
    )
    op.create_index(
        "keys_of_administrators",
        "keys",
        ["name", "id"],
        sqlite_where=sa.text("role IS NOT NULL"),
        postgresql_where=sa.text("role IS NOT NULL"),
    )
    op.create_index("keys_by_tenant", "keys", ["tenant", "name", "id"])
    op.create_index("keys_by_digest", "keys", ["digest"], unique=True)
    op.create_index("keys_by_previous_digest", "keys", ["previous_digest"], unique=True)
    op.create_index("keys_by_revision", "keys", ["revision"])
    op.create_table(
        "tenants",
        sa.Column("name", Words(), primary_key=True),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("models", Json(), nullable=False),
        sa.Column("limits", Json(), nullable=False),
        sa.Column("budget", Json(), nullable=False),
        sa.Column("weight", sa.Double, nullable=False),
        sa.Column("priority", Words(), nullable=False),
        sa.Column("metadata", Json(), nullable=False),
        sa.Column("removed_at", Instant()),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )
    op.create_index("tenants_by_revision", "tenants", ["revision"])
    op.create_table(
        "usage",
        sa.Column("id", Words(), primary_key=True),
        sa.Column("at", Instant(), nullable=False),
        sa.Column("tenant", Words(), nullable=False),
        sa.Column("key", Words(), nullable=False),
        sa.Column("model", Words(), nullable=False),
        sa.Column("version", Words()),
        sa.Column("replica", Words()),
        sa.Column("endpoint", Words(), nullable=False),
        sa.Column("stream", sa.Boolean, nullable=False),
        sa.Column("outcome", Words(), nullable=False),
        sa.Column("error", Words()),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_tokens", sa.BigInteger, nullable=False),
        sa.Column("measured", sa.Boolean, nullable=False),
        sa.Column("cost_micros", sa.BigInteger, nullable=False),
        sa.Column("duration_ms", sa.BigInteger, nullable=False),
        sa.Column("queue_ms", sa.BigInteger, nullable=False),
        sa.Column("first_token_ms", sa.BigInteger),
        sa.Column("attempts", sa.BigInteger, nullable=False),
        sa.Column("trace_id", Words(), nullable=False),
    )
    op.create_index("usage_by_time", "usage", ["at", "id"])
    op.create_index("usage_by_tenant", "usage", ["tenant", "at", "id"])
    op.create_index("usage_by_key", "usage", ["key", "at", "id"])
    op.create_index("usage_by_model", "usage", ["model", "at", "id"])
    op.create_table(
        "spending",
        sa.Column("day", sa.Date, primary_key=True),
        sa.Column("tenant", Words(), primary_key=True),
        sa.Column("key", Words(), primary_key=True),
        sa.Column("model", Words(), primary_key=True),
        sa.Column("calls", sa.BigInteger, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_tokens", sa.BigInteger, nullable=False),
        sa.Column("cost_micros", sa.BigInteger, nullable=False),
    )
    op.create_index("spending_by_tenant", "spending", ["tenant", "day"])
    op.create_index("spending_by_key", "spending", ["key", "day"])
    op.create_index("spending_by_model", "spending", ["model", "day"])
    op.create_table(
        "audit",
        sa.Column("id", Words(), primary_key=True),
        sa.Column("at", Instant(), nullable=False),
        sa.Column("actor", Words(), nullable=False),
        sa.Column("role", Words(), nullable=False),
        sa.Column("action", Words(), nullable=False),
        sa.Column("target", Words(), nullable=False),
        sa.Column("outcome", Words(), nullable=False),
        sa.Column("details", Json(), nullable=False),
        sa.Column("address", Words(), nullable=False),
        sa.Column("call_id", Words(), nullable=False),
    )
    op.create_index("audit_by_time", "audit", ["at", "id"])
    op.create_index("audit_by_actor", "audit", ["actor", "at", "id"])
    op.create_index("audit_by_action", "audit", ["action", "at", "id"])
    op.create_index("audit_by_target", "audit", ["target", "at", "id"])
    op.execute("INSERT INTO revisions (id, revision) VALUES (1, 0)")
