"""Values for the tests of the store."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from gateway.store.rows import AuditEntry, KeyRow, TenantRow, UsageRecord

NOW = datetime(2026, 3, 14, 15, 9, 26, 535897, tzinfo=UTC)
HOSTILE = (
    "'; DROP TABLE keys; --",
    'a"b`c\\d',
    "50%_",
    "nul\0nul",
    "half \ud83d a pair",
    "\U0001f984 uni corn",
    "\u202eright to left",
    "".join(chr(0x4E00 + number * 7919 % 20_000) for number in range(3_400)),
)
"""Texts that are only texts; the last has 10 kB that cannot be compressed much."""


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def key(id: str = "k1", **fields: Any) -> KeyRow:
    return replace(KeyRow(id, f"name-{id}", "acme", f"digest-{id}", "abcd", NOW), **fields)


def tenant(name: str = "acme", **fields: Any) -> TenantRow:
    return replace(TenantRow(name, NOW), **fields)


def used(id: str = "c1", **fields: Any) -> UsageRecord:
    record = UsageRecord(
        id=id,
        at=NOW,
        tenant="acme",
        key="mine",
        model="tiny",
        version=None,
        replica="a",
        endpoint="chat",
        stream=True,
        outcome="ok",
        error=None,
        prompt_tokens=10,
        completion_tokens=5,
        cached_tokens=2,
        measured=True,
        cost_micros=100,
        duration_ms=20,
        queue_ms=1,
        first_token_ms=7,
        attempts=1,
        trace_id="0af7651916cd43dd8448eb211c80319c",
    )
    return replace(record, **fields)


def entry(id: str = "e1", **fields: Any) -> AuditEntry:
    return replace(
        AuditEntry(id, NOW, "ada", "admin", "keys.create", "k1", "done", {"name": "mine"}, "127.0.0.1", "c1"), **fields
    )
