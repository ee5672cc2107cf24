"""How keys, tenants, usage and entries look to an administrator: plain objects for JSON, without any secret.

Times are RFC 3339 in UTC; what is the settings file's says so; costs are in cost units.
"""

from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

from gateway.admin.declared import Declared
from gateway.admin.keys import state_of
from gateway.settings import AdminKeySettings, KeySettings, TenantSettings
from gateway.store.rows import AuditEntry, KeyRow, Spent, TenantRow, UsageRecord, UsageSum

FILE, DATABASE = "file", "database"
MICROS = 1_000_000

View = dict[str, Any]


def key(found: KeySettings | AdminKeySettings | KeyRow, declared: Declared, now: datetime) -> View:
    """A key: `state` is `active`, `expired`, `revoked`, or `shadowed` by one of the file with its name."""
    match found:
        case AdminKeySettings():
            return _key(name=found.name, managed_by=FILE, state="active", role=found.role.value)
        case KeySettings():
            over = found.expires_at is not None and found.expires_at <= now
            return _key(
                name=found.name,
                managed_by=FILE,
                state="expired" if over else "active",
                tenant=found.tenant,
                models=found.models,
                limits=found.limits.model_dump(mode="json", exclude_defaults=True),
                priority=found.priority,
                metadata=found.metadata,
                expires_at=moment(found.expires_at),
            )
    administers = found.role is not None
    grace = found.previous_until if found.previous_until is not None and found.previous_until > now else None
    shadowed = found.revoked_at is None and declared.has_key(found.name)
    return _key(
        id=found.id,
        name=found.name,
        managed_by=DATABASE,
        state="shadowed" if shadowed else state_of(found, now),
        role=found.role,
        tenant=None if administers else found.tenant,
        models=() if administers else found.models,
        limits=found.limits,
        priority=found.priority,
        metadata=found.metadata,
        hint=found.hint,
        created_at=moment(found.created_at),
        expires_at=moment(found.expires_at),
        revoked_at=moment(found.revoked_at),
        previous_until=moment(grace),
    )


def _key(
    *,
    name: str,
    managed_by: str,
    state: str,
    id: str | None = None,
    role: str | None = None,
    tenant: str | None = None,
    models: tuple[str, ...] = (),
    limits: Mapping[str, Any] | None = None,
    priority: str | None = None,
    metadata: Mapping[str, str] | None = None,
    hint: str | None = None,
    created_at: str | None = None,
    expires_at: str | None = None,
    revoked_at: str | None = None,
    previous_until: str | None = None,
) -> View:
    return {
        "id": id,
        "name": name,
        "kind": "caller" if role is None else "administrator",
        "role": role,
        "managed_by": managed_by,
        "state": state,
        "tenant": tenant,
        "models": models,
        "limits": limits or {},
        "priority": priority,
        "metadata": metadata or {},
        "hint": hint,
        "created_at": created_at,
        "expires_at": expires_at,
        "revoked_at": revoked_at,
        "previous_until": previous_until,
    }


def tenant(found: TenantSettings | TenantRow, spent: Spent | None = None) -> View:
    """A tenant: `state` is `active` or `removed`. With `spent`, what it used this day and month."""
    in_file = isinstance(found, TenantSettings)
    view: View = {
        "name": found.name,
        "managed_by": FILE if in_file else DATABASE,
        "state": "active" if isinstance(found, TenantSettings) or found.removed_at is None else "removed",
        "models": found.models,
        "limits": found.limits.model_dump(mode="json", exclude_defaults=True)
        if isinstance(found, TenantSettings)
        else found.limits,
        "budget": found.budget.model_dump(mode="json", exclude_defaults=True)
        if isinstance(found, TenantSettings)
        else found.budget,
        "weight": found.weight,
        "priority": str(found.priority),
        "metadata": found.metadata,
        "created_at": None if isinstance(found, TenantSettings) else moment(found.created_at),
        "removed_at": None if isinstance(found, TenantSettings) else moment(found.removed_at),
    }
    if spent is not None:
        view["spent"] = {
            "day": {"tokens": spent.day_tokens, "cost": spent.day_cost_micros / MICROS},
            "month": {"tokens": spent.month_tokens, "cost": spent.month_cost_micros / MICROS},
        }
    return view


def usage_sum(found: UsageSum, groups: tuple[str, ...]) -> View:
    """A sum, and what it is the sum of."""
    named = {group: _day(getattr(found, group)) for group in groups}
    return named | {
        "calls": found.calls,
        "prompt_tokens": found.prompt_tokens,
        "completion_tokens": found.completion_tokens,
        "cached_tokens": found.cached_tokens,
        "cost": found.cost_micros / MICROS,
    }


def usage_record(found: UsageRecord) -> View:
    """One call."""
    return {
        "id": found.id,
        "at": moment(found.at),
        "tenant": found.tenant,
        "key": found.key,
        "model": found.model,
        "version": found.version,
        "replica": found.replica,
        "endpoint": found.endpoint,
        "stream": found.stream,
        "outcome": found.outcome,
        "error": found.error,
        "prompt_tokens": found.prompt_tokens,
        "completion_tokens": found.completion_tokens,
        "cached_tokens": found.cached_tokens,
        "measured": found.measured,
        "cost": found.cost_micros / MICROS,
        "duration_ms": found.duration_ms,
        "queue_ms": found.queue_ms,
        "first_token_ms": found.first_token_ms,
        "attempts": found.attempts,
        "trace_id": found.trace_id,
    }


SUM_COLUMNS = ("calls", "prompt_tokens", "completion_tokens", "cached_tokens", "cost")
RECORD_COLUMNS = (
    "id",
    "at",
    "tenant",
    "key",
    "model",
    "version",
    "replica",
    "endpoint",
    "stream",
    "outcome",
    "error",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "measured",
    "cost",
    "duration_ms",
    "queue_ms",
    "first_token_ms",
    "attempts",
    "trace_id",
)


def entry(found: AuditEntry) -> View:
    """One act."""
    return {
        "id": found.id,
        "at": moment(found.at),
        "actor": found.actor,
        "role": found.role,
        "action": found.action,
        "target": found.target,
        "outcome": found.outcome,
        "details": found.details,
        "address": found.address,
        "call_id": found.call_id,
    }


def moment(at: datetime | None) -> str | None:
    """RFC 3339 in UTC."""
    return None if at is None else at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _day(value: str | date | None) -> str | None:
    return value.isoformat() if isinstance(value, date) else value
