"""What the database holds, as frozen values, and why a change to it may be impossible.

Times are aware and in UTC. This module knows no database: it can be imported by a gateway that has none.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, TypedDict


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key. `role` None is a caller's key, else an administrator's. The name is taken until the key is revoked.

    `previous_digest` opens too until `previous_until`: the grace of a rotation. `revision` is set by the store.
    """

    id: str
    name: str
    tenant: str
    digest: str = field(repr=False)
    hint: str
    created_at: datetime
    models: tuple[str, ...] = ("*",)
    limits: Mapping[str, Any] = field(default_factory=dict)
    priority: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    role: str | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    previous_digest: str | None = field(default=None, repr=False)
    previous_until: datetime | None = None
    revision: int = 0


class KeyChanges(TypedDict, total=False):
    """What can be changed of a key; what is not given stays. Whoever wants another name or tenant makes a new key."""

    models: tuple[str, ...]
    limits: Mapping[str, Any]
    priority: str | None
    metadata: Mapping[str, str]
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class TenantRow:
    """A tenant; one that was removed keeps its row, so that its usage keeps its owner. `revision`: as of a key."""

    name: str
    created_at: datetime
    models: tuple[str, ...] = ("*",)
    limits: Mapping[str, Any] = field(default_factory=dict)
    budget: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    priority: str = "normal"
    metadata: Mapping[str, str] = field(default_factory=dict)
    removed_at: datetime | None = None
    revision: int = 0


class TenantChanges(TypedDict, total=False):
    """What can be changed of a tenant; what is not given stays."""

    models: tuple[str, ...]
    limits: Mapping[str, Any]
    budget: Mapping[str, Any]
    weight: float
    priority: str
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Changes:
    """Keys and tenants that changed after a revision, revoked and removed ones too; `revision` is the one to ask
    for next, with its `stamp`. A row may come twice, never not at all. `whole`: it is all there is, and what was told
    before does not hold."""

    revision: int
    keys: tuple[KeyRow, ...]
    tenants: tuple[TenantRow, ...]
    stamp: str = ""
    whole: bool = False


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """What one admitted call used. `id` is the call's, `at` when it ended; `measured` False: tokens are estimates."""

    id: str
    at: datetime
    tenant: str
    key: str
    model: str
    version: str | None
    replica: str | None
    endpoint: str
    stream: bool
    outcome: str
    error: str | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    measured: bool
    cost_micros: int
    duration_ms: int
    queue_ms: int
    first_token_ms: int | None
    attempts: int
    trace_id: str


@dataclass(frozen=True, slots=True)
class UsageSum:
    """Calls and what they used, summed; of `day`, `tenant`, `key` and `model` those are set that were grouped by."""

    day: date | None
    tenant: str | None
    key: str | None
    model: str | None
    calls: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    cost_micros: int


@dataclass(frozen=True, slots=True)
class Spent:
    """What a tenant used up of its budgets: in a day, and from the first of its month to that day (UTC)."""

    day_tokens: int
    day_cost_micros: int
    month_tokens: int
    month_cost_micros: int


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One administrative act: `action` such as `keys.create`, `outcome` one of `done`, `denied`, `failed`."""

    id: str
    at: datetime
    actor: str
    role: str
    action: str
    target: str
    outcome: str
    details: Mapping[str, Any]
    address: str
    call_id: str


class Unchangeable(Exception):
    """A change that the present state does not allow; nothing was changed."""


class Taken(Unchangeable):
    """There is one already. `field` is what must be different: `name`, `digest` or `id`."""

    def __init__(self, field: str) -> None:
        super().__init__(f"this {field} is taken")
        self.field = field


class Missing(Unchangeable):
    """There is no such key or tenant, or it was removed."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no {name!r}")
        self.name = name


class Revoked(Unchangeable):
    """The key was revoked, which is for ever."""

    def __init__(self, id: str) -> None:
        super().__init__(f"the key {id!r} was revoked")
        self.id = id


LONGEST = 200
"""Characters of a text that is searched for. PostgreSQL's indices hold 2,700 bytes: three texts of 4 bytes each."""


def clean(text: str) -> str:
    """The text as both databases can hold it: cut off, and with U+FFFD for NUL and half surrogate pairs."""
    text = text[:LONGEST]
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
